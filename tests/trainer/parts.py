# SPDX-License-Identifier: Apache-2.0
"""A tiny run in one call: conversations of letters, a tokenizer of characters, the tiny model."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tokenizers
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from tokenizers import Regex, models, pre_tokenizers

from model.adapter.lora import AdapterConfig, PeftModel, attach
from model.config import TextConfig
from model.freezing import Part, freeze
from model.gemma3n import Gemma3n
from model.processor.chat import Message, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.settings import AudioSettings, ImageSettings
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceConfig
from tests.tiny import (
    TINY_AUDIO,
    TINY_PICTURE_PX,
    TINY_TEXT,
    TINY_VISION,
    tiny_config,
    tiny_model,
    tiny_multimodal_config,
)
from trainer.checkpoint import Run
from trainer.config import Device, TrainerConfig
from trainer.data.collate import Collator
from trainer.data.config import LongRows
from trainer.data.example import Example
from trainer.data.loader import Loader
from trainer.data.supervise import TokenRow, tokenize
from trainer.elastic import ElasticConfig, ElasticPolicy, SliceSampler
from trainer.loop import Trainer
from trainer.metrics import Record
from trainer.optim import OptimConfig, build_optimizer
from trainer.optimizers.config import GroupConfig
from trainer.runtime import start
from trainer.schedule import Schedule, ScheduleConfig
from trainer.sinks import METRICS_FILE, Sink, open_sinks, read_records
from trainer.soft_token_cache import SoftTokenCache
from trainer.soft_tokens import SharedTowers
from trainer.weights import adapter_weights, model_weights

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
CHARACTERS = "\nabcdefghijklmnopqrstuvwxyz0123456789 .,!?"
SLICES = {
    "full": SliceConfig(name="full"),
    "narrow": SliceConfig(name="narrow", ffn_widths=[24]),
    "short": SliceConfig(name="short", skip_layers=[3, 4, 5], ffn_widths=[16]),
}


def tiny_tokenizer() -> Tokenizer:
    """One token per character, and the special ones."""
    return character_tokenizer([*SPECIAL, *CHARACTERS], SPECIAL)


def character_tokenizer(pieces: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """A tokenizer whose ids are the places of ``pieces``: single characters, and special ones."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.add_special_tokens(list(special))
    return Tokenizer(backend.to_str().encode(), {})


def tiny_media_tokenizer() -> Tokenizer:
    """The same with the marks of media, at the ids that the tiny multimodal config gives them."""
    vision, audio = TINY_VISION.tokens, TINY_AUDIO.tokens
    marks = {
        vision.begin_id: "<start_of_image>",
        vision.placeholder_id: "<image_soft_token>",
        vision.end_id: "<end_of_image>",
        audio.begin_id: "<start_of_audio>",
        audio.placeholder_id: "<audio_soft_token>",
        audio.end_id: "<end_of_audio>",
    }
    pieces = [*SPECIAL, *CHARACTERS]
    pieces += [marks.get(number, f"<unused{number}>") for number in range(len(pieces), TINY_TEXT.vocab_size)]
    return character_tokenizer(pieces, [*SPECIAL, *marks.values()])


def tiny_processor() -> Processor:
    """Text alone."""
    return Processor(tiny_tokenizer(), None, None, tiny_config())


def tiny_media_processor() -> Processor:
    """Text, pictures and recordings, for the tiny towers."""
    return Processor.create(
        tiny_media_tokenizer(), tiny_multimodal_config(),
        image=ImageSettings(height=TINY_PICTURE_PX, width=TINY_PICTURE_PX), audio=AudioSettings(feature_size=16),
    )  # fmt: skip


