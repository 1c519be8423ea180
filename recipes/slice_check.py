# SPDX-License-Identifier: Apache-2.0
"""Whether a slice computes what its parent does under the same spec. Apart from slicing, which computes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.adapter.lora import PeftModel, base_of, load_adapter, merge
from model.audio.tower import AudioTower
from model.checkpoint.load import load
from model.checkpoint.names import TOKEN_TABLE
from model.checkpoint.reader import Checkpoint
from model.checkpoint.tensors import dtype_of
from model.config import ModelConfig
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs
from model.slicing.submodel import SubModel
from model.tower_config import MediaTokens
from model.vision.stages import ARCHITECTURES
from recipes.build import build_adapted

CHECKED_TOKENS, CHECKED_FRAMES = 64, 100
TOLERANCE = 1e-4  # of the largest score: float32 sums in another order, through all layers
# Merged in bfloat16, a sum may also be rounded to the other side: few weights, by their last bit.
MERGED_TOLERANCE = 1e-2


@torch.no_grad()
def check(
    source: Checkpoint, sub: SubModel, written: Path, *, adapter: Path | None, cut_adapter: Path | None, output: Path
) -> None:
    """Run the parent under the spec and what was ``written`` on the same tokens, and an item of each medium.

    Args:
        source: The parent.
        sub: What was cut out of it.
        written: Where that lies until it is known to be right.
        adapter: That of the parent, if it has one.
        cut_adapter: That of the slice; None if ``adapter`` was merged into it.
        output: Where the slice is to be, as its user knows it.

    Raises:
        CheckpointError: They do not agree.
    """
    stored = dtype_of(source, TOKEN_TABLE)
    merged = adapter is not None and cut_adapter is None
    whole = adapted(source.path, adapter) if adapter is None or not merged else merged_as_stored(source, adapter)
    if sub.audio_layers is not None:
        leave_out_audio_layers(base_of(whole), sub.audio_layers)
    inputs = checked_inputs(ModelConfig.read(written))
    expected = whole(in_parent(inputs, sub), spec=sub.spec).logits
    if sub.vocabulary is not None:
        kept = [sub.vocabulary.old_id(new) for new in range(ModelConfig.read(written).text.vocab_size)]
        expected = expected[..., kept]
    del whole
    small = adapted(written, None if adapter is None else cut_adapter)
    error = (small(inputs).logits - expected).abs().max().item() / expected.abs().max().item()
    allowed = MERGED_TOLERANCE if merged and stored is not torch.float32 else TOLERANCE
    if not error <= allowed:
        raise CheckpointError(
            f"{output}: the slice differs from its parent under the same spec by {error:.1e} of the largest"
            f" score (allowed {allowed:.0e}), so it was not kept"
        )
    print(f"checked: differs from its parent under the same spec by {error:.1e} of the largest score")


def checked_inputs(config: ModelConfig) -> Inputs:
    """Random tokens, behind a random picture and random sound if the model takes them."""
    generator = seeded()
    ids = [torch.randint(config.text.vocab_size_per_layer_input, (CHECKED_TOKENS,), generator=generator)]
    images = audio = None
    if config.vision is not None:
        side = ARCHITECTURES[config.vision.architecture].picture_px
        images = Images(pixels=torch.rand(1, 3, side, side, generator=generator))
        ids.insert(0, run_of(config.vision.tokens))
    if config.audio is not None:
        audio = Audio.of([torch.randn(CHECKED_FRAMES, config.audio.input_feat_size, generator=generator)])
        ids.insert(0, run_of(config.audio.tokens))
    return dataclasses.replace(Inputs.of(torch.cat(ids)[None]), images=images, audio=audio)


def in_parent(inputs: Inputs, sub: SubModel) -> Inputs:
    """The same tokens, by the numbers that they have in the parent."""
    if sub.vocabulary is None:
        return inputs
    return dataclasses.replace(inputs, ids=inputs.ids.clone().apply_(sub.vocabulary.old_id))


def leave_out_audio_layers(whole: Gemma3n, kept: Sequence[int]) -> None:
    """Take layers out of the parent's audio tower, which a forward pass cannot be told to pass over."""
    tower = cast(AudioTower, whole.model.audio_tower)
    tower.conformer = nn.ModuleList(tower.conformer[layer] for layer in kept)


def run_of(tokens: MediaTokens) -> Tensor:
    """The ids of one item of a medium."""
    return torch.tensor([tokens.begin_id, *[tokens.placeholder_id] * tokens.per_item, tokens.end_id])


def adapted(checkpoint: Path, adapter: Path | None) -> Gemma3n | PeftModel:
    """A model to compute with as exactly as can be."""
    return build_adapted(checkpoint, adapter, dtype=torch.float32, device=torch.device("cpu"))


def merged_as_stored(source: Checkpoint, adapter: Path) -> Gemma3n:
    """The parent with its adapter merged: rounded to the dtype it is stored in, as the slice's weights are."""
    return merge(load_adapter(load(source.path, dtype=dtype_of(source, TOKEN_TABLE)), adapter)).float()


def seeded() -> torch.Generator:
    """The same tokens every time."""
    return torch.Generator().manual_seed(0)
