# SPDX-License-Identifier: Apache-2.0
"""Models small enough for seconds on two cores, with every mechanism of Gemma 3n on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.config import LayerType, ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs
from model.tower_config import AudioConfig, MediaTokens, TowerConfig, VisionConfig
from tests.releases import ORACLE, TRANSFORMERS

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

# Behind the 80 ids of the text lie those of the towers, as in the published vocabulary; begin marks are text.
TINY_VISION = VisionConfig(
    architecture="mobilenetv5_tiny_enc",
    hidden_size=64,
    vocab_size=8,
    vocab_offset=80,
    tokens=MediaTokens(placeholder_id=81, begin_id=78, end_id=80, per_item=16),
)
TINY_AUDIO = AudioConfig(
    hidden_size=32,
    input_feat_size=16,
    vocab_size=8,
    vocab_offset=88,
    conf_num_attention_heads=4,
    conf_num_hidden_layers=3,
    conf_attention_chunk_size=5,
    conf_attention_context_left=7,
    sscp_conv_channel_size=(8, 6),
    tokens=MediaTokens(placeholder_id=89, begin_id=79, end_id=88, per_item=12),  # of 16 frames each
)
TINY_PICTURE_PX = 64

# One batch, a few rows each, of every kind of input that the model's documentation names.
SEVEN_KINDS = {
    "image+audio+text": ("text image text audio text", "text audio image text"),
    "image+text": ("text image text image text", "image text", "text image"),
    "image+audio": ("image audio", "audio image audio"),
    "audio+text": ("text audio text", "audio text audio text"),
    "image only": ("image", "image image"),
    "audio only": ("audio audio", "audio"),
    "text only": ("text text text", "text"),
}


def tiny_config(**changes: Any) -> ModelConfig:
    """The tiny shape, with some text fields changed."""
    return ModelConfig(text=dataclasses.replace(TINY_TEXT, **changes))


def tiny_multimodal_config(**changes: Any) -> ModelConfig:
    """The tiny shape with both towers, with some text fields changed."""
    return ModelConfig(text=dataclasses.replace(TINY_TEXT, **changes), vision=TINY_VISION, audio=TINY_AUDIO)


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
        value = 1.0 + 0.3 * noise if parameter.ndim == 1 else noise * (spread / parameter[0].numel() ** 0.5)
        parameter.copy_(value)
    return model


def tiny_inputs(config: ModelConfig, *, batch: int = 3, seq: int = 21, seed: int = 0, padding: str = "none") -> Inputs:
    """Random tokens, longer than the window; with ``padding`` left or right, each row has another length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, first_unreadable_id(config), (batch, seq), generator=generator)
    mask = torch.ones(batch, seq, dtype=torch.bool)
    for row in range(batch):
        if padding == "left":
            mask[row, : 2 * row] = False
        elif padding == "right":
            mask[row, seq - 2 * row :] = False
    return Inputs(ids=ids.masked_fill(~mask, config.text.pad_token_id), mask=mask)


def first_unreadable_id(config: ModelConfig) -> int:
    """Up to where transformers' text class, with which we are compared, reads ids.

    Those of media lie beyond the per-layer table, and fail in its release 5.17; 5.23 reads row 0 for them, as we do.
    """
    return config.text.vocab_size if TRANSFORMERS >= ORACLE else config.text.vocab_size_per_layer_input


def tiny_multimodal_inputs(
    config: ModelConfig,
    *rows: str,
    frames: Sequence[int] = (61, 130, 33),
    padding: str = "left",
    seed: int = 0,
) -> Inputs:
    """Rows like ``"text image text audio"``: random tokens, pictures and clips; rows of one batch get equal lengths.

    Args:
        frames: Lengths of the clips, in turn; a run is full from 177 on.
        padding: The side on which shorter rows are padded, left or right.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.cat([part_ids(config, part, generator) for part in row.split()]) for row in rows]
    ids = pad_sequence(ids, batch_first=True, padding_value=-1, padding_side=padding)
    mask = ids >= 0
    parts = " ".join(rows).split()
    pictures, clips = parts.count("image"), parts.count("audio")
    pixels = torch.rand(pictures, 3, TINY_PICTURE_PX, TINY_PICTURE_PX, generator=generator)
    return Inputs(
        ids=ids.masked_fill(~mask, config.text.pad_token_id),
        mask=mask,
        images=Images(pixels=pixels) if pictures else None,
        audio=Audio.of([tiny_clip(frames[i % len(frames)], generator) for i in range(clips)]) if clips else None,
    )


def part_ids(config: ModelConfig, part: str, generator: torch.Generator) -> Tensor:
    """The ids of a part of a row: five random ones of text, or an item's begin, run of placeholders and end."""
    tower: TowerConfig | None = {"text": None, "image": config.vision, "audio": config.audio}[part]
    if tower is None:
        assert part == "text", f"the config has no tower for {part}"
        return torch.randint(1, TINY_VISION.tokens.begin_id, (5,), generator=generator)
    tokens = tower.tokens
    return torch.tensor([tokens.begin_id, *[tokens.placeholder_id] * tokens.per_item, tokens.end_id])


def tiny_clip(frames: int, generator: torch.Generator) -> Tensor:
    """Something of the size of a log-mel spectrogram, "frames mels"."""
    return torch.randn(frames, TINY_AUDIO.input_feat_size, generator=generator) * 3.0 - 4.0
