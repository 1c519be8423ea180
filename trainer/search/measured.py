# SPDX-License-Identifier: Apache-2.0
"""Losses of sub-models on a split of rows, kept in a file, so that a search that was stopped measures none twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from model.slicing.spec import Shape, SliceSpec
from trainer.evaluation.engine import Engine
from trainer.evaluation.held_out_task import HeldOutTask


class Measured:
    """Measures a split, each sub-model once.

    Args:
        path: Of the file; that of several splits and models may be one.
        identity: Of the model and of what it computes in; lines of others are left alone.
        task: The split.
        engine: Measures.
        told: Is told, when something was measured, how many sub-models are known and the lowest of their losses.
    """

    def __init__(
        self, path: Path, identity: str, task: HeldOutTask, engine: Engine, told: Callable[[int, float], None]
    ) -> None:
        self.path, self.task, self.engine, self.told = path, task, engine, told
        self.of = f"{identity} {task.fingerprint}"
        self.known = dict(self.read())

    def read(self) -> list[tuple[Shape, float]]:
        """What is in the file of this model on this split."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
                if one["of"] == self.of:
                    found.append(((tuple(one["kept_layers"]), tuple(one["ffn_widths"])), float(one["loss"])))
            except (ValueError, KeyError, TypeError):
                continue  # what a killed process left of a line: it is measured again
        return found

    def __call__(self, specs: Sequence[SliceSpec]) -> list[float]:
        """The loss of each, in nats per supervised token.

        Raises:
            InputError: A medium cannot be decoded.
        """
        new = {spec.shape: spec for spec in specs if spec.shape not in self.known}
        if new:
            found = dict(zip(new, self.measure(list(new.values())), strict=True))
            lines = [
                json.dumps({"of": self.of, "kept_layers": layers, "ffn_widths": widths, "loss": loss})
                for (layers, widths), loss in found.items()
            ]
            with self.path.open("a", encoding="utf-8") as file:
                # Begins with a line's end: what a killed process left stays by itself.
                file.write("\n" + "\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.known |= found
            self.told(len(self.known), min(self.known.values()))
        return [self.known[spec.shape] for spec in specs]

    def measure(self, specs: Sequence[SliceSpec]) -> list[float]:
        """The loss of each, measured now."""
        sums, tokens = [0.0] * len(specs), 0
        for batch in self.task.batches:
            scores = self.engine.score([self.task.rows[index] for index in batch], specs)
            sums = [before + sum(row.loss_sum for row in rows) for before, rows in zip(sums, scores, strict=True)]
            tokens += sum(row.tokens for row in scores[0])
        return [one / tokens for one in sums]
