# SPDX-License-Identifier: Apache-2.0
"""What each recipe can be told: one dataclass per recipe, made of the dataclasses of its parts.

Registered with Hydra, these types are what config files and command lines are held against: a key that
is not here, or a value of another type, is refused before anything is read.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore

from model.adapter.lora import AdapterConfig
from model.errors import ConfigError
from model.freezing import Part
from model.generation.sampling import SamplingConfig
from model.processor.audio import LongAudio
from model.slicing.spec import SliceConfig
from model.tower_config import Modality
from recipes.shape import ShapeConfig
from trainer.config import Device, Precision, TrainerConfig
from trainer.data.sources import DataConfig
from trainer.elastic import ElasticConfig
from trainer.optim import OptimConfig
from trainer.schedule import ScheduleConfig


@dataclass(kw_only=True, slots=True)
class TrainRecipe:
    """Train a model, or an adapter on it, on conversations: elastically or at full size.

    Weights come from a checkpoint, or are drawn anew in the shape of ``model`` (which then needs a
    tokenizer); given both, the checkpoint must have that shape. Rows may hold images and sound where the
    model has towers for them.
    """

    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    elastic: ElasticConfig
    sizes: dict[str, SliceConfig]  # sub-models to train, if elastic trains any, and to measure
    adapter: AdapterConfig | None = None  # null trains every weight
    model: ShapeConfig | None = None
    checkpoint: str | None = None  # directory or hub name of published weights
    tokenizer: Path | None = None  # directory, processor files included; null takes the checkpoint's
    modalities: list[Modality] | None = None  # towers to load, beside text; null = all there are
    freeze: list[Part] = field(default_factory=list)  # left untrained: text, vision, audio, embedders; adapter=none


@dataclass(kw_only=True, slots=True)
class SliceRecipe:
    """Cut a smaller model out of a checkpoint; an adapter is cut alongside, or merged in first.

    Towers for images and sound are kept whole, or left out, as in modalities=[text,vision].
    """

    checkpoint: str  # directory or hub name of published weights
    output: Path  # new directory; a sliced adapter is put in its folder 'adapter'
    slice: SliceConfig
    modalities: list[Modality] | None = None  # towers to keep, beside text; null = all there are
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = False  # fold the adapter into the weights instead of cutting it too
    check: bool = False  # afterwards compare parent and result on the same tokens; loads both


@dataclass(kw_only=True, slots=True)
class EvaluateRecipe:
    """Measure sub-models of one checkpoint on held-out conversations; the model is loaded once."""

    checkpoint: str  # directory or hub name of published weights
    files: list[str]  # JSON Lines of conversations
    sizes: dict[str, SliceConfig]
    adapter_path: Path | None = None  # directory of a trained adapter
    output: Path | None = None  # new file for the rows, as JSON Lines
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    max_examples: int | None = None  # measure the first ones only; null = all
    max_length_tokens: int = 2048
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    batch_size: int = 8  # conversations
    workers: int = 2  # threads that read images and sound ahead; 0 = no thread
    soft_token_cache: Path | None = None  # directory that keeps what the towers make of images and sound
    precision: Precision = Precision.fp32
    device: Device = Device.auto

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files is empty; name at least one JSON Lines file of conversations")
        for key, least in {"max_examples": 1, "batch_size": 1, "max_length_tokens": 2, "workers": 0}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")


@dataclass(kw_only=True, slots=True)
class GenerateRecipe:
    """Answer a prompt of text, images and sound with a checkpoint, or with a sub-model of it.

    Images and sound are files, as in image=a.png or audio=[a.wav,b.flac]. They stand before the text, or where
    it says <image_soft_token> and <audio_soft_token>.
    """

    checkpoint: str  # directory or hub name of published weights
    slice: SliceConfig
    generation: SamplingConfig
    prompt: str | None = None  # null reads standard input
    image: Any = None  # a file, or a list of files
    audio: Any = None  # likewise
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    system: str | None = None  # instruction put before the prompt
    adapter_path: Path | None = None  # directory of a trained adapter
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    precision: Precision = Precision.fp32
    device: Device = Device.auto


@dataclass(kw_only=True, slots=True)
class MergeRecipe:
    """Fold an adapter into the weights it was trained on."""

    checkpoint: str  # directory or hub name of published weights
    adapter_path: Path  # directory of a trained adapter
    output: Path  # new directory


@dataclass(kw_only=True, slots=True)
class DemoRecipe:
    """Show all of it on real texts, pictures and speech: train a small base and an adapter elastically, slice them,
    compare the sizes.
    """

    output: Path  # directory; a demo that is there already is replaced
    sizes: dict[str, SliceConfig]  # cut and compared; every one is in conf/slice
    asked: str  # the size that answers at the end
    text_characters: int  # of an article's text that are used
    synthetic_clips: int  # spoken numbers that are made to learn from
    copies: int  # of each recording of a person heard in training, in other guises
    held_out_examples: int  # of a task that each size is measured on, at most
    held_out_batch_size: int
    batch_size: int  # rows of a training step
    base_steps: dict[str, int]  # of describe, read and hear
    adapter_steps: dict[str, int]  # of topic, digit and say
    threads: int  # processor threads of torch

    def __post_init__(self) -> None:
        if self.asked not in self.sizes:
            raise ConfigError(f"demo: asked is '{self.asked}'; it must be one of sizes: {', '.join(self.sizes)}")


SCHEMAS: dict[str, type] = {
    "train": TrainRecipe,
    "slice": SliceRecipe,
    "evaluate": EvaluateRecipe,
    "generate": GenerateRecipe,
    "merge": MergeRecipe,
    "demo": DemoRecipe,
}

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


def register_schemas() -> None:
    """Tell Hydra the type of every recipe, and its help."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
        about = "\n".join(line.removeprefix("    ") for line in (schema.__doc__ or "").strip().splitlines())
        groups = [(known.name, choices(known.name)) for known in dataclasses.fields(schema)]
        if name == "train":
            groups.append(("experiment", choices("experiment")))
        files = "\n".join(f"{group}: {', '.join(options)}" for group, options in groups if options)
        told = "\n".join(notes(schema)).replace("$", "$$")  # a dollar begins what Hydra puts in
        template = HELP.format(about=about.replace("``", "'"), name=name, notes=told, groups=files or "none here")
        store.store(group="hydra/help", name=name, node={"app_name": f"matslice {name}", "template": template})


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
