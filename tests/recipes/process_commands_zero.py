# SPDX-License-Identifier: Apache-2.0
"""``tests.recipes.process_commands`` where DeepSpeed divides something up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.recipes.process_commands import run
from tests.trainer.zero_on_cpu import compile_nothing

if __name__ == "__main__":
    compile_nothing()
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
