# SPDX-License-Identifier: Apache-2.0
"""Words of a command line as Hydra takes them: places, prompts and names to the letter, all else in its grammar."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from model.errors import ConfigError
from recipes.schema import kinds_of

MISSING = "???"  # how OmegaConf writes that a value must be given
FREE_TEXT = ("prompt", "system", "lm_eval.system_instruction")  # keys whose value is meant to the letter
IN_A_SLICE = ("row", "csv")  # keys within a slice whose value is a name or a file
FILES = ("image", "audio")  # keys whose value is a file name, or a list of them
# Texts that may be places, beside all values of type Path: of one, and of a list of them
PLACE = ("checkpoint",)
PLACES = ("files", "report_files", "tasks", "slices", "data.train", "data.validation", "vocabulary.corpus")
# One of a list: in quotes as Hydra has them, or as it is up to a comma, unless that is written \,
IN_A_LIST = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:\\,|[^,])*?)\s*(?:,|\Z)""", re.DOTALL)


def is_override(word: str) -> bool:
    """Whether a word of the command line is a value, and no flag or flag's argument."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def quote_free_text(argument: str, schema: type | None = None, *, swept: bool = False) -> str:
    """Spare the user Hydra's grammar where any character may be part of the value.

    Args:
        argument: A word of the command line.
        schema: What the recipe can be told, which says where places are; None: of them nothing is known.
        swept: Whether a value may be several, one for each job.
    """
    key, equals, value = argument.partition("=")
    if key.partition(".")[0] in ("slice", "sizes") and key.rpartition(".")[2] in IN_A_SLICE and value[:1] not in "'\"":
        return f"{key}={quote(value)}" if equals and value not in ("", "null") else argument
    if schema is not None and (is_list := places(schema).get(key.lstrip("+"))) is not None:
        # Where no list may be meant, commas and brackets are part of a name.
        is_several = (swept or is_list) and is_sweep(argument)
        return argument if is_several or not equals else f"{key}={quote_place(value, is_list=is_list)}"
    if key not in (*FREE_TEXT, *FILES) or not equals or value == "null":
        return argument
    if key in FILES and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{','.join(quoted_items(value[1:-1]))}]"
    return f"{key}={quote(value)}"


def places(schema: type, *, within: str = "") -> dict[str, bool]:
    """The keys of a recipe whose value is the place of a file or a directory, and whether it may be a list of them."""
    found: dict[str, bool] = {}
    for known, hint in get_type_hints(schema).items():
        key, kinds = f"{within}{known}", list(kinds_of(hint))
        if Path in kinds or key in (*PLACE, *PLACES):
            found[key] = key in PLACES or is_list_in(hint)
        if not within and get_origin(hint) is not dict:
            for part in (kind for kind in kinds if dataclasses.is_dataclass(kind)):
                found |= places(part, within=f"{key}.")
    return found


def is_list_in(hint: Any) -> bool:
    """Whether a type is that of lists, or of lists or none."""
    return get_origin(hint) is list or any(is_list_in(argument) for argument in get_args(hint))


def quote_place(value: str, *, is_list: bool) -> str:
    """A place as Hydra's command line takes it: to the letter, but for references to other values (``${…}``)."""
    if is_list and value.startswith("[") and value.endswith("]"):
        return f"[{','.join(quoted_items(value[1:-1], references=True))}]"
    is_quoted = value[:1] in ("'", '"') and value[-1:] == value[:1] != value
    return value if is_quoted or value in ("", "null", MISSING) else quote(at_home(value), references=True)


def at_home(place: str) -> str:
    """A place in the user's home by its full name: not every shell says it where it stands behind ``=``."""
    return os.path.expanduser(place) if place.startswith("~/") else place


def is_sweep(argument: str) -> bool:
    """Whether Hydra takes a value for several."""
    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:  # as it stands it is no value at all
        return False


def quoted_items(written: str, *, references: bool = False) -> Iterator[str]:
    """What stands between commas, each as Hydra's command line takes it; as ``quote``."""
    at = 0
    while at < len(written):
        found = IN_A_LIST.match(written, at)
        assert found is not None, "anything matches up to a comma or the end"
        item, at = found[1], found.end()
        if item[:1] in ("'", '"') and item[-1:] == item[:1] != item:
            yield item
        else:
            item = item.replace("\\,", ",")
            yield quote(at_home(item), references=True) if references else quote(item)


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Raise ConfigError if files are given twice, of which Hydra would take the last ones without a word."""
    for key in FILES:
        given = [word.removeprefix(f"{key}=") for word in arguments if word.startswith(f"{key}=")]
        if len(given) > 1:
            items = [value[1:-1] if value.startswith("[") and value.endswith("]") else value for value in given]
            raise ConfigError(f"{key} is given {len(given)} times; give several files as {key}=[{','.join(items)}]")


def quote(value: str, *, references: bool = False) -> str:
    """A text as Hydra's command line takes it, to the letter; or with ``references`` to other values left in it."""
    # In Hydra's quotes a backslash counts only before a quote or the end; ${ would be a reference.
    if not references:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'"{value}"'
