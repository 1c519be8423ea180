# SPDX-License-Identifier: Apache-2.0
"""Which token ids a sub-model keeps, and what their numbers become everywhere a config names one.

The ids of Gemma 3n are those of the text, ``0`` to ``vocab_size_per_layer_input - 1``, and behind them those of
the towers' own small vocabularies. Some of the text's may be dropped; the towers' always stay, and move up.
Numbers change, their order does not. Which rows a tensor loses is the table of cuts' business.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from model.config import ModelConfig, TextConfig
from model.errors import ConfigError, SliceError
from model.tower_config import AudioConfig, VisionConfig

ID_FIELDS = ("_token_id", "_token_ids", "_token_index")  # ends of names that hold an id or a list of ids
NEVER_SAID = ("suppress_tokens", "begin_suppress_tokens")  # lists of ids that must not be generated
NEVER_SAID_IN_A_ROW = "bad_words_ids"  # a list of such lists
OTHER_FORMS = ("force_words_ids", "forced_decoder_ids", "sequence_bias")  # ids between other numbers
Tower = TypeVar("Tower", VisionConfig, AudioConfig)


@dataclass(frozen=True)
class Vocabulary:
    """Some of the text's token ids of a parent, hashable; its towers' ids are always kept.

    Attributes:
        kept: Ids of the parent, ascending, each below ``parent_size``.
        parent_size: How many ids the parent's text has (``vocab_size_per_layer_input``); towers' ids begin there.

    Raises:
        SliceError: ``kept`` is empty, not ascending, has repeats, or reaches outside the text's ids.
    """

    kept: tuple[int, ...]
    parent_size: int

    def __post_init__(self) -> None:
        if not self.kept:
            raise SliceError("vocabulary: keeps no token; keep the special ones at least")
        if any(after <= before for before, after in zip(self.kept, self.kept[1:], strict=False)):
            raise SliceError("vocabulary: the kept ids must be ascending, with no repeats; sort them")
        if self.kept[0] < 0 or self.kept[-1] >= self.parent_size:
            raise SliceError(
                f"vocabulary: keeps ids {self.kept[0]} to {self.kept[-1]}, but the parent's text has 0 to"
                f" {self.parent_size - 1} (vocab_size_per_layer_input); ids behind it are kept in any case, so leave"
                " them out"
            )

    @classmethod
    def of(cls, ids: Iterable[int], config: ModelConfig) -> Vocabulary:
        """The vocabulary of these ids, in any order, and of those that a model of this config cannot do without.

        Raises:
            SliceError: As the class.
        """
        wanted = {*ids, *required_ids(config)}
        behind = range(config.text.vocab_size_per_layer_input, config.text.vocab_size)
        return cls(tuple(sorted(wanted.difference(behind))), config.text.vocab_size_per_layer_input)

    @classmethod
    def full(cls, config: ModelConfig) -> Vocabulary:
        """Every id of the parent."""
        size = config.text.vocab_size_per_layer_input
        return cls(tuple(range(size)), size)

    def __len__(self) -> int:
        """How many of the text's ids are kept; ``vocab_size_per_layer_input`` of the sub-model."""
        return len(self.kept)

    def __contains__(self, old: object) -> bool:
        """Whether this id of the parent has a number in the sub-model."""
        if not isinstance(old, int):
            return False
        place = bisect_left(self.kept, old)
        return old >= self.parent_size or (place < len(self.kept) and self.kept[place] == old)

    @cached_property
    def ranges(self) -> tuple[range, ...]:
        """The kept ids of the text, as few ranges as possible (each is one read from disk)."""
        return tuple(runs(self.kept))

    def rows(self, vocab_size: int) -> tuple[range, ...]:
        """The kept rows of a table that has rows for the towers' ids too; ``vocab_size`` is the parent's."""
        behind = range(self.parent_size, vocab_size)
        if behind and self.ranges[-1].stop == behind.start:  # one read instead of two
            return (*self.ranges[:-1], range(self.ranges[-1].start, behind.stop))
        return (*self.ranges, behind) if behind else self.ranges

    def new_id(self, old: int) -> int:
        """The number in the sub-model of an id of the parent.

        Raises:
            SliceError: It is not kept.
        """
        if old >= self.parent_size:
            return old - self.parent_size + len(self.kept)
        if old not in self:
            raise SliceError(f"vocabulary: token id {old} of the parent is not kept, but still asked for; keep it too")
        return bisect_left(self.kept, old)

    def old_id(self, new: int) -> int:
        """The number in the parent of an id of the sub-model, which is any that is not negative."""
        return self.kept[new] if new < len(self.kept) else new - len(self.kept) + self.parent_size

    def then(self, second: Vocabulary) -> Vocabulary:
        """The ids of this vocabulary's parent that ``second`` keeps of this one.

        Raises:
            SliceError: ``second`` is of another parent.
        """
        if second.parent_size != len(self.kept):
            raise SliceError(
                f"vocabulary: made for a text of {second.parent_size} ids, but the sub-model has {len(self.kept)};"
                " choose the tokens of this sub-model"
            )
        return Vocabulary(tuple(self.kept[new] for new in second.kept), self.parent_size)

    def check(self, config: ModelConfig) -> None:
        """Raise SliceError unless a model of this config still works without the dropped ids.

        Args:
            config: The parent's, without the towers that are left out: their begin marks may be dropped.
        """
        size, whole = config.text.vocab_size_per_layer_input, config.text.vocab_size
        if self.parent_size != size:
            raise SliceError(
                f"vocabulary: made for a text of {self.parent_size} ids, but this model's has {size}"
                " (vocab_size_per_layer_input); choose the tokens of this model"
            )
        if whole < size:
            raise SliceError(
                f"vocabulary: this model has rows for {whole} ids (vocab_size), fewer than the text's {size}"
                " (vocab_size_per_layer_input); such a vocabulary cannot be trimmed"
            )
        if missing := {old: name for old, name in required_ids(config).items() if old not in self}:
            listed = ", ".join(f"{old} ({name})" for old, name in missing.items())
            raise SliceError(f"vocabulary: drops {listed}, which the model cannot do without; keep them too")