def picture_bytes(shade: int, *, side: int = 20) -> bytes:
    """A PNG file: a colour that depends on ``shade``, with some structure."""
    values = np.arange(side * side * 3).reshape(side, side, 3) * (shade + 1)
    file = io.BytesIO()
    Image.fromarray((values % 256).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def sound_bytes(hertz: float, *, seconds: float = 0.5, channels: int = 1) -> bytes:
    """A WAV file: a tone."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    wave = 0.5 * np.sin(2 * np.pi * hertz * times)
    file = io.BytesIO()
    soundfile.write(file, np.stack([wave] * channels, axis=1), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def mixed(count: int) -> list[Example]:
    """Conversations with no media, an image, two images, sound, and both, in turn."""
    examples = []
    for i in range(count):
        picture, other = Picture(picture_bytes(i)), Picture(picture_bytes(i + 50))
        tone = Recording(sound_bytes(200 + 30 * i, seconds=0.2 + 0.1 * (i % 4)))
        contents = (("no media",), ("see ", picture), (picture, "and", other), ("hear ", tone), (other, tone, "both"))
        asked = Message(Role.user, contents[i % len(contents)])
        answered = Message(Role.assistant, "abcdefghi"[: 1 + i % 9])
        examples.append(Example((asked, answered), f"mixed:{i + 1}"))
    return examples


def conversation(*texts: str, where: str = "here:1") -> Example:
    """User and assistant in turn."""
    roles = (Role.user, Role.assistant) * len(texts)
    return Example(tuple(Message(role, text) for role, text in zip(roles, texts, strict=False)), where)


def spelling(count: int) -> list[Example]:
    """Conversations of different lengths: repeat the word, which has between one and nine letters."""
    words = ["abcdefghi"[i % 4 :][: 1 + (i * 5) % 9] or "z" for i in range(count)]
    return [conversation(f"say {word}", word, where=f"words:{i}") for i, word in enumerate(words, start=1)]


def rows(examples: Sequence[Example], processor: Processor | None = None) -> list[TokenRow]:
    """Those conversations as tokens."""
    found = tokenize(examples, processor or tiny_processor(), max_length_tokens=200, long_rows=LongRows.refuse)
    return list(found.rows)


def elastic(policy: ElasticPolicy, names: Sequence[str] = ("full", "narrow", "short")) -> ElasticConfig:
    """A config of the tiny model's slices."""
    return ElasticConfig(policy=policy, slices={name: SLICES[name] for name in names})


def trainer_config(output: Path, **changes: Any) -> TrainerConfig:
    """A few steps on the processor, every one of them logged."""
    values: dict[str, Any] = {
        "max_steps": 4, "batch_size": 2, "log_every": 1, "device": Device.cpu, "seed": 3, "eval_before": False,
    }  # fmt: skip
    return TrainerConfig(output=output, **values | changes)


def tiny_trainer(
    config: TrainerConfig,
    *,
    elastic_config: ElasticConfig | None = None,
    adapter: AdapterConfig | None = None,
    model: Gemma3n | PeftModel | None = None,
    text: TextConfig = TINY_TEXT,
    more_sinks: Sequence[Sink] = (),
    num_validation: int = 0,
    groups: Sequence[GroupConfig] = (),
) -> Trainer:
    """A trainer ready to fit: the tiny model whole, or an adapter on it."""
    sampler = SliceSampler(elastic_config or ElasticConfig(), text, seed=config.seed)
    accelerator: Accelerator = start(config, may_leave_unused=sampler.may_skip_layers)
    identity = {"trainer": config.identity, "elastic": dataclasses.asdict(elastic_config or ElasticConfig())}
    run = Run(config, identity, accelerator=accelerator)
    base = tiny_model(dtype=config.precision.dtype)
    base.recompute = config.recompute
    if config.compile:
        base.model.language_model.compile_layers()
    if adapter is not None:
        trained: Any = attach(base, adapter)
        weights = adapter_weights(trained)
    else:
        trained, weights = base, model_weights(base)
    optim = OptimConfig(learning_rate=1e-2 if adapter else 1e-3, groups=list(groups))
    return Trainer(
        config=config, accelerator=accelerator, model=model or trained, weights=weights,
        optimizer=build_optimizer(model or trained, optim),
        schedule=Schedule(config=ScheduleConfig(warmup_steps=1), learning_rate=optim.learning_rate,
                          max_steps=config.num_steps),
        sampler=sampler,
        loader=Loader(rows(spelling(11)), batch_size=config.batch_size, seed=config.seed, collator=Collator(0)),
        validation=rows(spelling(num_validation)) if num_validation else [], evaluated=sampler.levels, run=run,
        sinks=[*open_sinks(config, run, console=Console(quiet=True), settings=identity), *more_sinks],
    )  # fmt: skip


def media_trainer(
    config: TrainerConfig,
    *,
    adapter: AdapterConfig | None = None,
    frozen: Sequence[Part] = (),
    elastic_config: ElasticConfig | None = None,
    cache: Path | None = None,
    workers: int = 0,
    may_leave_unused: bool = True,
) -> Trainer:
    """A trainer ready to fit on ten rows with and without media: the tiny model with its towers."""
    processor, gemma = tiny_media_processor(), tiny_model(tiny_multimodal_config())
    freeze(gemma, frozen)
    trained: Any = gemma if adapter is None else attach(gemma, adapter)
    sampler = SliceSampler(elastic_config or ElasticConfig(), TINY_TEXT, seed=config.seed)
    accelerator: Accelerator = start(config, may_leave_unused=may_leave_unused)
    run = Run(config, {"trainer": config.identity}, accelerator=accelerator)
    kept = None if cache is None else SoftTokenCache.of(cache, gemma, processor, accelerator.device)
    optim = OptimConfig(learning_rate=1e-3)
    return Trainer(
        config=config, accelerator=accelerator, model=trained,
        weights=model_weights(gemma) if adapter is None else adapter_weights(trained),
        optimizer=build_optimizer(trained, optim),
        schedule=Schedule(config=ScheduleConfig(warmup_steps=1), learning_rate=optim.learning_rate,
                          max_steps=config.num_steps),
        sampler=sampler,
        loader=Loader(rows(mixed(10), processor), batch_size=config.batch_size, seed=config.seed,
                      collator=Collator(0, processor, kept)),
        validation=rows(mixed(5), processor), evaluated=sampler.levels, run=run,
        sinks=open_sinks(config, run, console=Console(quiet=True), settings={}),
        towers=SharedTowers(gemma, kept), workers=workers,
    )  # fmt: skip


def losses(output: Path) -> list[float]:
    """The training losses that a run logged, unrounded."""
    return [record["loss"] for record in read_records(output / METRICS_FILE) if record["kind"] == "train"]


class Hook:
    """A sink that does something after the log line of one step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step = step
        self.action = action

    def write(self, record: Record) -> None:
        if record["step"] == self.step:
            self.action()

    def tick(self, step: int, loss: float) -> None:
        pass

    def close(self) -> None:
        pass


def write_jsonl(path: Path, lines: Sequence[object]) -> Path:
    """A file with one JSON value per line; strings are written as they are."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path
