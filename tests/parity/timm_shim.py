# SPDX-License-Identifier: Apache-2.0
"""Our tiny vision tower as a model that timm, and transformers with it, knows.

    from tests.parity.timm_shim import register_tiny_tower
    register_tiny_tower()                                    # any number of times
    timm.create_model("mobilenetv5_tiny_enc")                # (N, 3, height, width) to (N, 64, 4, 4)
    AutoModel.from_config(Gemma3nVisionConfig(architecture="mobilenetv5_tiny_enc", hidden_size=64))
    Gemma3nForConditionalGeneration(Gemma3nConfig(
        vision_config={"architecture": "mobilenetv5_tiny_enc", "hidden_size": 64, ...},
        vision_soft_tokens_per_image=16, ...,
    ))

The table is ours (model/vision/stages.py) written in timm's notation; the network is built by timm alone.
Outside pytest, import tests.torchvision_operators before anything that imports timm (transformers does).
"""

from __future__ import annotations

from timm.layers import RmsNorm2d
from timm.models import generate_default_cfgs, is_model, register_model
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv5 import MobileNetV5Encoder, MobileNetV5MultiScaleFusionAdapter, _create_mnv5_encoder

from model.vision.stages import ARCHITECTURES, AttentionRow, BottleneckRow, EdgeRow, Row

TINY = "mobilenetv5_tiny_enc"

# Looked up by timm under this name in the file of a registered model.
default_cfgs = generate_default_cfgs(
    {TINY: {"input_size": (3, ARCHITECTURES[TINY].picture_px, ARCHITECTURES[TINY].picture_px), "num_classes": 0}}
)


def notation(row: Row) -> str:
    """A row of our table as timm writes it."""
    if isinstance(row, EdgeRow):
        return f"er_r1_k{row.kernel}_s{row.stride}_e{row.expansion}_c{row.channels}"
    if isinstance(row, BottleneckRow):
        kernels = f"a{row.start_kernel}_k{row.mid_kernel}"
        return f"uir_r1_{kernels}_s{row.stride}_e{row.expansion}_c{row.channels}"
    assert isinstance(row, AttentionRow)
    return f"mqa_r1_k{row.kernel}_h{row.heads}_v{row.kv_stride}_s1_d{row.head_dim}_c{row.channels}"


def mobilenetv5_tiny_enc(pretrained: bool = False, **kwargs: object) -> MobileNetV5Encoder:  # noqa: FBT001
    """timm's encoder by our tiny table; what the table does not say is as in ``mobilenetv5_300m_enc``."""
    table = ARCHITECTURES[TINY]
    settings = {
        "block_args": decode_arch_def([[notation(row) for row in stage] for stage in table.stages]),
        "stem_size": table.stem_channels,
        "norm_layer": RmsNorm2d,
        "layer_scale_init_value": 1e-5,
        "pad_type": "same",
    }
    encoder = _create_mnv5_encoder(TINY, pretrained, **settings | kwargs)
    encoder.num_features = encoder.head_hidden_size = table.fused_channels  # timm's encoder has 2048 and no choice
    encoder.msfa = MobileNetV5MultiScaleFusionAdapter(
        in_chs=encoder.msfa_in_chs,
        out_chs=table.fused_channels,
        output_resolution=table.grid,
        expansion_ratio=table.fusion_expansion,
    )
    return encoder


def register_tiny_tower() -> None:
    """Make ``mobilenetv5_tiny_enc`` known to timm, and thereby to transformers."""
    if not is_model(TINY):
        register_model(mobilenetv5_tiny_enc)
