# SPDX-License-Identifier: Apache-2.0
"""What Hydra and OmegaConf object to, in the words of someone who wants to get on.

They know where a config went wrong; what they do not say is what would have been right there.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import traceback
from collections.abc import Collection, Iterable
from typing import Any, get_type_hints

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from safetensors import SafetensorError
from yaml import YAMLError

from model.errors import ConfigError, MatsliceError
from recipes.cli import spoken
from recipes.jobs import JOBLIB, SUBMITIT
from recipes.schema import choices

REFUSALS = (MatsliceError, HydraException, OmegaConfBaseException, YAMLError)  # all that a user can cause
FROM_DISK = (OSError, SafetensorError)  # a full disk, a path of the user's that cannot be written
OF_EXTRAS = ("hydra/launcher", "hydra/sweeper")
EXTRAS = (  # what names in these groups begin with, the extra that brings them, and what it does
    (SUBMITIT, "slurm", "submits jobs"), (JOBLIB, "joblib", "runs jobs side by side"),
    ("optuna", "optuna", "searches for values"),
)  # fmt: skip
KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
NOT_OF_KIND = re.compile(
    r"Value (?P<value>'.*') (of type '\w+' could not be converted to|is not a valid) (?P<kind>\w+)"
)
NOT_A_CHOICE = re.compile(r"Invalid value (?P<value>'.*'), expected one of \[(?P<choices>.*)\]")
NOT_A_GROUP = re.compile(r"Could not override '(?P<key>[^']*)'\. No match in the defaults list")
NOT_BY_THIS_SWEEPER = re.compile(r"does not support sweep type")
NOT_A_SLICE = re.compile(r"Invalid type assigned: dict is not a subclass of SliceConfig")
NOT_A_VALUE = re.compile(r"Invalid type assigned: \w+ is not a subclass of \w+\. value: (?P<value>.*)")
NOT_TEXT = re.compile(r"Cannot convert '(?P<kind>\w+)' to string")


def explain(error: Exception, *, recipe: str, schema: type) -> str:
    """Where, what was found, what is allowed, what to do; ``schema`` is the dataclass of the recipe."""
    match error:
        case MatsliceError():
            return str(error)
        case MissingConfigException():
            return explain_missing_file(error)
        case OverrideParseException():
            return (
                f"'{error.override}' is not understood ({error.message.splitlines()[0]}); write key=value, a list as"
                """ key=[1,2], and a text with other characters than letters and digits in quotes of both kinds, as in
 'key="a text"'""".replace("\n", "")
            )
        case HydraException() if isinstance(cause := error.__cause__ or error.__context__, MissingMandatoryValue):
            return explain_missing([cause.full_key or str(cause.key)], recipe=recipe)
        case HydraException() if isinstance(cause := error.__cause__ or error.__context__, OmegaConfBaseException):
            return explain_place(error) + explain_value(cause)
        case OmegaConfBaseException():
            return explain_value(error)
        case OSError():
            place = f"'{error.filename}': " if error.filename else ""
            return f"{place}{error.strerror or error}; it could not be read or written (HYDRA_FULL_ERROR=1 shows where)"
        case SafetensorError():
            return f"a weight file could not be read or written: {error}"
        case _ if NOT_BY_THIS_SWEEPER.search(str(error)):
            return "interval(…) and the like are for searches: add hydra/sweeper=optuna, or list values as in a=1,2"
        case _ if found := NOT_A_GROUP.match(str(error)):
            return unknown_key(found["key"], keys=[known.name for known in dataclasses.fields(schema)])
        case _:
            return str(error)


def explain_place(error: Exception) -> str:
    """The config file an error arose in, if it was in one."""
    found = re.match(r"In '([^']+)'", str(error))
    return f"{found[1]}.yaml: " if found else ""


def explain_missing_file(error: MissingConfigException) -> str:
    """A group has no such file."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = error.options or choices(group)  # Hydra also knows the files of --config-dir
    for kind, extra, what in EXTRAS:
        if group in OF_EXTRAS and name.startswith(kind) and not any(one.startswith(kind) for one in options):
            return f"{group}={name}: the extra that {what} is not installed; pip install 'matslice[{extra}]'"
    if not group:
        return f"there is no conf/{name}.yaml; recipes are {listed(choices(''))}"
    return (
        f"{group}={name}: there is no conf/{group}/{name}.yaml; allowed are {listed(options)}{guess(name, options)}"
        f" (a file of yours is found as DIR/{group}/{name}.yaml, given --config-dir DIR)"
    )


