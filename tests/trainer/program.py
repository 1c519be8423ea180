# SPDX-License-Identifier: Apache-2.0
"""A run as a process of its own, for tests that launch several of them or kill one.

python -m tests.trainer.program '{"output": "…", "policy": "sandwich", "kill_at": 3, …}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from model.adapter.lora import AdapterConfig
from model.freezing import Part
from tests.trainer.parts import Hook, elastic, media_trainer, tiny_trainer, trainer_config
from trainer.elastic import ElasticPolicy
from trainer.loop import Trainer
from trainer.weights import Weights


def main(wishes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    output = Path(wishes.pop("output"))
    policy, names = ElasticPolicy(wishes.pop("policy", "off")), wishes.pop("names", ("full", "narrow", "short"))
    adapter = AdapterConfig(rank=4, alpha=8, dropout=0.1) if wishes.pop("adapter", False) else None
    if wishes.pop("media", False):
        frozen = [Part(name) for name in wishes.pop("frozen", [])]
        media_trainer(trainer_config(output, **wishes), frozen=frozen, elastic_config=elastic(policy, names)).fit()
        return
    kill_at, kill_in_save = wishes.pop("kill_at", None), wishes.pop("kill_in_save", False)
    trainer = tiny_trainer(
        trainer_config(output, **wishes),
        elastic_config=elastic(policy, names),
        adapter=adapter,
        num_validation=5,
        more_sinks=[Hook(kill_at, die)] if kill_at and not kill_in_save else [],
    )
    if kill_in_save:
        die_in_save(trainer, kill_at)
    trainer.fit()
    trainer.accelerator.end_training()


def die_in_save(trainer: Trainer, step: int) -> None:
    """Leave the checkpoint of ``step`` half-written."""
    save: Callable[[Path], None] = trainer.weights.save

    def save_half(directory: Path) -> None:
        save(directory)
        if f"{step:06d}" in str(directory):
            die()

    trainer.weights = Weights(save=save_half, load=trainer.weights.load)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
