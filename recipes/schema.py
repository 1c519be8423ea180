# SPDX-License-Identifier: Apache-2.0
"""What a recipe can be told, for Hydra and for its user: the dataclass of the recipe, made of those of its parts.

Registered with Hydra, it is what config files and command lines are held against: a key that is not in it, or
a value of another type, is refused before anything is read. What is said beside its fields is the recipe's help.

Each recipe's dataclass is in the module of the recipe. This one is for all, and imports no recipe, nor torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from importlib import resources
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore

from recipes.cli import spoken

COMMENT = re.compile(r"^    (\w+): [^#\n]*#\s*(.+)$", re.MULTILINE)  # beside a field

HELP = """\
{about}

Values, as key=value after the command (matslice {name} a.b=1); ??? must be given:

$CONFIG
What they mean, and which words they can be:

{notes}

Files that set many values at once, as group=file; conf/ holds them, with comments:

{groups}

Also: --cfg job shows the values without running, --multirun runs every combination of a=1,2 b=3,4,
--config-dir DIR adds your own files to conf/. HYDRA_FULL_ERROR=1 shows where in the code an error arose.
"""


def register_schema(name: str, schema: type) -> None:
    """Tell Hydra the type of the recipe ``name``, a dataclass, and its help."""
    store = ConfigStore.instance()
    store.store(name=f"{name}_schema", node=schema)
    about = "\n".join(line.removeprefix("    ") for line in (schema.__doc__ or "").strip().splitlines())
    groups = [(known.name, choices(known.name)) for known in dataclasses.fields(schema)]
    if name == "train":
        groups.append(("experiment", choices("experiment")))
    files = "\n".join(f"{group}: {', '.join(options)}" for group, options in groups if options)
    told = "\n".join(notes(schema)).replace("$", "$$")  # a dollar begins what Hydra puts in
    template = HELP.format(about=about.replace("``", "'"), name=spoken(name), notes=told, groups=files or "none here")
    store.store(group="hydra/help", name=name, node={"app_name": f"matslice {spoken(name)}", "template": template})


def notes(schema: type, *, within: str = "") -> Iterator[str]:
    """What is said beside the fields of a schema and of its parts, and the words that a value is one of."""
    comments, hints = dict(COMMENT.findall(inspect.getsource(schema))), get_type_hints(schema)
    for known in dataclasses.fields(schema):
        kinds = list(kinds_of(hints[known.name]))
        words = [word.value for kind in kinds if issubclass(kind, Enum) for word in kind]
        told = [comments[known.name]] if known.name in comments else []
        if words and not all(word in "".join(told) for word in words):
            several = "list[" in str(hints[known.name])
            told.append(f"{'some' if several else 'one'} of {', '.join(words)}")
        if told:
            yield f"{within}{known.name}: {'; '.join(told)}"
        if not within and get_origin(hints[known.name]) is not dict:
            for part in (kind for kind in kinds if dataclasses.is_dataclass(kind)):
                yield from notes(part, within=f"{known.name}.")


def kinds_of(hint: Any) -> Iterator[type]:
    """The classes in a type, as in a list of them or none."""
    if arguments := get_args(hint):
        for argument in arguments:
            yield from kinds_of(argument)
    elif isinstance(hint, type):
        yield hint


def choices(group: str) -> list[str]:
    """The files of a config group, by name; of ``""`` the recipes."""
    folder = resources.files("conf") / group if group else resources.files("conf")
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
