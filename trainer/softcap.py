# SPDX-License-Identifier: Apache-2.0
"""From products of hidden states with the head to scores pressed into ± the soft-cap, and back.

The model says cap·tanh(x / cap). In float32 it is 2·cap·sigmoid(2·x / cap) - cap that is computed here, which is the
same number: a sigmoid takes a third of a hyperbolic tangent's time on a processor, the division goes into the product
of matrices, and the constant counts for nothing, for only differences of scores do. In half precision scores have to
be rounded as the model rounds them, so there it is the tangent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SoftCap:
    """Of scores up to a constant: a rising curve of the products, times ``scale``.

    The curve's slope at an entry is ``steepness`` times what ``dampen`` multiplies by.
    """

    cap: float
    by_sigmoid: bool

    @classmethod
    def of(cls, cap: float, dtype: torch.dtype) -> SoftCap:
        """That of a model whose head has this dtype."""
        return cls(cap, by_sigmoid=dtype == torch.float32)

    @property
    def scale(self) -> float:
        """Of the curve."""
        return 2 * self.cap if self.by_sigmoid else self.cap

    @property
    def steepness(self) -> float:
        """What ``dampen`` leaves out: the tangent is twice the sigmoid, and that is pressed twice as much."""
        return 4.0 if self.by_sigmoid else 1.0

    def press(self, hidden: Float[Tensor, "rows dim"], head: Float[Tensor, "columns dim"], *, out: Tensor) -> None:
        """Fill ``out``, of rows and columns, with the curve's values of the products."""
        if self.by_sigmoid:
            torch.addmm(out, hidden, head.T, beta=0, alpha=2 / self.cap, out=out).sigmoid_()
        else:
            torch.mm(hidden, head.T, out=out).div_(self.cap).tanh_()

    def scores(self, pressed: Float[Tensor, " some"]) -> Float[Tensor, " some"]:
        """The scores, in float32, of some of the curve's values."""
        return (pressed * self.scale).float()

    def powers(
        self, pressed: Float[Tensor, "rows columns"], top: Float[Tensor, " rows"], *, out: Float[Tensor, "rows columns"]
    ) -> None:
        """Fill ``out`` with exp(score - top)."""
        if self.by_sigmoid:
            torch.add(-top[:, None], pressed, alpha=self.scale, out=out).exp_()
        else:
            torch.mul(pressed, self.scale, out=out).sub_(top[:, None]).exp_()

    def dampen(self, powers: Float[Tensor, "rows columns"], pressed: Float[Tensor, "rows columns"]) -> None:
        """Multiply, in place, by the slope of the curve, up to ``steepness``."""
        if self.by_sigmoid:
            torch.ops.aten.sigmoid_backward.grad_input(powers, pressed, grad_input=powers)
        else:
            powers.addcmul_(powers, pressed.float().square_(), value=-1)

    def slope(self, pressed: Float[Tensor, " some"]) -> Float[Tensor, " some"]:
        """The slope of the scores at some of the curve's values, in float32."""
        wide = pressed.float()
        return 4 * wide * (1 - wide) if self.by_sigmoid else 1 - wide.square()
