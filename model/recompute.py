# SPDX-License-Identifier: Apache-2.0
"""Which activations are kept for the backward pass, and which are made again in it.

One method for all: torch's non-reentrant checkpoint. The reentrant one cuts the graph at what it is given outside of
its arguments, and so loses the gradients that flow through keys and values that layers share; it is not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.errors import ConfigError


class TextRecompute(StrEnum):
    """What is made again of the text decoder."""

    none = "none"  # nothing: all activations are kept
    full = "full"  # every layer; what is kept is what enters it
    every = "every"  # so many neighbouring layers together; what is kept is what enters the first of them
    selective = "selective"  # of every layer all but its large matrix products and attention


class TowerRecompute(StrEnum):
    """What is made again of a tower."""

    none = "none"  # nothing
    full = "full"  # every block


@dataclass(kw_only=True, slots=True)
class RecomputeConfig:
    """Time traded for memory, part by part. No choice changes a gradient, not even its last bit.

    Raises:
        ConfigError: ``every`` is no number of layers.
    """

    text: TextRecompute = TextRecompute.none
    every: int = 2  # neighbouring layers that are made again together, for text=every
    vision: TowerRecompute = TowerRecompute.none
    audio: TowerRecompute = TowerRecompute.none

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"recompute.every is {self.every}; it must be at least 1 layer")

    @property
    def group(self) -> int:
        """Neighbouring layers of the text decoder that are run as one."""
        return self.every if self.text is TextRecompute.every else 1

    @classmethod
    def everything(cls) -> RecomputeConfig:
        """All layers and blocks made again: the least memory for activations at about a third more time."""
        return cls(text=TextRecompute.full, vision=TowerRecompute.full, audio=TowerRecompute.full)


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` gives, which is run again in the backward pass; dropout drops the same both times.

    Tensors must be among the arguments themselves for their device's random state to be kept.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=True)


def partly_recomputed(function: Callable[..., Any], *arguments: Any, dear: int) -> Any:
    """The same, but results of attention and of dear matrix products are kept.

    A product is dear if each of its entries is a sum of at least ``dear`` terms: an entry costs the same memory
    whatever it took to make it. The products of an adapter's second factors, as wide as those of the weights they
    belong to, are sums of a few terms and made again.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(keep_dear, dear))
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=True, context_fn=contexts)


PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1}  # with the place of the left factor
ATTENTION = "aten::_scaled_dot_product"  # how the names of all its kernels begin


def keep_dear(dear: int, _context: object, operator: Any, *arguments: Any, **_options: Any) -> CheckpointPolicy:
    """Whether the result of one operation is kept."""
    name = operator.name().partition(".")[0]
    if name in PRODUCTS:
        left: Tensor = arguments[PRODUCTS[name]]
        keep = left.shape[-1] >= dear
    else:
        keep = name.startswith(ATTENTION)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
