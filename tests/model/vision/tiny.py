# SPDX-License-Identifier: Apache-2.0
"""A tiny vision tower with weights that hide nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from model.tower_config import MediaTokens, VisionConfig
from model.vision.stages import ARCHITECTURES
from model.vision.tower import VisionTower

TINY = "mobilenetv5_tiny_enc"
FULL = "mobilenetv5_300m_enc"


def vision_config(name: str = TINY) -> VisionConfig:
    table = ARCHITECTURES[name]
    tokens = MediaTokens(placeholder_id=262_145, begin_id=255_999, end_id=262_144, per_item=table.soft_tokens)
    return VisionConfig(architecture=name, hidden_size=table.fused_channels, tokens=tokens)


@torch.no_grad()
def vision_tower(name: str = TINY, *, seed: int = 0) -> VisionTower:
    """A tower whose matrices keep the size of what they multiply, and whose 1-D parameters are all different."""
    with torch.device("meta"):
        tower = VisionTower(vision_config(name))
    tower = tower.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in tower.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return tower


def pictures(*size: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))
