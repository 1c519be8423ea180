# SPDX-License-Identifier: Apache-2.0
"""What the words of ``slices=`` and ``tasks=`` mean: names of files of conf/, files of one's own, whole tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from model.config import TextConfig
from model.errors import ConfigError, SliceError
from model.slicing.official import official
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.table import read_slices, written_in
from recipes.schema import choices
from trainer.evaluation.task_config import TaskConfig
from trainer.search.space import Space, SpaceConfig

OFFICIAL, GRID, HARNESS = "official", "grid", "lm_eval:"
MAX_GRID = 10_000  # sub-models; a larger grid is to be searched, not measured
Config = TypeVar("Config", SliceConfig, TaskConfig)


def words_of(key: str, written: Any) -> list[str]:
    """What a key that takes a word or a list of words holds.

    Raises:
        ConfigError: It holds something else, or nothing.
    """
    words: list[Any] = [written] if isinstance(written, str) else written if isinstance(written, list) else []
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ConfigError(f"{key} is {written!r}; give a word or a list of words, as in {key}=a or {key}=[a,b]")
    return words


def find_slices(written: Any, space: SpaceConfig, config: TextConfig) -> list[SliceSpec]:
    """The sub-models that ``slices=`` means, in order. What is named twice is there once.

    A sub-model that has two names, as ``full`` is also the main model of ``official``, has a row under each: people
    look for the names they wrote. It is measured once for both.

    Each word is ``official`` (all of Google's table, or what is like them in a model of other layers), ``grid`` (all
    of ``space``), the name of a file of conf/slice, a YAML file of one slice, or a CSV file of many.

    Raises:
        ConfigError: A word means nothing, two sub-models have one name, or the grid is too large.
        SliceError: One does not fit the model.
    """
    found: dict[str, SliceSpec] = {}
    for word in words_of("slices", written):
        for one in slices_of(word, space, config):
            if found.setdefault(one.name, one) != one:
                raise ConfigError(
                    f"slices: '{word}' has a sub-model '{one.name}' that is another than the one before it of that"
                    " name; results are told apart by names, so rename one"
                )
    return list(found.values())


def slices_of(word: str, space: SpaceConfig, config: TextConfig) -> Iterator[SliceSpec]:
    """The sub-models that one word means."""
    if word == OFFICIAL:
        yield from (row.spec for row in official(config))
    elif word == GRID:
        whole = Space.of(space, config)
        if whole.size > MAX_GRID:
            raise ConfigError(
                f"slices: the grid has {whole.size:,} sub-models, and {MAX_GRID:,} at most are measured one by one;"
                " make it smaller by space.block or space.widths, or let 'matslice search' find the best ones"
            )
        yield from map(whole.spec, whole)
    elif word.lower().endswith(".csv"):
        yield from (SliceSpec.resolve(written, config) for written in read_slices(word).values())
    else:
        try:
            yield SliceSpec.resolve(written_in(read_named("slice", word, SliceConfig)), config)
        except SliceError as error:
            raise SliceError(
                f"{error} (slices=official has what is like Google's sub-models in a model of other layers)"
            ) from None


def find_tasks(written: Any) -> tuple[list[TaskConfig], list[str]]:
    """What ``tasks=`` means: tasks of our own, and the names of those of lm-evaluation-harness.

    Each word is the name of a file of conf/task, a YAML file, or ``lm_eval:`` with the name of a task.

    Raises:
        ConfigError: A word means nothing, or a file does not say what a task is.
    """
    words = words_of("tasks", written)
    theirs = [word.removeprefix(HARNESS) for word in words if word.startswith(HARNESS)]
    if not all(theirs):
        raise ConfigError(f"tasks: '{HARNESS}' is without a name; write it as in {HARNESS}arc_easy")
    return [read_named("task", word, TaskConfig) for word in words if not word.startswith(HARNESS)], theirs


def read_named(group: str, word: str, schema: type[Config]) -> Config:
    """The config in a file of conf/``group``, or in a YAML file of one's own.

    Raises:
        ConfigError: There is no such file, or it does not hold what it is to hold.
    """
    known = choices(group)
    if word in known:
        where = f"conf/{group}/{word}.yaml"
        text = (resources.files("conf") / group / f"{word}.yaml").read_text(encoding="utf-8")
    elif Path(word).suffix in (".yaml", ".yml"):
        where = word
        try:
            text = Path(word).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{group}s: '{word}' cannot be read ({error}); relative names start at {Path.cwd()}"
            ) from None
    else:
        more = f", or {HARNESS}NAME" if group == "task" else ", official, grid, or a CSV file of a table"
        raise ConfigError(
            f"{group}s: there is no '{word}'; write one of {', '.join(sorted(known))}, or a YAML file{more}"
        )
    try:
        values = OmegaConf.create(text)
        OmegaConf.resolve(values)
        return as_config(values, schema)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{where}: {wrong_with(error, schema)}; it must hold what conf/{group}/*.yaml hold") from None


def wrong_with(error: Exception, schema: type[Config]) -> str:
    """What is the matter with a file, in a line: the key, and what is near it or allowed there."""
    told, key = str(error).splitlines()[0], getattr(error, "full_key", None)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1} is no YAML ({error.problem})"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} must be given"
    if isinstance(error, ConfigKeyError) and key:
        known = [one.name for one in fields(schema)]
        near = difflib.get_close_matches(str(error.key), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
        return f"there is no key '{key}'{hint if '.' not in key else ''}"
    return f"{key}: {told}" if key else told


def as_config(values: Any, schema: type[Config]) -> Config:
    """The values as what they are to be, checked."""
    if not OmegaConf.is_dict(values):
        raise OmegaConfBaseException("no keys with values")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(config, schema)
    return config
