# SPDX-License-Identifier: Apache-2.0
"""Random legal sub-models, and what the laws compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from model.config import ModelConfig, TextConfig
from model.slicing.cuts import Placement
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary


@st.composite
def specs(draw: st.DrawFn, config: TextConfig) -> SliceSpec:
    """Any legal sub-model: any layers left out whose keys and values no kept layer reads, any widths."""
    layers = range(config.num_hidden_layers)
    skipped = draw(st.sets(st.sampled_from(layers), max_size=len(layers) - 1))
    kept = set(layers) - skipped
    kept |= {config.kv_producer(layer) for layer in kept}
    widths = tuple(draw(st.integers(1, config.intermediate_size[layer])) for layer in sorted(kept))
    spec = SliceSpec("drawn", tuple(sorted(kept)), widths)
    spec.check(config)
    return spec


@st.composite
def sub_models(draw: st.DrawFn, config: ModelConfig) -> SubModel:
    """Any legal part of a checkpoint: a random spec, towers, layers of the audio tower and token ids."""
    modalities = draw(st.none() | st.sets(st.sampled_from(config.modalities)).map(tuple))
    wanted = config if modalities is None else config.only(modalities)
    audio_layers, vocabulary = None, None
    if wanted.audio is not None and draw(st.booleans()):
        layers = range(wanted.audio.conf_num_hidden_layers)
        audio_layers = tuple(sorted(draw(st.sets(st.sampled_from(layers), min_size=1))))
    if draw(st.booleans()):
        ids = range(config.text.vocab_size_per_layer_input)
        vocabulary = Vocabulary.of(draw(st.sets(st.sampled_from(ids))), wanted)
    sub = SubModel(draw(specs(config.text)), modalities, audio_layers, vocabulary)
    sub.check(config)
    return sub


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, for reading."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Same names, and bit for bit the same values."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# Bit for bit the same on the CPUs tried. Elsewhere BLAS may sum a narrowed product, which reads a strided
# weight, in another order; nothing but the order of sums may differ, and in float64 that is little.
TOLERANCE = 1e-9


@contextmanager
def in_float64() -> Iterator[None]:
    """What the model always computes in float32 (norms, angles, scores) is computed in float64."""
    with patch.object(Tensor, "float", Tensor.double):
        yield


def assert_close(left: Tensor, right: Tensor, name: str = "scores") -> None:
    """The same values up to the order of sums, measured against the largest."""
    tolerance = TOLERANCE * float(right.abs().max())
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")


def backward_of(model: nn.Module, scores: Tensor) -> dict[str, Tensor | None]:
    """Gradients of a loss that every score takes part in, differently."""
    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(1)
    (scores * torch.randn(scores.shape, generator=generator, dtype=scores.dtype)).mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def left_out(gradient: Tensor, placement: Placement) -> Tensor:
    """The entries that a placement does not take (others set to zero)."""
    taken = torch.ones_like(gradient, dtype=torch.bool)
    for kept in placement.kept:
        along = torch.zeros(gradient.shape[kept.axis], dtype=torch.bool)
        for some in kept.ranges:
            along[some.start : some.stop] = True
        taken &= along.view([-1 if axis == kept.axis else 1 for axis in range(gradient.ndim)])
    return gradient.masked_fill(taken, 0)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one example."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
