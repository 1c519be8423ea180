# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness with checkpoints and sub-models of ours: its command ``lm_eval``, with a model ``matslice``.

    matslice lm_eval --model matslice --model_args checkpoint=weights/e4b,spec=e2b --tasks arc_easy --batch_size 8

The harness finds models by being told of them in its own process, so this command tells it and hands on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from model.adapter.lora import base_of
from model.checkpoint.load import load
from model.config import ModelConfig
from model.errors import ConfigError, MatsliceError
from model.generation.generate import ids_of_media
from model.processor.processor import Processor
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.table import written_in
from recipes.build import find_device, fingerprint_of, towers_of_adapter, with_adapter
from recipes.locate import find_checkpoint
from recipes.program import refuse
from recipes.sweep_names import read_named
from trainer.config import Device, Precision
from trainer.data.collate import Collator
from trainer.evaluation.engine import Engine
from trainer.harness.chat import Chat
from trainer.harness.config import HarnessConfig
from trainer.harness.encoding import Encoding
from trainer.harness.generation import Usual
from trainer.harness.library import check_installed, register, run_command
from trainer.harness.model import HarnessModel
from trainer.harness.requests import Asking, Requests
from trainer.soft_tokens import SharedTowers

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}  # the harness's words for ours
IGNORED = ("max_batch_size", "trust_remote_code")  # what the harness passes to every model
WORLD = "WORLD_SIZE"  # what launchers of several processes set
LISTS = ("skip_layers", "ffn_widths")
FULL = "full"
NO_TASK = "Tasks not found"  # how the harness says so


@dataclass(kw_only=True, slots=True)
class HarnessArguments:
    """What ``--model_args`` of the model ``matslice`` can say; the command's own ``--batch_size`` comes in beside it.

    Raises:
        ConfigError: A value is none that works.
    """

    checkpoint: str  # directory or hub name of published weights
    spec: str | None = None  # a file of conf/slice, or a YAML file of a slice; none of these keys = all of the model
    row: str | None = None  # or a row of Google's table
    skip_layers: list[int] = field(default_factory=list)  # or layers to leave out, by index in the parent
    ffn_widths: list[int] = field(default_factory=list)  # and widths, one per kept layer or one for all
    adapter_path: str | None = None  # directory of a trained adapter
    merge: bool = True  # fold the adapter into the weights first, as slices that are shipped have it; takes less time
    dtype: str = "fp32"  # or bf16
    device: str = "auto"  # or cpu, or cuda
    batch_size: int = 8  # sequences
    max_length: int | None = None  # tokens that the model is given at most; none = all its positions
    add_bos_token: bool | None = None  # whether texts begin with <bos>; none = as tokenizer.json says
    seed: int = 0  # draws tokens where a task asks for that

    def __post_init__(self) -> None:
        for key, least in {"batch_size": 1, "max_length": 1}.items():
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                hint = "; there is no automatic one" if key == "batch_size" else ""
                raise ConfigError(f"model_args: {key} is {value!r}; it must be a whole number, at least {least}{hint}")
        for key in LISTS:
            value = getattr(self, key)
            if not isinstance(value, list) or not all(type(one) is int for one in value):
                raise ConfigError(
                    f"model_args: {key} is {value!r}; it must be a list of whole numbers, as in {key}=[20,21]"
                )
        for key in ("add_bos_token", "merge"):
            value = getattr(self, key)
            if not isinstance(value, bool) and (value is not None or key == "merge"):
                raise ConfigError(f"model_args: {key} is {value!r}; it must be true or false")
        asked = [key for key in ("spec", "row") if getattr(self, key) is not None]
        if self.skip_layers or self.ffn_widths:
            asked.append("skip_layers or ffn_widths")
        if len(asked) > 1:
            raise ConfigError(f"model_args: {' and '.join(asked)} each say which sub-model; give one of them")
        self.dtype = PRECISIONS.get(self.dtype, self.dtype)
        if self.dtype not in PRECISIONS.values():
            raise ConfigError(f"model_args: dtype is '{self.dtype}'; it must be fp32 or bf16")
        self.device = "cuda" if self.device == "cuda:0" else self.device
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"model_args: device is '{self.device}'; it must be auto, cpu or cuda")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> HarnessArguments:
        """What the harness gives.

        Raises:
            ConfigError: A key is unknown or missing, or a value does not work.
        """
        known = [known.name for known in fields(cls)]
        wanted = {key: value for key, value in given.items() if key not in IGNORED and value is not None}
        if unknown := [key for key in wanted if key not in known]:
            raise ConfigError(f"model_args: there is no '{unknown[0]}'; there are {', '.join(known)}")
        if not isinstance(wanted.get("checkpoint"), str):
            raise ConfigError("model_args: checkpoint is missing; write --model_args checkpoint=DIRECTORY")
        for key in ("batch_size", "max_length"):  # the harness's command passes its own --batch_size as text
            if isinstance(wanted.get(key), str) and wanted[key].isdecimal():
                wanted[key] = int(wanted[key])
        for key in LISTS:  # of one number the harness's command makes no list
            if type(wanted.get(key)) is int:
                wanted[key] = [wanted[key]]
            elif isinstance(wanted.get(key), tuple):
                wanted[key] = list(wanted[key])
        for key in ("spec", "row", "dtype", "device"):
            if key in wanted:
                wanted[key] = str(wanted[key])
        return cls(**wanted)

    @property
    def slice(self) -> SliceConfig:
        """The sub-model that is meant, as it would be written.

        Raises:
            ConfigError: There is no file of that name.
        """
        if self.spec is not None:
            return read_named("slice", self.spec, SliceConfig)
        if self.row is not None:
            return SliceConfig(name="row", row=self.row)
        if self.skip_layers or self.ffn_widths:
            return SliceConfig(name="asked", skip_layers=self.skip_layers, ffn_widths=self.ffn_widths)
        return SliceConfig(name=FULL)


