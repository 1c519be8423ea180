# SPDX-License-Identifier: Apache-2.0
"""transformers' Gemma 3n with the weights of one of our models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from model.gemma3n import Gemma3n

pytestmark = pytest.mark.parity


def their_name(name: str) -> str:
    """A parameter's name in transformers' text-only class."""
    return name.replace("model.language_model.", "model.")


def reference_of(model: Gemma3n) -> Gemma3nForCausalLM:
    """The reference computing with our weights, attention through SDPA like ours."""
    published = model.config.text.publish()
    del published["model_type"]
    dtype = next(model.parameters()).dtype
    with default_dtype(dtype):
        reference = Gemma3nForCausalLM(Gemma3nTextConfig(**published))
    weights = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    reference.load_state_dict(weights, strict=True)
    return reference.eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the reference's largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
