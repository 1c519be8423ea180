# SPDX-License-Identifier: Apache-2.0
"""timm where torchvision has no compiled operators, and our tiny vision tower as a timm model.

    from tests.parity.timm_shim import register_tiny_tower
    register_tiny_tower()                                    # any number of times
    timm.create_model("mobilenetv5_tiny_enc")                # (N, 3, height, width) to (N, 64, 4, 4)
    AutoModel.from_config(Gemma3nVisionConfig(architecture="mobilenetv5_tiny_enc", hidden_size=64))
    Gemma3nForConditionalGeneration(Gemma3nConfig(
        vision_config={"architecture": "mobilenetv5_tiny_enc", "hidden_size": 64, ...},
        vision_soft_tokens_per_image=16, ...,
    ))

The table is ours (model/vision/stages.py) written in timm's notation; the network is built by timm alone.
Importing this file makes timm importable, so it must come before timm, which transformers imports only when
it makes a vision tower.
"""

from __future__ import annotations

import torch

from model.vision.stages import ARCHITECTURES, AttentionRow, BottleneckRow, EdgeRow, Row

TINY = "mobilenetv5_tiny_enc"


def torchvision_schemas() -> torch.library.Library | None:
    """Make torchvision importable; what is given back must be kept, as the operators live as long as it.

    On import torchvision gives shape rules to its own operators, of which there are none where its compiled part
    does not fit torch (PyPI's wheel beside a CPU build). Their schemas are enough. A torchvision that imports
    as it is, is left alone.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


SCHEMAS = torchvision_schemas()

from timm.layers import RmsNorm2d  # noqa: E402
from timm.models import generate_default_cfgs, is_model, register_model  # noqa: E402
from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402
from timm.models.mobilenetv5 import (  # noqa: E402
    MobileNetV5Encoder,
    MobileNetV5MultiScaleFusionAdapter,
    _create_mnv5_encoder,
)

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