def open_model(given: Mapping[str, Any]) -> HarnessModel:
    """The model that the harness asks for: everything is checked before its weights are read.

    Raises:
        MatsliceError: An argument, the checkpoint or the sub-model cannot be used.
    """
    arguments = HarnessArguments.of(given)
    if int(os.environ.get(WORLD, "1")) > 1:
        raise ConfigError(f"lm_eval: {WORLD} is {os.environ[WORLD]}; matslice is asked in one process, so start one")
    device = device_of(arguments.device)
    checkpoint = find_checkpoint(arguments.checkpoint)
    config = ModelConfig.read(checkpoint)
    spec = SliceSpec.resolve(written_in(arguments.slice), config.text)
    adapter = None if arguments.adapter_path is None else Path(arguments.adapter_path).expanduser()
    adapted = towers_of_adapter(config, adapter, merge=arguments.merge)
    processor = Processor.read(checkpoint, config)
    length = HarnessConfig(max_length=arguments.max_length).length_in(config.text.max_position_embeddings)
    encoding = Encoding(tokenizer=processor.tokenizer, max_length=length, add_bos=arguments.add_bos_token)
    usual = Usual.read(checkpoint, processor.tokenizer, config.text)
    about = {
        "checkpoint": str(checkpoint), "model_fingerprint": fingerprint_of(checkpoint, adapter),
        "adapter_path": arguments.adapter_path, "merge": arguments.merge and adapter is not None,
        "model_dtype": arguments.dtype, "spec": spec.name, "kept_layers": list(spec.kept_layers),
        "ffn_widths": list(spec.ffn_widths),
    }  # fmt: skip

    # An adapter is one of the whole model; without any, only what the sub-model needs is read.
    part = None if adapter is not None else spec
    gemma = load(
        checkpoint, dtype=Precision(arguments.dtype).dtype, device=device, spec=part,
        modalities=config.only(adapted).modalities,
    )  # fmt: skip
    model = with_adapter(gemma, adapter, merge=arguments.merge)
    engine = Engine(
        model=model, tokenizer=processor.tokenizer, collator=Collator(processor.tokenizer.pad_id),
        towers=SharedTowers(base_of(model)), unsaid=ids_of_media(config),
    )  # fmt: skip
    return HarnessModel(
        asking=Asking(engine=engine, stop_ids=usual.stop_ids, batch_size=arguments.batch_size),
        spec=spec if part is None else SliceSpec.full(gemma.config.text),
        requests=Requests(encoding=encoding, usual=usual, seed=arguments.seed),
        chat=Chat.of(processor.tokenizer),
        about=about,
    )


def device_of(written: str) -> torch.device:
    """Where to compute.

    Raises:
        ConfigError: There is no such device.
    """
    found = find_device(Device.cpu if written == "cpu" else Device.auto)
    if written == "cuda" and found.type != "cuda":
        raise ConfigError("model_args: device is 'cuda', but there is no CUDA device; leave it out, or write cpu")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the harness's command with ``matslice`` among its models; return the exit status."""
    try:
        check_installed()
        register(open_model)
        run_command(arguments)
    except MatsliceError as error:
        return refuse(str(error))
    except ValueError as error:
        if not str(error).startswith(NO_TASK):
            raise
        return refuse(f"lm_eval: {error}; 'matslice lm_eval ls tasks' lists them")
    except SystemExit as leaving:  # --help, and what argparse objects to
        if isinstance(leaving.code, str):
            return refuse(leaving.code)
        return leaving.code or 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
