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

from model.config import TextConfig
from model.slicing.cuts import Placement
from model.slicing.spec import SliceSpec


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
    rest = gradient.clone()
    if placement.axis is None:
        return torch.zeros_like(rest)
    for kept in placement.ranges:
        rest.narrow(placement.axis, kept.start, len(kept)).zero_()
    return rest


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one example."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
