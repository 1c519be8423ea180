# SPDX-License-Identifier: Apache-2.0
"""A model divided up among processes: FSDP2, that is torch's ``fully_shard``. What there is on disk stays the same.

Each decoder layer is a unit, whole only while it runs; so is the table of per-layer embeddings, where it is a
parameter. The rest belongs to the root, ``SupervisedLoss``, and is whole from the beginning of a forward pass to the
end of its backward pass: above all the token table, which is read at the beginning and is the head at the end.

Processes wait for each other at every unit, so all must run the same units. Layers that a spec skips are skipped by
all. Towers run only where a row has their medium, and so are no units: what is trained of them belongs to the root,
and a process without media takes part with a gradient of zero; frozen towers stay whole in every process.

Source: Zhao et al., arXiv 2304.11277, for the method; torch's ``fully_shard`` for a parameter at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from model.adapter.lora import base_of
from model.checkpoint.names import modality_of
from model.gemma3n import Gemma3n
from model.layers.embedding import HostTable
from model.tower_config import Modality
from trainer.optimizers.by_name import reordered
from trainer.reach import WRAPPED
from trainer.step import SupervisedLoss

T = TypeVar("T")


@dataclass(frozen=True)
class Sharding:
    """A divided model.

    Args:
        root: What is called in training.
        of_media: What is trained of towers and embedders, by the medium.
    """

    root: SupervisedLoss
    of_media: Mapping[Modality, list[nn.Parameter]]

    def within(self, work: Callable[[], T]) -> T:
        """Do something that runs the model outside of training; all processes must run it equally often."""
        with torch.no_grad():
            done = self.root.within(work)
        self.reshard()
        return done

    def reshard(self) -> None:
        """Let every process have its share alone again."""
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextlib.contextmanager
    def whole(self, *, kept: bool, changed: bool = False) -> Iterator[None]:
        """Within the block the model has whole parameters, in the processor's memory: all, or those of its adapter.

        Called by every process. What fails within it does not leave others waiting.

        Args:
            kept: Whether this process wants them; in others the model is as it was.
            changed: Whether the block changes them, and so the shares afterwards.
        """
        self.reshard()
        adapted = not isinstance(self.root.model, Gemma3n)
        places: list[tuple[nn.Module, str, DTensor, nn.Parameter]] = []
        for module in self.root.modules():
            for name, own in module.named_parameters(recurse=False):
                if isinstance(own, DTensor) and (own.requires_grad or not adapted):
                    full = own.full_tensor().detach()
                    if kept:
                        places.append((module, name, own, nn.Parameter(full.cpu(), own.requires_grad)))
        try:
            for module, name, _, full in places:
                module._parameters[name] = full  # noqa: SLF001 - setattr would ask FSDP's hooks
            yield
        finally:
            for module, name, own, _ in places:
                module._parameters[name] = own  # noqa: SLF001 # pyright: ignore[reportArgumentType]
        if changed:
            for _, _, own, full in places:
                put(own, full)

    @torch.no_grad()
    def drop_idle(self, media: set[Modality], total: Callable[..., list[float]]) -> None:
        """Take the gradients of zero away that stand for no gradient in any process: of media that no row has.

        Args:
            media: What the step's rows have, of all processes.
            total: Sums numbers over processes.
        """
        idle = [own for medium, parameters in self.of_media.items() if medium not in media for own in parameters]
        if not idle:
            return
        touched = total(*(0.0 if own.grad is None else float(bool(local(own.grad).any())) for own in idle))
        for own, count in zip(idle, touched, strict=True):
            if count == 0:
                own.grad = None


def shard(root: SupervisedLoss, optimizer: Optimizer, device: torch.device, *, reshard_after_forward: bool) -> Sharding:
    """Divide a model up, beginning with the first process's weights, and let the optimizer know the shares.

    Args:
        root: A model in the processor's memory; it is changed. Units go to the device one at a time.
        optimizer: Over its parameters; it has not taken a step.
        device: Where shares lie.
        reshard_after_forward: Whether a layer is whole only while it runs, or until its backward pass is over.
    """
    gemma = base_of(root.model)
    decoder = gemma.model.language_model
    mesh = distributed.device_mesh.init_device_mesh(device.type, (distributed.get_world_size(),))
    units: list[nn.Module] = list(decoder.layers)
    if not isinstance(decoder.embed_tokens_per_layer, HostTable):
        units.append(decoder.embed_tokens_per_layer)
    for unit in units:
        divide(unit, optimizer, device, mesh=mesh, reshard_after_forward=reshard_after_forward)
    towers = [tower for tower in (gemma.model.vision_tower, gemma.model.audio_tower) if tower is not None]
    left_whole = {own for tower in towers for own in tower.parameters() if not own.requires_grad}
    if root.anchor is not None:
        left_whole.add(root.anchor)
    divide(root, optimizer, device, mesh=mesh, ignored_params=left_whole)
    register_fsdp_forward_method(root, "within")
    of_media: dict[Modality, list[nn.Parameter]] = {}
    for name, own in root.model.named_parameters():
        if own.requires_grad and is_of_medium(name):
            of_media.setdefault(modality_of(WRAPPED.sub("", name)), []).append(own)
    if names := [name for name, own in root.model.named_parameters() if own.requires_grad and is_of_medium(name)]:
        decoder.register_forward_pre_hook(lambda _, arguments: touching(root.model, names, arguments))
    return Sharding(root, of_media)


def divide(module: nn.Module, optimizer: Optimizer, device: torch.device, **options: Any) -> None:
    """Divide up what of a module is not divided yet."""
    before = {name: own for name, own in module.named_parameters() if not isinstance(own, DTensor)}
    for tensor in (*before.values(), *module.buffers()):
        tensor.data = tensor.data.to(device)
        first = tensor.data.contiguous()
        distributed.broadcast(first, src=0)
        tensor.data.copy_(first)
    fully_shard(module, **options)
    after = dict(module.named_parameters())
    shares = {id(own): after[name] for name, own in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [shares.get(id(own), own) for own in group["params"]]


def is_of_medium(name: str) -> bool:
    """Whether the parameter of this name takes in images or sound."""
    return modality_of(WRAPPED.sub("", name)) is not Modality.text


def touching(model: nn.Module, names: list[str], arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The decoder's arguments, the first of which depends on parameters of these names, though by nothing.

    So the backward pass comes to all of them, and through all layers, in every process, whatever its rows hold.
    """
    if not torch.is_grad_enabled():
        return None
    embedded, *others = arguments
    # By name: while the root is whole, other tensors stand in the parameters' places.
    entries = torch.stack([model.get_parameter(name).reshape(-1)[0].to(embedded.dtype) for name in names])
    return (embedded + 0 * entries.sum(), *others)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, of which processes may hold shares; called by each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(value: Any, *, kept: bool) -> Any:
    """A nest of dictionaries and lists in which whole tensors, in the processor's memory, stand for shares.

    Args:
        value: The same nest in every process.
        kept: Whether this process wants them; others get None.
    """
    match value:
        case DTensor():
            full = value.full_tensor()
            return full.cpu() if kept else None
        case dict():
            return {key: gathered(item, kept=kept) for key, item in value.items()}
        case list() | tuple():
            return [gathered(item, kept=kept) for item in value]
        case _:
            return value


def share_of(full: Tensor, own: Tensor) -> Tensor:
    """A tensor divided up as ``own`` is, if it is; no process is asked."""
    if not isinstance(own, DTensor):
        return full
    return distribute_tensor(full.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


@torch.no_grad()
def put(own: Tensor, full: Tensor) -> None:
    """Give a tensor the values of a whole one; it may be divided up."""
    own.copy_(share_of(full.detach(), own))


def shared_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state as it is to be loaded where parameters are divided up."""
    state = reordered(optimizer, state)
    parameters = [own for group in optimizer.param_groups for own in group["params"]]
    shares = {
        number: {
            key: share_of(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in remembered.items()
        }
        for number, remembered in state["state"].items()
    }
    return {**state, "state": shares}
