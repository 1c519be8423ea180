# SPDX-License-Identifier: Apache-2.0
"""Whether runs draw a picture of their losses, which takes longer than all that most of the tests are about."""

from __future__ import annotations

import sys
from typing import Any


def draw_nothing(*_: Any) -> None:
    """What runs do in tests that do not ask for ``pictured``."""


def draw(*, wanted: bool) -> None:
    """Let all that ends a run draw, or draw nothing."""
    if (results := sys.modules.get("trainer.results")) is not None:
        curve = sys.modules["trainer.curve"]
        vars(results)["draw_loss_curve"] = curve.draw_loss_curve if wanted else draw_nothing
