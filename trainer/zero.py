# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO, stages 1 and 2: each process has a share of the optimizer's states, and in stage 2 of gradients.

Weights stay whole in every process. DeepSpeed lays those of a group of the optimizer end to end in one flat tensor, of
which each process moves its part; the optimizer knows nothing but that part. What there is on disk stays the same: a
parameter's states are gathered from the parts that it lies in, and put back into them.

All that is trained must have a gradient in every step: in a flat tensor what has none would be moved all the same.

Source: Rajbhandari et al., arXiv 1910.02054.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from model.errors import CheckpointError
from trainer.optimizers.by_name import reordered
from trainer.step import SupervisedLoss
from trainer.zero_config import ZERO

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, one of each for every number that is trained
LARGEST_BUCKET = 500_000_000  # DeepSpeed's own, in numbers; 2 GB


@dataclass(frozen=True)
class Zero:
    """A model whose optimizer's states are divided up; as ``trainer.gradients.Gradients`` has it.

    Args:
        engine: DeepSpeed's; it is what is called in training.
        optimizer: Ours, which moves this process's parts.
        groups: The parameters that lie in each of these.
        reached: The parameters that the loss has come to so far.
    """

    engine: Any
    optimizer: Optimizer
    groups: list[list[nn.Parameter]]
    reached: set[nn.Parameter]

    def passing(self, prepared: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """DeepSpeed is told which pass is the last, not how many there are."""
        self.engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Gradients are averaged over processes, as DDP's are; the loss is scaled by us alone."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def has(self, parameter: nn.Parameter) -> bool:
        """Whether there has been a gradient; it is gone from its parameter by then."""
        return parameter in self.reached

    def norm(self) -> Tensor:
        """Infinite if a gradient is not finite."""
        return self.engine.optimizer.scaled_global_norm()

    def not_finite(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """They are put together one after the other."""
        whole = importlib.import_module("deepspeed.utils").safe_get_full_grad
        moved = {own for group in self.groups for own in group}
        return [name for name, own in parameters.items() if own in moved and not whole(own).isfinite().all()]

    def clip(self, norm: Tensor, largest: float) -> None:
        """The engine does it when it steps, as it was told; by the norm that it finds again."""

    def step(self) -> None:
        """Parts are moved and weights made whole again."""
        self.engine.step()

    @torch.no_grad()
    def state_dict(self, *, kept: bool) -> dict[str, Any]:
        """The optimizer's state as it would be were nothing divided up; called by every process.

        Args:
            kept: Whether this process wants the moments; others get None in their places.
        """
        state: dict[int, dict[str, Any]] = {}
        described = self.optimizer.state_dict()["param_groups"]
        for settings, (_, part, own) in zip(described, self.parts(), strict=True):
            settings["params"] = list(own)
            if remembered := self.optimizer.state.get(part):
                for number, parameter in own.items():
                    moments = {key: gathered(parameter, remembered[key], kept=kept) for key in MOMENTS}
                    state[number] = {"step": remembered["step"].cpu().clone(), **moments}
        return {"state": state, "param_groups": described}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, or any optimizer's that divides nothing up.

        Raises:
            CheckpointError: It is the state of other parameters, or they have not taken the same steps.
        """
        whole = reordered(self.optimizer, state)["state"]
        for settings, part, own in self.parts():
            self.optimizer.state.pop(part, None)
            remembered = [whole.get(number) for number in own]
            steps = {None if one is None else float(one["step"]) for one in remembered}
            if len(steps) > 1:
                raise CheckpointError(
                    "some of what is trained has taken fewer of the optimizer's steps than the rest, as layers and"
                    " towers do that are not in every step, and DeepSpeed's ZeRO cannot go on with that; launch with"
                    " --config_file conf/accelerate/fsdp2.yaml, or ddp.yaml"
                )
            if steps == {None}:
                continue
            device = part.device if settings["fused"] or settings["capturable"] else "cpu"  # as torch has it
            put_back: dict[str, Tensor] = {"step": torch.tensor(steps.pop(), dtype=torch.float32, device=device)}
            for key in MOMENTS:
                put_back[key] = torch.zeros_like(part)
                for parameter, one in zip(own.values(), remembered, strict=True):
                    scatter(parameter, one[key], put_back[key])
            self.optimizer.state[part] = put_back

    def follow_weights(self) -> None:
        """Let the parts be what the whole weights have been made; called by every process."""
        self.engine.optimizer.refresh_fp32_params()

    def parts(self) -> Iterator[tuple[dict[str, Any], Tensor, dict[int, nn.Parameter]]]:
        """Each group of the optimizer, this process's part of it, and the parameters in it by their numbers."""
        number = 0
        for settings, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            (part,) = settings["params"]
            yield settings, part, dict(enumerate(group, start=number))
            number += len(group)


def divide_states(root: SupervisedLoss, optimizer: Optimizer, device: torch.device, config: Mapping[str, Any]) -> Zero:
    """Divide an optimizer's states up, beginning with the first process's weights.

    Args:
        root: What is called in training; it goes to the device.
        optimizer: Over its parameters, of float32; it has not taken a step, and will have parts in their place.
        device: Where to train.
        config: What DeepSpeed is told.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would take a GPU that is there
    deepspeed = importlib.import_module("deepspeed")

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    count = sum(own.numel() for group in groups for own in group)
    # Its buckets are allocated whole in every backward pass, however little is trained.
    zero = {"reduce_bucket_size": min(LARGEST_BUCKET, count), **config[ZERO]}
    engine, *_ = deepspeed.initialize(model=root.to(device), optimizer=optimizer, config={**config, ZERO: zero})
    reached: set[nn.Parameter] = set()
    for group in groups:
        for own in group:
            note_gradient(own, reached)
    return Zero(engine, optimizer, groups, reached)


def note_gradient(parameter: nn.Parameter, reached: set[nn.Parameter]) -> None:
    """Have a parameter noted when it gets its first gradient, which does not stay with it."""

    def note(_: Tensor) -> None:
        reached.add(parameter)
        handle.remove()

    handle = parameter.register_hook(note)


def gathered(parameter: nn.Parameter, part: Tensor, *, kept: bool) -> Tensor | None:
    """What belongs to a parameter, of a flat tensor of which each process has a part; in the processor's memory."""
    whole = torch.zeros(parameter.numel(), dtype=part.dtype, device=parameter.device)
    if (mapping := fragment(parameter)) is not None:
        here, there = mapping
        whole[here] = part[there].to(whole.device)
    distributed.all_reduce(whole)
    return whole.view_as(parameter).cpu() if kept else None


def scatter(parameter: nn.Parameter, whole: Tensor, part: Tensor) -> None:
    """Put into this process's part what belongs there of a parameter's whole tensor."""
    if (mapping := fragment(parameter)) is not None:
        here, there = mapping
        part[there] = whole.flatten()[here].to(part.device)


def fragment(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """Which of a parameter's numbers this process moves, and where they are in its part; None if it moves none."""
    mapping: Any = parameter._hp_mapping  # noqa: SLF001 # pyright: ignore[reportAttributeAccessIssue]
    if mapping is None:
        return None
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(here.start, here.start + here.numel), slice(there.start, there.start + there.numel)
