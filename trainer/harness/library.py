# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness itself: here alone it is imported, and only when somebody asks for it.

It may be absent, and takes seconds to import, so everything of it is named by text.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.errors import ConfigError, InputError
from trainer.harness.model import HarnessModel

LIBRARY, PACKAGE, OLDEST = "lm_eval", "lm-eval", (0, 4, 13)
NAME = "matslice"  # of our model, there
SEEDS = {"python": 0, "others": 1234}  # as the harness's own command sets them
Open = Callable[[Mapping[str, Any]], HarnessModel]


def check_installed() -> None:
    """Raise ConfigError where the harness is absent or too old."""
    remedy = "install it (pip install 'matslice[eval]', or pip install 'lm-eval>=0.4.13')"
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(f"lm_eval: lm-evaluation-harness is not installed; {remedy}")
    found = importlib.metadata.version(PACKAGE)
    if tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < OLDEST:
        raise ConfigError(f"lm_eval: lm-evaluation-harness {found} is installed, 0.4.13 or later is needed; {remedy}")


@dataclass(frozen=True)
class Opener:
    """What the harness calls to open its model ``matslice``: it asks a class for a model, or anything like one."""

    open: Open

    def create_from_arg_obj(
        self, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> HarnessModel:
        """The model of ``--model_args``, and of ``--batch_size`` and ``--device`` beside it."""
        more = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return self.open({**more, **arg_dict})

    def create_from_arg_string(
        self, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> HarnessModel:
        """The same of ``key=value,key=value``, in which a list may stand in brackets."""
        read = importlib.import_module("lm_eval._cli.utils").key_val_to_dict
        return self.create_from_arg_obj(read(arg_string), additional_config)


def register(open_model: Open) -> None:
    """Make ``matslice`` a model of the harness in this process, which has no way to find it by itself.

    Raises:
        ConfigError: The harness is absent or too old.
    """
    check_installed()
    importlib.import_module("lm_eval.models")  # fills the registry, which is filled only while it is empty
    registry = importlib.import_module("lm_eval.api.registry").model_registry
    importlib.import_module("lm_eval.api.model").LM.register(HarnessModel)
    if NAME not in registry:
        registry.register(NAME, target=Opener(open_model))


def run_command(arguments: Sequence[str]) -> None:
    """Run the harness's own command ``lm_eval``."""
    main = importlib.import_module("lm_eval.__main__").cli_evaluate
    argv = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        main()
    finally:
        sys.argv = argv


@contextmanager
def seeded_alike() -> Iterator[None]:
    """The random numbers that the harness's own command begins with; those of others go on as if nothing were."""
    kept, others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["others"])
        torch.manual_seed(SEEDS["others"])
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(others)


def load_tasks(name: str, include: Sequence[Path]) -> list[Any]:
    """The tasks of a name: one, or those of a group or a tag, or that of a YAML file.

    Args:
        name: As the harness has it.
        include: Directories of tasks of one's own.

    Raises:
        ConfigError: The harness is absent or too old, or has no such task.
        InputError: The task's data cannot be had.
    """
    check_installed()
    for directory in include:
        if not directory.is_dir():
            raise ConfigError(f"lm_eval: include_path is '{directory}', which is no directory")
    manager = manager_of(tuple(map(str, include)))
    is_file = name.endswith((".yaml", ".yml"))
    if (is_file and not Path(name).is_file()) or (not is_file and name not in manager.all_tasks):
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; 'lm_eval ls tasks' lists them"
        raise ConfigError(
            f"lm_eval: lm-evaluation-harness has no task '{name}', nor has include_path{hint}"
            if not is_file
            else f"lm_eval: there is no file '{name}' (relative names start at {Path.cwd()})"
        )
    try:
        return list(manager.load([name])["tasks"].values())
    except Exception as error:  # data sets are read here, and scripts of tasks run: anything can come up
        raise InputError(
            f"lm_eval:{name}: cannot be made ready ({type(error).__name__}: {first_line(error)}); its data is read"
            " from the hub or from files, so check the network, the name and what the task needs"
        ) from error


@functools.cache
def manager_of(include: tuple[str, ...]) -> Any:
    """What knows the tasks: thousands of files are read for it, which takes ten seconds."""
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=list(include) or None)


def document_hash(document: Any) -> str:
    """A hash of a document, as the harness makes it for its own records."""
    utils = importlib.import_module("lm_eval.utils")
    text = json.dumps(document, indent=2, default=utils.handle_non_serializable, ensure_ascii=False)
    return utils.hash_string(text)


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "without a word"
