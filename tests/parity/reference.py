# SPDX-License-Identifier: Apache-2.0
"""transformers' Gemma 3n with the weights of one of our models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3nConfig, Gemma3nForCausalLM, Gemma3nForConditionalGeneration, Gemma3nTextConfig
from transformers.models.gemma3n import modeling_gemma3n

from model.gemma3n import Gemma3n
from tests.parity.timm_shim import register_tiny_tower

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


def multimodal_reference_of(model: Gemma3n) -> Gemma3nForConditionalGeneration:
    """The reference with both towers computing with our weights, all of them and no others."""
    register_tiny_tower()
    published = model.config.publish()
    del published["model_type"]
    with default_dtype(next(model.parameters()).dtype):
        reference = Gemma3nForConditionalGeneration(Gemma3nConfig(**published))
    weights = model.state_dict()
    reference.load_state_dict(weights | {"lm_head.weight": weights["model.language_model.embed_tokens.weight"]})
    return reference.eval()


class WidenedTorch:
    """torch as the reference sees it, float32 being float64."""

    float32 = torch.float64

    @staticmethod
    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """A tensor; the share of sparse layers, the only number given in float32, stays in it for its quantile."""
        return torch.tensor(data, dtype=torch.float32 if dtype == torch.float64 else dtype, device=device)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def widen_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both implementations compute in float64 where they insist on float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(modeling_gemma3n, "torch", WidenedTorch())


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
