# SPDX-License-Identifier: Apache-2.0
"""What lm-evaluation-harness asks to be generated: how tokens are chosen, how many, and at which texts they end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Int
from torch import Tensor

from model.config import TextConfig
from model.errors import CheckpointError, ConfigError
from model.generation.generate import pad_left, until_stop
from model.generation.sampling import SamplingConfig
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import Shape, SliceSpec
from trainer.evaluation.engine import Engine

USUAL_NEW_TOKENS = 256  # where a task does not say; as the harness has it
NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # all the same; the first counts
# Of what else may be asked only what changes nothing.
NEUTRAL: Mapping[str, Any] = MappingProxyType({
    "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "use_cache": True,
    "min_p": 0.0,
})  # fmt: skip
GENERATION_FILE = "generation_config.json"
MARGIN = 2  # tokens: the model may cut a text into more of them than the tokenizer does


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How one prompt is to be continued.

    Args:
        sampling: How tokens are chosen, and how many there may be.
        ends: Texts at which it ends; they are not part of it.
    """

    sampling: SamplingConfig
    ends: tuple[str, ...]

    @property
    def key(self) -> str:
        """The same for prompts that can be continued together."""
        return json.dumps([repr(self.sampling), self.ends])


@dataclass(frozen=True, kw_only=True)
class Usual:
    """What a checkpoint says of generation, for whatever a task leaves open.

    Args:
        stop_ids: What ends an answer.
        top_k: Where tokens are drawn; 0 is no limit.
        top_p: Likewise; 1 is no limit.
    """

    stop_ids: frozenset[int]
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def read(cls, directory: Path, tokenizer: Tokenizer, config: TextConfig) -> Usual:
        """That of a checkpoint; without a ``generation_config.json`` the model's own ends, and that of a turn.

        Raises:
            CheckpointError: The file does not say what it should.
        """
        path = directory / GENERATION_FILE
        own = frozenset({tokenizer.end_of_turn_id, *config.eos_token_id})
        if not path.is_file():
            return cls(stop_ids=own)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            ends, top_k, top_p = found.get("eos_token_id"), found.get("top_k"), found.get("top_p")
            stops = own if ends is None else frozenset(map(int, ends if isinstance(ends, list) else [ends]))
            return cls(
                stop_ids=stops, top_k=0 if top_k is None else int(top_k), top_p=1.0 if top_p is None else float(top_p)
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); take the file that came with the weights"
            ) from None


def asked_of(written: Mapping[str, Any], usual: Usual, where: str) -> Asked:
    """What a task's ``generation_kwargs`` mean.

    Raises:
        ConfigError: They ask for what cannot be done here.
    """
    left = dict(written)
    ends = left.pop("until", None)
    ends = [ends] if isinstance(ends, str) else list(ends or ())
    lengths = [length for name in NEW_TOKENS if (length := left.pop(name, None)) is not None]
    samples, temperature = left.pop("do_sample", None), float(left.pop("temperature", None) or 0.0)
    top_k, top_p = left.pop("top_k", None), left.pop("top_p", None)
    if unknown := [name for name, value in left.items() if name not in NEUTRAL or value != NEUTRAL[name]]:
        raise ConfigError(
            f"{where}: generation_kwargs has {unknown[0]}={left[unknown[0]]!r}, which matslice cannot do; it can do"
            f" until, do_sample, temperature, top_k, top_p and {NEW_TOKENS[0]}"
        )
    if samples and not temperature:
        raise ConfigError(f"{where}: generation_kwargs has do_sample=true without a temperature above 0; give one")
    if samples is False:
        temperature = 0.0  # as the harness has it
    sampling = SamplingConfig(
        max_new_tokens=int(lengths[0]) if lengths else USUAL_NEW_TOKENS,
        temperature=temperature,
        top_k=(usual.top_k if top_k is None else max(int(top_k), 0)) if temperature else 0,
        top_p=(usual.top_p if top_p is None else float(top_p)) if temperature else 1.0,
    )
    return Asked(sampling=sampling, ends=tuple(str(end) for end in ends if end != ""))


@dataclass(frozen=True)
class Endings:
    """When answers are at their end: at ids, or at texts of tokens together."""

    tokenizer: Tokenizer
    ids: frozenset[int]
    texts: tuple[str, ...]
    reach_tokens: int  # how far back a text may begin

    @classmethod
    def of(cls, ends: Sequence[str], stop_ids: Collection[int], tokenizer: Tokenizer) -> Endings:
        """Texts that are special tokens are looked for by id: they are in no decoded text."""
        special = {token.content: number for number, token in tokenizer.added().items() if token.special}
        texts = tuple(end for end in ends if end not in special)
        ids = frozenset({*stop_ids, *(special[end] for end in ends if end in special)})
        reach = max((len(tokenizer.encode(text)) for text in texts), default=0) + MARGIN
        return cls(tokenizer, ids, texts, reach)

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether an answer, asked after each token of it, need not go on."""
        if ids[-1] in self.ids:
            return True
        tail = self.tokenizer.decode(ids[-self.reach_tokens :])
        # A part of the ids may be read in another way than all of them.
        return any(text in tail for text in self.texts) and self.text(ids) != self.tokenizer.decode(ids)

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text, up to what ends it."""
        found = self.tokenizer.decode(until_stop(list(ids), self.ids))
        for end in self.texts:
            found = found.partition(end)[0]
        return found


def seed_of(seed: int, prompt: Sequence[int], turn: int) -> int:
    """What draws the tokens behind a prompt when it is asked for that time; the batch it is in does not matter."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, turn, list(prompt)]).encode()).digest()[:7])


def answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    specs: Sequence[SliceSpec],
    *,
    asked: Asked,
    stop_ids: Collection[int],
    turns: Sequence[int],
) -> list[list[str]]:
    """How each sub-model goes on with each of one batch of prompts, which are all asked alike.

    Where tokens are drawn, ``turns`` has of each prompt how often it was asked before: each time others are drawn.

    Raises:
        InputError: As of ``model.generation.generate.generate``.
    """
    tokenizer = engine.tokenizer
    endings = Endings.of(asked.ends, stop_ids, tokenizer)
    sampling = asked.sampling
    seeds = [seed_of(sampling.seed, prompt, turn) for prompt, turn in zip(prompts, turns, strict=True)]
    found: dict[Shape, list[str]] = {}
    inputs = pad_left(prompts, tokenizer.pad_id)
    for shape, steps in engine.continued(inputs, specs, sampling=sampling, stop_ids=endings.ids, seeds=seeds):
        found[shape] = said_until(endings, steps, len(prompts))
    return [found[spec.shape] for spec in specs]


def said_until(endings: Endings, steps: Iterable[Int[Tensor, " batch"]], rows: int) -> list[str]:
    """The texts of rows of tokens that come step by step; none is asked for when all rows are at their end."""
    said: list[list[int]] = [[] for _ in range(rows)]
    going = set(range(rows))
    for step in steps:
        tokens = step.tolist()
        for place in list(going):
            said[place].append(tokens[place])
            if endings.reached(said[place]):
                going.remove(place)
        if not going:
            break
    return [endings.text(ids) for ids in said]