def required_ids(config: ModelConfig) -> dict[int, str]:
    """The text's ids that a model must keep, and what for."""
    text = config.text
    needed = {text.pad_token_id: "pad_token_id", text.bos_token_id: "bos_token_id"}
    needed |= dict.fromkeys(text.eos_token_id, "eos_token_id")
    for tower, name in ((config.vision, "boi_token_id"), (config.audio, "boa_token_id")):
        needed |= {} if tower is None else {tower.tokens.begin_id: name}
    if text.vocab_size > text.vocab_size_per_layer_input:
        needed.setdefault(0, "the per-layer row that every id behind the text's reads")
    return {old: needed[old] for old in sorted(needed) if old < text.vocab_size_per_layer_input}


def slice_vocabulary(config: ModelConfig, vocabulary: Vocabulary) -> ModelConfig:
    """The config of a model with the kept ids alone, every id in it by its new number.

    Raises:
        SliceError: The vocabulary does not fit the config; or the file names a token that is dropped.
    """
    vocabulary.check(config)
    text = dataclasses.replace(
        config.text,
        vocab_size=vocabulary.new_id(config.text.vocab_size),
        vocab_size_per_layer_input=len(vocabulary),
        pad_token_id=vocabulary.new_id(config.text.pad_token_id),
        bos_token_id=vocabulary.new_id(config.text.bos_token_id),
        eos_token_id=tuple(vocabulary.new_id(old) for old in config.text.eos_token_id),
    )
    towers = {
        "vision": None if config.vision is None else slice_tower(config.vision, vocabulary),
        "audio": None if config.audio is None else slice_tower(config.audio, vocabulary),
    }
    published = renumbered(without_own_fields(config), vocabulary, "config.json")
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if name in published:  # of some writers also at the top of a multimodal file
            published[name] = getattr(text, name)
    return dataclasses.replace(config, text=text, **towers, published=published)


