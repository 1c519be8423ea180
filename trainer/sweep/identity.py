# SPDX-License-Identifier: Apache-2.0
"""What a sweep is: the values that decide its numbers, as ``sweep.json`` has them, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.slicing.spec import SliceSpec
from trainer.evaluation.statistics import StatisticsConfig
from trainer.evaluation.task import Task
from trainer.identity import ABSENT, changes_of, flatten


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be the same when a sweep goes on. Sub-models are no part of it: there may be more of them later.

    Args:
        model: Fingerprint of the parent's weights and config, and of an adapter on it.
        dtype: What is computed in, as in ``float32``.
        reference: The sub-model that others are compared with.
        statistics: How items are drawn anew.
        tasks: What is measured.
        settings: All else that decides numbers, such as the batch size, as JSON values under the keys of the config.
        surroundings: What may change, though numbers are rounded otherwise then: versions, the device.
    """

    model: str
    dtype: str
    reference: SliceSpec | None
    statistics: StatisticsConfig
    tasks: Sequence[Task]
    settings: Mapping[str, Any] = field(default_factory=dict)
    surroundings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measuring(self) -> str:
        """A hash of what decides what is found of an item, beside the model and the item."""
        decides = [self.settings, self.dtype, self.reference and parts_of(self.reference)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()

    def record(self, specs: Sequence[SliceSpec]) -> dict[str, Any]:
        """The content of ``sweep.json``."""
        compared = {
            **self.settings,
            "model": self.model,
            "dtype": self.dtype,
            "reference": self.reference and [self.reference.name, *parts_of(self.reference)],
            "statistics": {
                "seed": self.statistics.seed, "num_resamples": self.statistics.num_resamples,
                "confidence": self.statistics.confidence,
            },
            "tasks": {
                task.name: {
                    "fingerprint": task.fingerprint, "metrics": [metric.name for metric in task.metrics],
                    "items": len(task.items), "batches": [len(batch) for batch in task.batches],
                }
                for task in self.tasks
            },
        }  # fmt: skip
        record = {
            "sweep": compared, "specs": {spec.name: parts_of(spec) for spec in specs},
            "surroundings": dict(self.surroundings),
        }  # fmt: skip
        return json.loads(json.dumps(record, default=str))


def parts_of(spec: SliceSpec) -> list[list[int]]:
    """Kept layers and their widths."""
    return [list(spec.kept_layers), list(spec.ffn_widths)]


def read_record(path: Path) -> dict[str, Any]:
    """The content of a ``sweep.json``, or CheckpointError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(record[key], dict) for key in ("sweep", "specs", "surroundings")):
            raise TypeError
    except FileNotFoundError:
        raise CheckpointError(
            f"'{path.parent}' has results of a sweep but no {path.name}; sweep into another directory"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not what a sweep writes ({error!r}); sweep into another directory"
        ) from None  # fmt: skip
    return record


def refuse_another(*, stored: Mapping[str, Any], now: Mapping[str, Any], path: Path, what: str = "sweep") -> None:
    """Raise CheckpointError naming every key in which two sweeps, or two of ``what``, differ, and both values.

    One may have sub-models that the other has not; a name that both have must mean the same.
    """
    before, after = dict(flatten(stored["sweep"])), dict(flatten(now["sweep"]))
    common = stored["specs"].keys() & now["specs"].keys()
    before |= {f"specs.{name}": stored["specs"][name] for name in common}
    after |= {f"specs.{name}": now["specs"][name] for name in common}
    differing = [
        f"  {key}: was {before.get(key, ABSENT)!r}, now {after.get(key, ABSENT)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]
    if differing:
        raise CheckpointError(
            "\n".join(
                [f"{path}: this is another {what}; undo these changes, or {what} into another directory", *differing]
            )
        )


def together(stored: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What ``sweep.json`` is to hold from now on: the sub-models of both; and what has changed around it, in words."""
    merged = {**now, "specs": {**stored["specs"], **now["specs"]}}
    return merged, changes_of(stored["surroundings"], now["surroundings"])
