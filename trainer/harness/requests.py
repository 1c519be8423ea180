# SPDX-License-Identifier: Apache-2.0
"""What lm-evaluation-harness asks of a model, made ready as tokens, and what sub-models answer.

It asks in three ways: how likely one text is behind another, how likely a whole text is, and how one goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from model.errors import InputError
from model.slicing.spec import SliceSpec
from trainer.data.supervise import TokenRow
from trainer.evaluation.engine import Engine, RowScore
from trainer.harness.encoding import Encoding, longest_first
from trainer.harness.generation import Asked, Usual, answers, asked_of

Answer = Any  # (log-likelihood, whether greedy decoding says it), a log-likelihood, or a text
Told = Callable[[int], None]


class RequestKind(StrEnum):
    """The ways to ask, by the names of the harness."""

    loglikelihood = "loglikelihood"
    loglikelihood_rolling = "loglikelihood_rolling"
    generate_until = "generate_until"


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """One thing asked: rows that are scored together, or a prompt to go on with.

    Args:
        kind: Which of the ways.
        rows: What is scored; of one text behind another a single row.
        prompt: What is continued.
        asked: How it is.
        turn: How often the same was asked before, as where several answers are wanted; see ``in_turn``.
    """

    kind: RequestKind
    rows: tuple[TokenRow, ...] = ()
    prompt: tuple[int, ...] = ()
    asked: Asked | None = None
    turn: int = 0

    @property
    def length(self) -> int:
        """Of its longest sequence of tokens."""
        return max((len(row.ids) for row in self.rows), default=len(self.prompt))

    @property
    def weight(self) -> int:
        """The sequences that it is."""
        return max(len(self.rows), 1)

    @property
    def as_bytes(self) -> bytes:
        """All that is asked, for a hash."""
        told = [f"\n{self.kind} {len(self.rows)} {list(self.prompt)} {self.asked.key if self.asked else ''}".encode()]
        for row in self.rows:
            told += [f" {len(row.ids)} ".encode(), row.ids.numpy().tobytes(), row.supervised.numpy().tobytes()]
        return b"".join(told)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Makes requests of what the harness gives: a kind, and texts with settings.

    Args:
        encoding: How texts become tokens.
        usual: What holds where a task does not say how to generate.
        seed: Of tokens that are drawn.
    """

    encoding: Encoding
    usual: Usual
    seed: int = 0

    def of(self, kind: str, given: Sequence[Any], where: str) -> Request:
        """One request.

        Raises:
            ConfigError: It asks for what cannot be done here.
            InputError: It has media, or its texts cannot be scored.
        """
        if kind not in RequestKind.__members__:
            raise InputError(f"{where}: asks for '{kind}'; matslice answers {', '.join(RequestKind)}")
        if any(isinstance(part, Mapping) and {"visual", "audio"} & part.keys() for part in given):
            raise InputError(f"{where}: has images or sound, which are not passed on yet; leave the task out")
        match RequestKind(kind):
            case RequestKind.loglikelihood:
                context, continuation = given
                split = self.encoding.pair(context, continuation)
                return Request(kind=RequestKind.loglikelihood, rows=(self.encoding.row(split, where),))
            case RequestKind.loglikelihood_rolling:
                (text,) = given
                rows = tuple(self.encoding.row(split, where) for split in self.encoding.windows(text))
                return Request(kind=RequestKind.loglikelihood_rolling, rows=rows)
            case RequestKind.generate_until:
                text, settings = given
                asked = asked_of(settings, self.usual, where)
                asked = replace(asked, sampling=replace(asked.sampling, seed=self.seed))
                prompt = self.encoding.prompt(text, asked.sampling.max_new_tokens)
                return Request(kind=RequestKind.generate_until, prompt=prompt, asked=asked)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A model that is asked.

    Args:
        engine: The model.
        stop_ids: What ends its answers, beside what a task says.
        batch_size: Sequences that it reads at once.
        told: Is given how many requests have been answered since.
    """

    engine: Engine
    stop_ids: frozenset[int]
    batch_size: int
    told: Told | None = None

    def answers(self, requests: Sequence[Request], specs: Sequence[SliceSpec]) -> list[list[Answer]]:
        """What each sub-model answers to each request, as the harness expects it.

        Raises:
            InputError: A request does not fit into the model.
        """
        found: list[list[Answer]] = [[None] * len(requests) for _ in specs]
        scored = [place for place, request in enumerate(requests) if request.asked is None]
        for answers_of, scores in zip(found, self.scores([requests[place] for place in scored], specs), strict=True):
            for place, rows in zip(scored, scores, strict=True):
                answers_of[place] = answer_of(requests[place].kind, rows)
        for places, asked in self.alike(requests):
            prompts = [requests[place].prompt for place in places]
            turns = [requests[place].turn for place in places]
            said = answers(self.engine, prompts, specs, asked=asked, stop_ids=self.stop_ids, turns=turns)
            for answers_of, texts in zip(found, said, strict=True):
                for place, text in zip(places, texts, strict=True):
                    answers_of[place] = text
            self.tell(len(places))
        return found

    def scores(self, requests: Sequence[Request], specs: Sequence[SliceSpec]) -> list[list[list[RowScore]]]:
        """Of each sub-model and request the scores of its rows."""
        rows = [row for request in requests for row in request.rows]
        found: list[list[RowScore | None]] = [[None] * len(rows) for _ in specs]
        for places in batched(longest_first([len(row.ids) for row in rows]), self.batch_size):
            scores = self.engine.score([rows[place] for place in places], specs)
            for scores_of, batch in zip(found, scores, strict=True):
                for place, score in zip(places, batch, strict=True):
                    scores_of[place] = score
            self.tell(len(places))
        per_spec = []
        for scores_of in found:
            coming = iter([score for score in scores_of if score is not None])
            per_spec.append([[next(coming) for _ in request.rows] for request in requests])
        return per_spec

    def alike(self, requests: Sequence[Request]) -> Iterable[tuple[list[int], Asked]]:
        """Batches of places of requests to go on with, those of a batch asked alike."""
        groups: dict[str, list[int]] = {}
        for place in longest_first([request.length for request in requests]):
            if (asked := requests[place].asked) is not None:
                groups.setdefault(asked.key, []).append(place)
        for group in groups.values():
            asked = requests[group[0]].asked
            assert asked is not None
            for places in batched(group, self.batch_size):
                yield places, asked

    def tell(self, done: int) -> None:
        """Say how far it is, if somebody wants to know."""
        if self.told is not None:
            self.told(done)


def answer_of(kind: RequestKind, scores: Sequence[RowScore]) -> Answer:
    """What is answered of a request whose rows have these scores."""
    likelihood = -sum(score.loss_sum for score in scores) + 0.0  # no minus zero
    if kind is RequestKind.loglikelihood_rolling:
        return likelihood
    return likelihood, all(score.right == score.tokens for score in scores)


def in_turn(requests: Iterable[Request]) -> list[Request]:
    """The requests, each knowing how often the same prompt is asked before it."""
    before: Counter[tuple[tuple[int, ...], str]] = Counter()
    found = []
    for request in requests:
        if request.asked is not None:
            key = request.prompt, request.asked.key
            request = replace(request, turn=before[key])  # noqa: PLW2901
            before[key] += 1
        found.append(request)
    return found


def batched(places: Sequence[int], size: int) -> Iterable[list[int]]:
    """So many at a time, in order."""
    for start in range(0, len(places), size):
        yield list(places[start : start + size])


def hash_of(settings: Mapping[str, Any], requests: Iterable[Request]) -> str:
    """A hash of settings and of all that is asked, in order."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for request in requests:
        digest.update(request.as_bytes)
    return digest.hexdigest()