def without_own_fields(config: ModelConfig) -> dict[str, Any]:
    """What the file said besides the text's fields, which are written anew, and besides the ids of towers left out."""
    carried = dict(config.published)
    for tower, kind in ((config.vision, VisionConfig), (config.audio, AudioConfig)):
        for name in kind.TOKEN_FIELDS if tower is None else ():
            carried.pop(name, None)
    own = {known.name for known in dataclasses.fields(TextConfig)}
    if not config.is_published_multimodal:
        return {name: value for name, value in carried.items() if name not in own}
    if isinstance(part := carried.get("text_config"), Mapping):
        carried["text_config"] = {name: value for name, value in part.items() if name not in own}
    return carried


def slice_tower(tower: Tower, vocabulary: Vocabulary) -> Tower:
    """A tower's config with its own ids moved up, and its begin mark where the text has it now."""
    tokens = dataclasses.replace(
        tower.tokens,
        placeholder_id=vocabulary.new_id(tower.tokens.placeholder_id),
        begin_id=vocabulary.new_id(tower.tokens.begin_id),
        end_id=vocabulary.new_id(tower.tokens.end_id),
    )
    return dataclasses.replace(tower, vocab_offset=vocabulary.new_id(tower.vocab_offset), tokens=tokens)


def renumbered(content: Mapping[str, Any], vocabulary: Vocabulary, where: str) -> dict[str, Any]:
    """A published JSON object with every token id in it by its new number; all else stays.

    Ids are known by their fields' names, as transformers names them. Lists of what must never be said lose the
    dropped ids, which cannot be said any more.

    Args:
        content: Of ``config.json``, ``generation_config.json`` or a processor's file.
        vocabulary: The kept ids.
        where: The file, for messages.

    Raises:
        SliceError: A field names a dropped id.
        ConfigError: A field holds ids in a form that is not known here.
    """
    return {name: renumbered_field(name, value, vocabulary, where) for name, value in content.items()}


def renumbered_field(name: str, value: Any, vocabulary: Vocabulary, where: str) -> Any:
    """One field of ``renumbered``, and all that is in it."""
    if name in OTHER_FORMS and value:
        raise ConfigError(
            f"{where}: {name} holds token ids in a form that cannot be renumbered; take it out of the file before"
            " the vocabulary is trimmed"
        )
    if name in NEVER_SAID and isinstance(value, list):
        return [vocabulary.new_id(old) for old in value if old in vocabulary]
    if name == NEVER_SAID_IN_A_ROW and isinstance(value, list):
        return [[vocabulary.new_id(old) for old in row] for row in value if all(old in vocabulary for old in row)]
    if isinstance(value, Mapping):
        return renumbered(value, vocabulary, f"{where}: {name}")
    if not name.endswith(ID_FIELDS):
        return value
    ids = value if isinstance(value, list) else [value]
    if dropped := [old for old in ids if is_id(old) and old not in vocabulary]:
        raise SliceError(
            f"{where}: {name} is {value!r}, but the vocabulary drops {dropped}; keep them too, or change the file"
        )
    new = [vocabulary.new_id(old) if is_id(old) else old for old in ids]
    return new if isinstance(value, list) else new[0]


def is_id(value: object) -> bool:
    """Whether a value is a token id, and not null, a word or a number that says "none"."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def runs(ids: Iterable[int]) -> Iterator[range]:
    """Ascending ids as ranges that do not touch."""
    start = stop = -1
    for one in ids:
        if one != stop:
            if start >= 0:
                yield range(start, stop)
            start = one
        stop = one + 1
    if start >= 0:
        yield range(start, stop)
