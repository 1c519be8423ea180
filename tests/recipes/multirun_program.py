# SPDX-License-Identifier: Apache-2.0
"""A recipe whose jobs do what their number asks for: ``python -m tests.recipes.multirun_program context=1,2 …``.

Its number is ``context``: 1 ends well, 2 finds a mistake of its user's, 3 one of ours, 4 is killed, 5 takes forever,
6 ends well after a while, for which 4 waits until it has begun.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from model.errors import ConfigError
from recipes.plan import PlanRecipe
from recipes.program import start

WELL, REFUSED, BROKEN, KILLED, ENDLESS, SLOW = 1, 2, 3, 4, 5, 6


def run(recipe: PlanRecipe) -> float | None:
    """Do what is asked for; every job leaves the name of its process."""
    Path(f"pid_{recipe.context}").write_text(str(os.getpid()), encoding="utf-8")
    match recipe.context:
        case 2:
            raise ConfigError("this is not to be had")
        case 3:
            raise RuntimeError("this is broken")
        case 4:
            until = time.monotonic() + 60
            while not Path(f"pid_{SLOW}").exists() and time.monotonic() < until:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        case 5:
            time.sleep(600)
        case 6:
            time.sleep(10)
    return recipe.max_effective


if __name__ == "__main__":
    sys.exit(start("plan", PlanRecipe, run, sys.argv[1:], gives="max_effective as it is"))
