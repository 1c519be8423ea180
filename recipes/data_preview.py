# SPDX-License-Identifier: Apache-2.0
"""Show rows as they would be trained on, and how long all of them are: a tokenizer is read, no weights are."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.text import Text

from model.config import CONFIG_FILE, ModelConfig
from model.errors import CheckpointError, ConfigError, InputError
from model.processor.processor import Processor
from recipes.build import find_config
from recipes.data_rendering import Token, listing, rendered, spoken, tokens_of
from recipes.data_report import Report, Tally, parts
from recipes.locate import find_checkpoint
from recipes.program import start
from recipes.shape import ShapeConfig
from trainer.data.config import DataConfig, LongRows
from trainer.data.example import Example
from trainer.data.faults import Fault
from trainer.data.sources import Source, sources_of
from trainer.data.supervise import Limits, Maker, TokenRow, pieces

TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model")  # of a checkpoint on the hub
PUBLISHED = "e4b"  # of conf/model: which marks media have, where only a tokenizer is given
NUMBER = re.compile(r"(\d+)$")  # of a row, at the end of its place


@dataclass(kw_only=True, slots=True)
class DataPreviewRecipe:
    """Show rows as they would be trained on, and how long all of them are; no weights are read.

    Takes data.* as training does, with checkpoint=DIRECTORY or tokenizer=DIRECTORY. What is learnt is in
    green, or between ⟦ and ⟧ where there are no colours. Lengths are those before long rows are cut.
    """

    data: DataConfig
    model: ShapeConfig | None = None  # of tokenizer=; null = as its config.json says, or as published
    checkpoint: str | None = None  # directory or hub name of published weights, of which none are read
    tokenizer: Path | None = None  # directory, processor files included; null takes the checkpoint's
    rows: int = 3  # how many to show: the first that can be used
    row: int | None = None  # show those of this number alone, all of them: 17 is FILE:17 of messages
    shown_tokens: int | None = 400  # of each row but one chosen by row=, the middle being left out; null = all
    tokens: bool = False  # list every token that is shown, with its id
    json: bool = False  # print all of it as JSON instead

    def __post_init__(self) -> None:
        for key, least in {"rows": 0, "row": 1, "shown_tokens": 2}.items():
            if (value := getattr(self, key)) is not None and value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class Shown:
    """A row that is shown, or what is wrong with the one that was to be, and what becomes of it."""

    where: str
    tokens: Sequence[Token] = ()
    fate: str = ""

    def as_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "where": self.where,
            "length": len(self.tokens),
            "supervised": sum(token.supervised for token in self.tokens),
            "fate": self.fate or "trained on",
            "tokens": [token.as_json() for token in self.tokens],
        }


@dataclass
class Walk:
    """Goes through all sources once; keeps lengths, and the rows that are to be shown."""

    recipe: DataPreviewRecipe
    processor: Processor
    shown: list[Shown] = field(default_factory=list)

    def source(self, source: Source) -> Tally:
        """Every row of a source."""
        data, tally = self.recipe.data, Tally(source.name or source.path, source.weight)
        limits = Limits(
            max_length_tokens=data.max_length_tokens, long_rows=data.long_rows, supervise=data.supervise
        )  # fmt: skip
        maker = Maker(self.processor, limits)
        coming = source.examples(roles=data.supervise.roles, preference=data.preference)
        for found in islice(coming, data.stream_block_rows) if data.streaming else coming:
            self.take(found, tally, maker)
        return tally

    def take(self, found: Example | Fault, tally: Tally, maker: Maker) -> None:
        """Count a row, and keep it if it is to be shown."""
        made = self.tokenized(found, maker) if isinstance(found, Example) else found
        if isinstance(made, Fault):
            tally.faults.append(made)
            if self.wants(made.where, usable=False):
                self.shown.append(Shown(made.where, fate=f"cannot be used: {made.what}"))
            return
        assert isinstance(found, Example)
        kept, fate = [made], ""
        if len(made.ids) > maker.limits.max_length_tokens:
            kept, fate = limited(made, found, maker)
            tally.num_long += 1
            tally.num_truncated += bool(kept)
        tally.lengths.append(len(made.ids))
        tally.num_with_media += bool(made.media)
        tally.kept += [len(row.ids) for row in kept]
        tally.digests += [found.digest()] * len(kept)
        tally.learnt += [int(row.supervised[1:].sum()) for row in kept]  # a first token is never predicted
        if self.wants(made.where, usable=True):
            shown = kept[0] if len(kept) == 1 else made
            self.shown.append(Shown(made.where, tokens_of(shown, self.processor), fate))

    def tokenized(self, example: Example, maker: Maker) -> TokenRow | Fault:
        """An example as tokens, however many."""
        try:
            return maker.whole_row(example)
        except InputError as error:
            return Fault(example.where, f"{example.field}: {error}")

    def wants(self, where: str, *, usable: bool) -> bool:
        """Whether the row at this place is to be shown."""
        if self.recipe.row is None:
            return usable and len(self.shown) < self.recipe.rows
        number = NUMBER.search(where)
        return number is not None and int(number[1]) == self.recipe.row


def limited(row: TokenRow, example: Example, maker: Maker) -> tuple[list[TokenRow], str]:
    """What is trained on of a row that is too long, as in training, and that in words."""
    limits = maker.limits
    limit = f"of {len(row.ids):,} tokens, more than data.max_length_tokens={limits.max_length_tokens:,}"
    if example.is_text:
        kept = list(pieces(row, limits.max_length_tokens))
        return kept, f"{limit}: cut into {len(kept)} pieces"
    if kept := maker.shortened(row, example):
        return kept, f"{limit}: its end is cut off"
    return [], f"{limit}: {'a run is refused' if limits.long_rows is LongRows.refuse else 'left out'}"


def run(recipe: DataPreviewRecipe) -> None:
    """Go through the data, and tell what is in it."""
    sources = sources_of(recipe.data)
    walk = Walk(recipe, processor_of(recipe))
    # What is held out of a stream are its first rows, and no choice among those that were read.
    data = dataclasses.replace(recipe.data, held_out=None) if recipe.data.streaming else recipe.data
    report = Report(data, [walk.source(source) for source in sources])
    if recipe.row is not None and not walk.shown:
        raise ConfigError(f"row: none of {report.whole.num_rows:,} rows has the number {recipe.row}; see their places")
    if recipe.json:
        told = {
            "report": report.as_json() | {"all_read": not data.streaming},
            "rows": [one.as_json() for one in walk.shown],
        }
        print(json.dumps(told, indent=None if len(walk.shown) > 1 else 2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for one in walk.shown:
        for line in lines_of(one, recipe, walk.processor, console):
            console.print(line, soft_wrap=True)  # a row is as wide as it is
        console.print()
    if data.streaming:
        console.print(what_was_read(recipe.data), soft_wrap=True)
    for part in parts(report):
        console.print(part, soft_wrap=isinstance(part, str))


def what_was_read(data: DataConfig) -> str:
    """That not all of a stream was, and where what is held out of it is."""
    held_out = "" if data.held_out is None else f", the {data.held_out:g} that are held out (data.held_out) among them"
    return (
        f"the first {data.stream_block_rows:,} rows of each source were read (data.streaming){held_out}; of others"
        " nothing is known"
    )


def lines_of(shown: Shown, recipe: DataPreviewRecipe, processor: Processor, console: Console) -> Iterator[Text]:
    """What is shown of one row."""
    colour = console.color_system is not None and not console.no_color
    learnt = sum(token.supervised for token in shown.tokens)
    length = f" {len(shown.tokens):,} tokens, {learnt:,} learnt" if shown.tokens else ""
    yield Text.assemble((f"{shown.where}:", "bold"), length, f" ({shown.fate})" if shown.fate else "")
    if not shown.tokens:
        return
    yield Text(spoken(shown.tokens), "dim")
    most = None if recipe.row is not None else recipe.shown_tokens
    text = rendered(shown.tokens, processor, colour=colour, most=most)
    text.rstrip()
    yield text
    if recipe.tokens:
        yield from listing(shown.tokens[:most], colour=colour)


def processor_of(recipe: DataPreviewRecipe) -> Processor:
    """What tokenises, as in training; with a tokenizer alone for the published marks of media, if it has them.

    Raises:
        MatsliceError: There is none, or it is not that of the model.
    """
    if recipe.checkpoint is None and recipe.tokenizer is None:
        raise ConfigError("data preview: neither checkpoint nor tokenizer is given; say tokenizer=DIRECTORY")
    checkpoint = None if recipe.checkpoint is None else find_checkpoint(recipe.checkpoint, files=TOKENIZER_FILES)
    place = recipe.tokenizer or checkpoint
    assert place is not None
    long_audio = recipe.data.long_audio
    if checkpoint is not None or recipe.model is not None:
        config = find_config(checkpoint, recipe.model)
        return Processor.read(place, config, long_audio=long_audio, long_audio_key="data.long_audio")
    if (place / CONFIG_FILE).is_file():
        config = ModelConfig.read(place)
        return Processor.read(place, config, long_audio=long_audio, long_audio_key="data.long_audio")
    published = published_shape().to_model_config()
    try:
        return Processor.read(place, published, long_audio=long_audio, long_audio_key="data.long_audio")
    except CheckpointError:  # a vocabulary of one's own, without the marks of media at their ids
        return Processor.read(place, published.only([]))


def published_shape() -> ShapeConfig:
    """The shape of the published model, as in conf/model."""
    written = OmegaConf.load(str(resources.files("conf") / "model" / f"{PUBLISHED}.yaml"))
    shape = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ShapeConfig), written))
    assert isinstance(shape, ShapeConfig)
    return shape


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("data_preview", DataPreviewRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
