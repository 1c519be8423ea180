# SPDX-License-Identifier: Apache-2.0
"""A run that cannot be meant is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from tests.trainer.parts import trainer_config
from trainer.config import Precision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, r"trainer\.max_steps is 0; it must be at least 1"),
        ({"batch_size": -1}, r"trainer\.batch_size is -1"),
        ({"eval_every": 0}, r"trainer\.eval_every is 0"),
        ({"max_grad_norm": 0.0}, r"trainer\.max_grad_norm is 0\.0; it must be positive, or null"),
        ({"max_grad_norm": float("nan")}, r"trainer\.max_grad_norm is nan"),
        ({"seed": -1}, r"trainer\.seed is -1"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_config(Path("run"), **changes)


def test_there_is_no_float16() -> None:
    assert set(Precision.__members__) == {"fp32", "bf16"}


def test_a_resumed_run_may_log_more_often_but_not_take_other_steps() -> None:
    config = trainer_config(Path("run"))
    assert trainer_config(Path("elsewhere"), log_every=7, resume=True).identity == config.identity
    assert trainer_config(Path("run"), max_steps=5).identity != config.identity
