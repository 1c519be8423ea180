# SPDX-License-Identifier: Apache-2.0
"""What a run is: the values that decide its numbers, as ``run.json`` has them, and whether two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from model.errors import CheckpointError
from trainer.config import FREE_TO_CHANGE, ROUNDING, TrainerConfig
from trainer.runtime import is_sharded, zero_stage
from trainer.state import TrainState

ABSENT = "nothing"  # said of a key that one of two identities has not


def as_stored(
    identity: Mapping[str, Any], told: Mapping[str, str] | None, lineage: Mapping[str, Any] | None,
    surroundings: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The content of ``run.json``: what is compared, what is said beside it, where it runs, what a fork came from."""
    stored = {
        "run": json.loads(json.dumps(identity, default=str)), "told": dict(told or {}),
        "surroundings": dict(surroundings),
    }  # fmt: skip
    return stored if lineage is None else {**stored, "lineage": dict(lineage)}


def read_identity(path: Path) -> dict[str, Any]:
    """What the run in a directory is, or CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); choose another trainer.output") from None


def refuse_another(*, stored: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming every key in which two identities differ.

    A key that is null now and is not there in the other is no difference: runs are older than some keys.
    """
    before, after = dict(flatten(stored.get("run", {}))), dict(flatten(now["run"]))
    for key in FREE_TO_CHANGE:  # it was not, once
        before.pop(f"trainer.{key}", None)
    differing = [
        f"  {key}: was {in_words(key, before, stored)}, now {in_words(key, after, now)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise CheckpointError(
            "\n".join(
                [f"{path}: this is another run; undo these changes, or choose another trainer.output", *differing]
            )
        )


def surroundings_of(config: TrainerConfig, accelerator: Accelerator) -> dict[str, Any]:
    """What may change when a run goes on, but changes how its numbers are rounded: settings, and where it runs."""
    on_cuda = accelerator.device.type == "cuda"
    return {
        **{f"trainer.{key}": json.loads(json.dumps(getattr(config, key))) for key in ROUNDING},
        "device": torch.cuda.get_device_name(accelerator.device) if on_cuda else accelerator.device.type,
        "threads": None if on_cuda else torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "divided up": is_sharded(),
        "DeepSpeed's ZeRO stage": zero_stage(),
        "torch": torch.__version__,
    }


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words; a key that one of them has not is of another version."""
    return [f"{key} {before[key]} → {now[key]}" for key in now if key in before and before[key] != now[key]]


def in_words(key: str, values: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A value of an identity, and what is told of it."""
    told = identity.get("told", {}).get(key)
    return f"{values.get(key, ABSENT)!r}" + (f" ({told})" if told else "")


def refuse_other_rows(state: TrainState, config: TrainerConfig, num_processes: int) -> None:
    """Raise CheckpointError if a step would not take as many rows as each step of the run before did."""
    if state.step == 0:
        return
    before, at_once = state.position // state.step, num_processes * config.batch_size
    if at_once * config.gradient_accumulation == before:
        return
    remedy = (
        f"set trainer.gradient_accumulation={before // at_once}"
        if before % at_once == 0
        else f"no trainer.gradient_accumulation gives {before} with {num_processes} processes, take another number of"
        f" them (there were {state.num_processes})"
    )
    raise CheckpointError(
        f"'{config.output}': a step of this run takes {before} rows, now it would take"
        f" {at_once * config.gradient_accumulation} ({num_processes} processes × batch_size {config.batch_size} ×"
        f" gradient_accumulation {config.gradient_accumulation}); {remedy}"
    )


def flatten(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries under dotted keys; a list is a leaf."""
    if not isinstance(nested, dict) or not nested:
        yield prefix, nested
        return
    for key, value in nested.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else key)
