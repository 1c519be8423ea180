# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the vision tower's tensors, from its table alone: nothing is built, torch is not needed.

One function for each kind of block in blocks.py and attention.py; names are those of their attributes.
"""

from __future__ import annotations

from model.tower_config import COLOURS, VisionConfig
from model.vision.stages import STEM_KERNEL, AttentionRow, BottleneckRow, EdgeRow, Row, checked_table

Shapes = dict[str, tuple[int, ...]]


def vision_shapes(config: VisionConfig) -> Shapes:
    """Shapes by name, as ``VisionTower(config).named_parameters()`` has them.

    Raises:
        ConfigError: The architecture is not known, or puts out another width than the config says.
    """
    table = checked_table(config)
    stem = conv_norm("conv_stem", COLOURS, table.stem_channels, kernel=STEM_KERNEL)
    shapes = stem | {"conv_stem.conv.bias": (table.stem_channels,)}
    for number, stage in enumerate(table.blocks):
        for position, (ins, row) in enumerate(stage):
            shapes |= below(f"blocks.{number}.{position}", block_shapes(ins, row))
    shapes |= below("msfa.ffn", bottleneck_shapes(*table.fusion))
    shapes["msfa.norm.weight"] = (table.fused_channels,)
    return below("timm_model", shapes)


def block_shapes(ins: int, row: Row) -> Shapes:
    """Shapes by name of the block a row of the table describes, for ``ins`` input channels."""
    if isinstance(row, EdgeRow):
        return edge_shapes(ins, row)
    if isinstance(row, AttentionRow):
        return attention_shapes(ins, row)
    return bottleneck_shapes(ins, row) | layer_scale(row)


def edge_shapes(ins: int, row: EdgeRow) -> Shapes:
    """Of an edge residual."""
    wide = row.wide(ins)
    return {
        "conv_exp.weight": (wide, ins, row.kernel, row.kernel),
        "bn1.weight": (wide,),
        "conv_pwl.weight": (row.channels, wide, 1, 1),
        "bn2.weight": (row.channels,),
    }


def bottleneck_shapes(ins: int, row: BottleneckRow) -> Shapes:
    """Of a universal inverted bottleneck, without the layer scale that it has everywhere but in the fusion."""
    wide = row.wide(ins)
    return {
        **(conv_norm("dw_start", 1, ins, kernel=row.start_kernel) if row.start_kernel else {}),
        **conv_norm("pw_exp", ins, wide),
        **(conv_norm("dw_mid", 1, wide, kernel=row.mid_kernel) if row.mid_kernel else {}),
        **conv_norm("pw_proj", wide, row.channels),
    }


def attention_shapes(ins: int, row: AttentionRow) -> Shapes:
    """Of mobile multi-query attention; keys and values are coarsened, where they are, each on its own way."""
    coarsening: Shapes = {"down_conv.weight": (ins, 1, row.kernel, row.kernel), "norm.weight": (ins,)}
    way = (coarsening if row.kv_stride > 1 else {}) | {"proj.weight": (row.head_dim, ins, 1, 1)}
    return {
        "norm.weight": (ins,),
        "attn.query.proj.weight": (row.query_channels, ins, 1, 1),
        **below("attn.key", way),
        **below("attn.value", way),
        "attn.output.proj.weight": (row.channels, row.query_channels, 1, 1),
        **layer_scale(row),
    }


def conv_norm(name: str, ins: int, outs: int, *, kernel: int = 1) -> Shapes:
    """Of a convolution, each of its outputs reading ``ins`` channels (1: depthwise), and its norm."""
    return {f"{name}.conv.weight": (outs, ins, kernel, kernel), f"{name}.bn.weight": (outs,)}


def layer_scale(row: Row) -> Shapes:
    """Of the learned factor per channel on what a block adds."""
    return {"layer_scale.gamma": (row.channels,)}


def below(name: str, shapes: Shapes) -> Shapes:
    """The shapes of the part called ``name``, as the whole names them."""
    return {f"{name}.{part}": shape for part, shape in shapes.items()}
