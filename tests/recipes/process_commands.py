# SPDX-License-Identifier: Apache-2.0
"""Several commands of matslice, one after the other, in each of several processes: joining them takes longest.

accelerate-launch … -m tests.recipes.process_commands DIRECTORY '[["train", …], …]'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from recipes.cli import main

STATUS_FILE = "status_{}.json"  # by the process's number: the exit statuses


def run(directory: Path, commands: list[list[str]]) -> None:
    torch.set_num_threads(1)
    statuses = [main(words) for words in commands]
    (directory / STATUS_FILE.format(os.environ["RANK"])).write_text(json.dumps(statuses), encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