def explain_value(error: OmegaConfBaseException) -> str:
    """A key that is not there, or a value of another type than is expected there."""
    where = error.full_key or "config"
    first_line = (error.msg or str(error)).splitlines()[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(where, keys=keys_of(error))
    if isinstance(error, ValidationError):
        if found := NOT_A_CHOICE.match(first_line):
            options = found["choices"].split(", ")
            return f"{where} is {found['value']}; allowed are {listed(options)}{guess(found['value'], options)}"
        if found := NOT_OF_KIND.match(first_line):
            return f"{where} is {found['value']}; it must be {KINDS.get(found['kind'], found['kind'])}"
        if found := NOT_TEXT.match(first_line):
            return f"{where} is a {found['kind']}; it must be a text"
        if NOT_A_SLICE.match(first_line):
            return (
                f"sizes.{where}: a size is added from a file and then changed, as in"
                f" +slice@sizes.{where}=full sizes.{where}.name={where} sizes.{where}.ffn_widths=[…]"
            )
        if (found := NOT_A_VALUE.match(first_line)) and (own := keys_within(error)):
            return f"{where} is {found['value']}; it has values of its own, as in {where}.{own[0]}=…: {listed(own)}"
        if "is not a ListConfig, list or tuple" in first_line:
            return f"{where} is a single value; it must be a list, as in {where}=[…]"
    return f"{where}: {first_line}"


def unknown_key(where: str, *, keys: Collection[str]) -> str:
    """There is no such key; these there are."""
    parent, _, key = where.rpartition(".")
    place = f"'{parent}' has" if parent else "allowed are"
    return f"{where}: there is no such key; {place} {listed(keys)}{guess(key, keys)}"


def keys_of(error: OmegaConfBaseException) -> list[str]:
    """What is allowed where a key was not found."""
    if dataclasses.is_dataclass(error.object_type):
        return [known.name for known in dataclasses.fields(error.object_type)]
    parent: Any = error.parent_node
    return [str(key) for key in parent or ()] if isinstance(parent, DictConfig) else []


def keys_within(error: OmegaConfBaseException) -> list[str]:
    """What there is within a key that was given a single value."""
    if not dataclasses.is_dataclass(error.object_type):
        return []
    kind = get_type_hints(error.object_type).get(str(error.key))
    return [known.name for known in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def check_keys(cfg: DictConfig, *, parent: str = "") -> None:
    """Raise ConfigError for a key that no dataclass has: Hydra puts in what it is told to (``+a=1``)."""
    kind = OmegaConf.get_type(cfg)
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for key in map(str, cfg):
        if known and key not in known:
            raise ConfigError(unknown_key(parent + key, keys=known))
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        if isinstance(value := cfg[key], DictConfig):
            check_keys(value, parent=f"{parent}{key}.")


def explain_override(error: Exception) -> str | None:
    """What an override should have been that Hydra fails on without a word of its own; None if it was not that.

    A group that is null, and a value in a group of which no file is chosen. Hydra's error names neither; the
    override it stopped at stands in its frames.
    """
    frames = [frame.f_locals.get("override") for frame, _ in traceback.walk_tb(error.__traceback__)]
    override = next((found for found in reversed(frames) if isinstance(found, Override)), None)
    if override is None:
        return None
    group, _, key = override.key_or_group.partition(".")
    if not (options := choices(group.partition("@")[0])):
        return None
    if key:
        options = [option for option in options if option != "none"]
        return f"{override.input_line}: no {group} is chosen that has a {key}; choose {group}={'|'.join(options)}"
    hint = f"; did you mean {group}=none?" if "none" in options else ""
    return f"{override.input_line}: choose a file, or leave it out; allowed are {listed(options)}{hint}"


def explain_missing(keys: Iterable[str], *, recipe: str) -> str:
    """Keys that have no value yet."""
    told = [f"{key}={'|'.join(options) if (options := choices(key)) else '…'}" for key in sorted(keys)]
    return f"{spoken(recipe)}: must be given: {' '.join(told)}; see matslice {spoken(recipe)} --help"


def guess(found: str, options: Collection[str]) -> str:
    """The option that was probably meant."""
    near = difflib.get_close_matches(found.strip("'"), options, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def listed(options: Collection[str]) -> str:
    """The options in a row."""
    return ", ".join(options) if options else "none"
