# SPDX-License-Identifier: Apache-2.0
"""What the factors of an adapter begin as, and how a beginning that is a part of the weight is saved.

PiSSA and OLoRA begin as the largest part of the weight and take it away of the weight, in PEFT by changing the base.
Here the base is left alone and the same part is taken away of the outputs. In a file both are one ordinary adapter
of twice the rank, ``B @ A - B0 @ A0``: it fits the published base exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.adapter.config import ORTHOGONAL, AdapterConfig
from model.adapter.layers import NarrowLoraLinear
from model.errors import ConfigError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # of the names that PEFT saves factors under


@torch.no_grad()
def begin(adapted: nn.Module, config: AdapterConfig, adapter: str) -> None:
    """Set the factors to what they are to begin as, and the magnitudes of DoRA to what changes nothing."""
    for _, layer in lora_layers(adapted):
        if config.needs_matrices:
            with base_in_float32(layer) as weight:
                if weight.device.type == "meta":
                    keep_start(layer, adapter, config)  # shapes alone are asked for
                elif config.init == ORTHOGONAL:
                    layer.orthogonal_init(adapter)
                else:
                    layer.olora_init(adapter) if config.init == "olora" else layer.pissa_init(adapter, config.init)
                    keep_start(layer, adapter, config)
        if adapter in layer.lora_magnitude_vector:
            # PEFT rounds them to the base's dtype, so that in bfloat16 a fresh adapter would change every output.
            magnitudes = layer.lora_magnitude_vector[adapter]
            weight, update = layer.get_base_layer().weight.float(), layer.get_delta_weight(adapter)
            magnitudes.weight.copy_(magnitudes.get_weight_norm(weight, update, 1))


def lora_layers(adapted: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that have factors, with their names."""
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_magnitude_vector"):
            yield name, module


def check_starts(model: nn.Module, targets: Iterable[str], config: AdapterConfig) -> None:
    """Raise ConfigError for a module that cannot begin as asked for: no matrix, or one of a lower rank."""
    if not config.needs_matrices:
        return
    for name in targets:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"adapter.init is '{config.init}', which is made for linear maps, but '{name}' is a"
                f" {type(module).__name__}; leave it out of the targets, or choose default or gaussian"
            )
        if config.takes_away and config.rank_of(name) > (most := min(module.weight.shape)):
            raise ConfigError(
                f"adapter.init is '{config.init}', which takes {config.rank_of(name)} parts of the weight of '{name}',"
                f" but it has only {most}; give adapter.rank={most} or less, or a rank_pattern for this module"
            )


@contextmanager
def base_in_float32(layer: Any) -> Iterator[Tensor]:
    """Meanwhile the base weight is a float32 copy, which may be changed; afterwards it is what it was."""
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    own = weight.data
    weight.data = own.to(torch.float32, copy=True)
    try:
        yield weight
    finally:
        weight.data = own


def keep_start(layer: NarrowLoraLinear, adapter: str, config: AdapterConfig) -> None:
    """Remember what the factors begin as, if that is to be taken away."""
    if config.takes_away:
        layer.start_down = cast(nn.Linear, layer.lora_A[adapter]).weight.detach().clone()
        layer.start_up = cast(nn.Linear, layer.lora_B[adapter]).weight.detach().clone()


def starts(adapted: nn.Module) -> dict[str, NarrowLoraLinear]:
    """The layers of which a start is taken away, by the names that their factors are saved under."""
    layers = ((name, layer) for name, layer in lora_layers(adapted) if isinstance(layer, NarrowLoraLinear))
    return {name: layer for name, layer in layers if layer.start_down is not None}


def with_starts(adapted: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter as they are saved: what is taken away stands behind each factor."""
    saved = dict(tensors)
    for name, layer in starts(adapted).items():
        assert layer.start_down is not None
        assert layer.start_up is not None
        saved[name + DOWN] = torch.cat([saved[name + DOWN], layer.start_down])
        saved[name + UP] = torch.cat([saved[name + UP], -layer.start_up], dim=1)
    return saved


@torch.no_grad()
def take_starts(adapted: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter without its starts, which go to where they are taken away; undoes ``with_starts``."""
    tensors = dict(saved)
    for name, layer in starts(adapted).items():
        assert layer.start_down is not None
        assert layer.start_up is not None
        rank = len(layer.start_down)
        layer.start_down.copy_(saved[name + DOWN][rank:])
        layer.start_up.copy_(-saved[name + UP][:, rank:])
        tensors[name + DOWN], tensors[name + UP] = saved[name + DOWN][:rank], saved[name + UP][:, :rank]
    return tensors


def double(lora: Any) -> None:
    """Make PEFT's config that of an adapter saved with its start: every rank twice as large, each strength the same."""
    growth = math.sqrt(2) if lora.use_rslora else 2  # of alpha, which is divided by the rank or by its root
    lora.r, lora.lora_alpha = 2 * lora.r, growth * lora.lora_alpha
    lora.rank_pattern = {name: 2 * rank for name, rank in lora.rank_pattern.items()}
    lora.alpha_pattern = {name: growth * alpha for name, alpha in lora.alpha_pattern.items()}
