# SPDX-License-Identifier: Apache-2.0
"""AdamW that remembers in bfloat16, and moves bfloat16 weights, without losing small changes.

A step is computed in float32, and what is kept of it is rounded up or down at random, the nearer the likelier: right
on average, where rounding to the nearest would drop every change below 1/256 of the value, among them most of those
of the second moment. The noise is a function of (seed, parameter, step), so a resumed run repeats it, and processes
that hold the same weights round them alike. Sources: Loshchilov & Hutter, arXiv 1711.05101, for the step; Zamirai et
al., arXiv 2010.06192, for bfloat16 weights rounded stochastically.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Float32, Int, Int64
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from trainer.seeding import seeded

CHUNK = 2**22  # entries moved at once: a step needs some 40 bytes of float32 and noise for each
LOST_BITS = 16  # of float32's 32, in bfloat16
LOST = 2**LOST_BITS - 1
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for what AdamW remembers, in the order of the noise
WEIGHT = 2  # the noise's third part


class AdamWBf16States(Optimizer):
    """AdamW with bfloat16 moments, for parameters in float32 or bfloat16.

    Takes half as much memory for moments as torch's, and a quarter with bfloat16 weights of what weights, gradients
    and moments take in float32. Optimizers are torch's own kind, so that whatever deals with those deals with this.

    Args:
        groups: Of parameters, as for every optimizer of torch.
        lr: The learning rate of groups without one of their own.
        betas: How much the moments keep in a step.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled; of groups without one of their own.
        seed: Of the noise.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        constants = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rounding_seed": seed}
        super().__init__(groups, constants)
        self.waiting: dict[int, dict[str, Tensor]] = {}
        # Torch gives whatever it loads the parameter's dtype: moments would become float32, twice their size.
        self.register_load_state_dict_pre_hook(keep_waiting)
        self.register_load_state_dict_post_hook(take_in)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self.move(parameter, group, number)
        return loss

    def move(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        """Move one parameter, the ``number``-th, a few rows at a time."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        step = int(state["step"].item())
        generator = torch.Generator(local(parameter).device)
        generator.manual_seed(seeded("rounding", group["rounding_seed"], number, step).getrandbits(63))
        assert parameter.grad is not None
        everything = [local(tensor) for tensor in (parameter, parameter.grad, *(state[name] for name in MOMENTS))]
        rows = max(1, CHUNK // max(1, everything[0][:1].numel() if everything[0].ndim else 1))
        for parts in zip(*(torch.atleast_1d(tensor).split(rows) for tensor in everything), strict=True):
            move_rows(*parts, group=group, step=step, generator=generator)


def move_rows(
    weight: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    first: BFloat16[Tensor, "*shape"],
    second: BFloat16[Tensor, "*shape"],
    *,
    group: dict[str, Any],
    step: int,
    generator: torch.Generator,
) -> None:
    """One step of AdamW, in place; the weight moves by the moments as they are before rounding."""
    beta1, beta2 = group["betas"]
    noise = torch.empty(weight.shape, dtype=torch.int64, device=weight.device).random_(generator=generator)
    exact = gradient.float()
    mean = first.float().lerp_(exact, 1 - beta1)
    square = second.float().mul_(beta2).addcmul_(exact, exact, value=1 - beta2)
    first.copy_(rounded(mean, noise, 0))
    second.copy_(rounded(square, noise, 1))
    moved = weight.float()  # itself, if it is float32
    moved.mul_(1 - group["lr"] * group["weight_decay"])
    scale = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
    moved.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))
    if weight.dtype == torch.bfloat16:
        weight.copy_(rounded(moved, noise, WEIGHT))


def rounded(values: Float32[Tensor, "*shape"], noise: Int64[Tensor, "*shape"], part: int) -> BFloat16[Tensor, "*shape"]:
    """Values rounded to one of the two neighbours in bfloat16, up with the probability that makes it right on average.

    What bfloat16 can hold stays as it is, zero and infinity included.

    Args:
        values: To be rounded.
        noise: Evenly distributed bits.
        part: Which 16 of them are meant, from 0 to 2.
    """
    added: Int[Tensor, "*shape"] = ((noise >> (LOST_BITS * part)) & LOST).int()
    # As integers, floats of one sign are in order: whoever adds up to one bfloat16 gets past the next one or not.
    return ((values.view(torch.int32) + added) & ~LOST).view(torch.float32).bfloat16()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def keep_waiting(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Before a state is loaded: hold back what is remembered of parameters."""
    assert isinstance(optimizer, AdamWBf16States)
    optimizer.waiting = dict(state["state"])
    return {**state, "state": {}}


def take_in(optimizer: Optimizer) -> None:
    """After a state was loaded: take in what was held back, as it is."""
    assert isinstance(optimizer, AdamWBf16States)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, remembered in optimizer.waiting.items():
        parameter = parameters[number]
        moments = {name: remembered[name].to(device=parameter.device, dtype=torch.bfloat16) for name in MOMENTS}
        optimizer.state[parameter] = {"step": remembered["step"], **moments}
    optimizer.waiting = {}
