# SPDX-License-Identifier: Apache-2.0
"""``matslice train resume=RUN_DIR``: the values that a run was begun with, from its own directory.

Beside ``resume`` only what a resumed run may change can be said; with ``fork=true``, which begins a new run from the
weights of the other, anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from model.errors import CheckpointError, ConfigError
from recipes.train_recipe import TrainRecipe
from trainer.checkpoint import newest_whole
from trainer.config import FREE_TO_CHANGE
from trainer.retention import checkpoint_at
from trainer.trained import WEIGHTS

CONFIG_FILE = "config.yaml"  # in the directory of a run
OURS = ("resume", "fork")
# What a resumed run may change. Places are among it: they may have moved, and what is in them is compared.
MAY_CHANGE = frozenset({
    "checkpoint", "tokenizer", "data.train", "data.validation", "data.max_validation_examples", "data.check_media",
    "data.workers", "data.token_cache", "data.soft_token_cache",
    *(f"trainer.{key}" for key in FREE_TO_CHANGE - {"output", "epochs", "resume"}),
})  # fmt: skip


def complete(cfg: DictConfig, written: Sequence[str]) -> DictConfig:
    """The config of the run to go on with, and over it what was said beside ``resume``.

    Args:
        cfg: What Hydra made of the command line.
        written: The command line's values, as Hydra has them.

    Raises:
        ConfigError: Something was said that a resumed run cannot change; or a fork without a place of its own.
        CheckpointError: There is no run, or its config cannot be read.
    """
    parser = OverridesParser.create()
    said = [found for found in map(parser.parse_override, written) if found.key_or_group not in OURS]
    if cfg.resume is None:
        if cfg.fork:
            raise ConfigError("fork=true needs the run to start from; give resume=RUN_DIR")
        return cfg
    directory = Path(cfg.resume)
    stored = read_config(directory)
    for one in said:
        key = str(one.key_or_group)
        if key == "experiment" or one.is_delete():
            raise ConfigError(f"{one.input_line}: beside resume=… give single values, as in trainer.log_every=5")
        if not cfg.fork:
            refuse_change(key, one, stored, cfg)
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    if not cfg.fork:
        stored.trainer.output, stored.trainer.resume = directory, True
    elif same_place(Path(stored.trainer.output), directory):
        raise ConfigError("fork=true begins a new run; give a directory of its own, as trainer.output=…")
    stored.resume, stored.fork = directory, cfg.fork
    return stored


def refuse_change(key: str, one: Override, stored: DictConfig, cfg: DictConfig) -> None:
    """Raise ConfigError if a key has another value than the run was begun with, and must not have."""
    allowed = key in MAY_CHANGE or any(key.startswith(f"{known}.") for known in MAY_CHANGE)
    # A row that a stream was stopped by has not been learnt from, nor has any behind it.
    allowed = allowed or (key == "data.on_bad_row" and stored.data.streaming)
    before, now = as_plain(OmegaConf.select(stored, key)), as_plain(OmegaConf.select(cfg, key))
    if not allowed and before != now:
        if isinstance(before, dict) or isinstance(now, dict):  # a file of a group
            was, is_now = "was another when the run was begun", str(one.value())
        else:
            was, is_now = f"was {in_yaml(before)}", in_yaml(now)
        raise ConfigError(
            f"{key}: {was}, now {is_now}; a run that goes on cannot change it. Leave it out, or begin a new run"
            " from the weights of this one: fork=true trainer.output=…"
        )


def read_config(directory: Path) -> DictConfig:
    """The values that the run in a directory was begun with, each of its type."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        what = "is not the directory of a run" if not directory.is_dir() else f"has no {CONFIG_FILE}"
        raise CheckpointError(
            f"resume: '{directory}' {what}; give the trainer.output of a run, or for a run that was sliced all that it"
            " was begun with and trainer.resume=true"
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainRecipe), OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not the config of a run ({str(error).splitlines()[0]}); give all that it was begun with, and"
            " trainer.resume=true"
        ) from None
    assert isinstance(merged, DictConfig)
    return merged


def fork_source(run: Path) -> tuple[Path, dict[str, Any]]:
    """The weights that a fork of a run starts from, and what is written down of where they are from.

    Raises:
        CheckpointError: The run has no whole checkpoint.
    """
    step, _ = newest_whole(run)
    return checkpoint_at(run, step) / WEIGHTS, {"forked_from": str(run.absolute()), "step": step}


def same_place(one: Path, other: Path) -> bool:
    """Whether two names are of the same directory."""
    return one.resolve() == other.resolve()


def in_yaml(value: Any) -> str:
    """A value as it is said on a command line."""
    return "null" if value is None else str(value)


def as_plain(value: Any) -> Any:
    """A value without the types of configs."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
