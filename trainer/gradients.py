# SPDX-License-Identifier: Apache-2.0
"""What becomes of a step's gradients, between the backward passes and the optimizer's step.

There are two ways: gradients lie where torch leaves them, beside their parameters, whether these are whole or divided
up (here); or each process is left with its share of all of them (``trainer/zero.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.sharding import Sharding, whole_tensor


class Gradients(Protocol):
    """The gradients of a step; all of it is called by every process, in the same order."""

    def passing(self, prepared: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """What one forward and backward pass is made within; ``last`` is the last one of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient to those there are."""
        ...

    def has(self, parameter: nn.Parameter) -> bool:
        """Whether the loss has come to a parameter."""
        ...

    def norm(self) -> Tensor:
        """Their global norm; not finite if one of them is not."""
        ...

    def not_finite(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """The names of those that have a gradient which is not finite."""
        ...

    def clip(self, norm: Tensor, largest: float) -> None:
        """See to it that their norm, which is ``norm``, is at most the largest allowed when the step is taken."""
        ...

    def step(self) -> None:
        """Let the optimizer move the weights, and drop the gradients."""
        ...


class PlainGradients:
    """Gradients beside their parameters, averaged over processes by DDP or FSDP2, if there are several.

    Args:
        sharding: How the model is divided up; None where every process has all of it.
    """

    def __init__(self, accelerator: Accelerator, optimizer: Optimizer, sharding: Sharding | None = None) -> None:
        self.accelerator, self.optimizer, self.sharding = accelerator, optimizer, sharding

    def passing(self, prepared: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients of whole models are exchanged in the last pass."""
        # Shares exchange gradients every time: whole ones are large, and layers skipped last would keep them.
        return contextlib.nullcontext() if last or self.sharding else self.accelerator.no_sync(prepared)

    def backward(self, loss: Tensor) -> None:
        """Not Accelerate's: it divides by a number of micro-batches it takes from the environment."""
        loss.backward()

    def has(self, parameter: nn.Parameter) -> bool:
        """Whether there is one."""
        return parameter.grad is not None

    def norm(self) -> Tensor:
        """That of all the optimizer moves."""
        return whole_tensor(nn.utils.get_total_norm([own.grad for own in self.moved() if own.grad is not None]))

    def not_finite(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Each is looked at as a whole."""
        whole = ((name, whole_tensor(own.grad)) for name, own in parameters.items() if own.grad is not None)
        return [name for name, gradient in whole if not gradient.isfinite().all()]

    def clip(self, norm: Tensor, largest: float) -> None:
        """Scale them now."""
        nn.utils.clip_grads_with_norm_(self.moved(), largest, norm)

    def step(self) -> None:
        """As torch does it."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def moved(self) -> list[nn.Parameter]:
        """What has a gradient, in the optimizer's order."""
        return [own for group in self.optimizer.param_groups for own in group["params"] if own.grad is not None]
