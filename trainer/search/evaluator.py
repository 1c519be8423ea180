# SPDX-License-Identifier: Apache-2.0
"""Losses of sub-models on one split, each measured once, counted, and as many as are allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from model.errors import ConfigError, InputError
from model.slicing.spec import Shape, SliceSpec

Measure = Callable[[Sequence[SliceSpec]], Sequence[float]]


@dataclass
class Evaluator:
    """Mean losses, in nats per token, of sub-models; the same layers and widths are the same sub-model.

    Args:
        measure: Measures sub-models that are not known yet, all different. Many at once cost less, as they may share
            the layers that they begin with.
        limit: How many may be measured; None: any number.
        known: Losses by kept layers and widths, of an earlier search on the same split or of this one. Those given
            at first are not counted.
    """

    measure: Measure
    limit: int | None = None
    known: dict[Shape, float] = field(default_factory=dict)
    spent: int = field(default=0, init=False)

    @property
    def left(self) -> float:
        """How many more may be measured."""
        return math.inf if self.limit is None else self.limit - self.spent

    def affordable(self, specs: Iterable[SliceSpec]) -> list[SliceSpec]:
        """The first ones that are known or may still be measured, in order."""
        new: set[Shape] = set()
        found = []
        for spec in specs:
            if spec.shape not in self.known and spec.shape not in new:
                if len(new) >= self.left:
                    continue
                new.add(spec.shape)
            found.append(spec)
        return found

    def losses(self, specs: Sequence[SliceSpec]) -> list[float]:
        """The loss of each, measured if it is not known.

        Raises:
            ConfigError: More are new than may be measured.
            InputError: A loss is not finite.
        """
        new = {spec.shape: spec for spec in specs if spec.shape not in self.known}
        if len(new) > self.left:
            raise ConfigError(
                f"search: {len(new)} more sub-models are to be measured, but only {self.left} of {self.limit} are left;"
                " allow more evaluations"
            )
        if new:
            found = self.measure(list(new.values()))
            for (shape, spec), loss in zip(new.items(), found, strict=True):
                if not math.isfinite(loss):
                    raise InputError(
                        f"search: the loss of layers {list(spec.kept_layers)} at widths {list(spec.ffn_widths)} is"
                        f" {loss}; look at the checkpoint and the data, of which a loss must be finite"
                    )
                self.known[shape] = loss
            self.spent += len(new)
        return [self.known[spec.shape] for spec in specs]
