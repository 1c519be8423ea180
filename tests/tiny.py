# SPDX-License-Identifier: Apache-2.0
"""Models small enough for seconds on two cores, with every mechanism of Gemma 3n on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from model.config import LayerType, ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.inputs import Inputs

LOCAL, GLOBAL = LayerType.sliding_attention, LayerType.full_attention

# E4B's pattern in small: blocks of two local layers and a global one, two sparse layers, and readers
# in the last two blocks, of which the first may be skipped.
TINY_TEXT = TextConfig(
    layer_types=(LOCAL, LOCAL, GLOBAL) * 3,
    intermediate_size=(48,) * 9,
    activation_sparsity_pattern=(0.9,) * 2 + (0.0,) * 7,
    num_kv_shared_layers=6,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    vocab_size=96,
    vocab_size_per_layer_input=80,
    hidden_size_per_layer_input=6,
    laurel_rank=4,
    max_position_embeddings=512,
)


def tiny_config(**changes: Any) -> ModelConfig:
    """The tiny shape, with some text fields changed."""
    return ModelConfig(text=dataclasses.replace(TINY_TEXT, **changes))


@torch.no_grad()
def tiny_model(
    config: ModelConfig | None = None, seed: int = 0, *, spread: float = 0.5, dtype: torch.dtype = torch.float32
) -> Gemma3n:
    """A model of random weights, none of them special.

    Norms, output scales and padding rows are random too: at their initial values (one, zero) many
    mistakes would not show. ``spread`` is how much a matrix enlarges its input; at the default every
    path matters, and rounding errors grow from layer to layer.
    """
    model = Gemma3n.build(config or tiny_config(), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        value = 1.0 + 0.3 * noise if parameter.ndim == 1 else noise * (spread / parameter.shape[-1] ** 0.5)
        parameter.copy_(value)
    return model


def tiny_inputs(config: ModelConfig, *, batch: int = 3, seq: int = 21, seed: int = 0, padding: str = "none") -> Inputs:
    """Random tokens, longer than the window; with ``padding`` left or right, each row has another length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, config.text.vocab_size, (batch, seq), generator=generator)
    mask = torch.ones(batch, seq, dtype=torch.bool)
    for row in range(batch):
        if padding == "left":
            mask[row, : 2 * row] = False
        elif padding == "right":
            mask[row, seq - 2 * row :] = False
    return Inputs(ids=ids.masked_fill(~mask, config.text.pad_token_id), mask=mask)
