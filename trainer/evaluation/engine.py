# SPDX-License-Identifier: Apache-2.0
"""One model in memory, asked as many of its sub-models: what they make of rows whose answers are known, what they say.

Towers and embeddings run once for all sub-models, and layers once for those that begin alike, be it that answers are
known or that prompts are read. Rows of a batch that differ in nothing that is read are read once. What is found under
one sub-model is, to the last bit, what would be found if it were asked alone with the same batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.adapter.lora import PeftModel, base_of
from model.gemma3n import Gemma3n
from model.generation.generate import check_prompts, go_on, said_in
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import Shape, SliceSpec
from trainer.data.ahead import with_table_rows
from trainer.data.collate import Collator
from trainer.data.supervise import TokenRow
from trainer.evaluation.consistency import divergences
from trainer.evaluation.prepared import Prepared
from trainer.loss import TokenScores, token_scores
from trainer.soft_tokens import SharedTowers

NUM_BINS = 10  # of probabilities, for calibration
KEPT_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Supervised tokens whose likeliest token had a probability in one tenth of 0 to 1."""

    tokens: int
    confidence_sum: float  # of those probabilities
    right: int


@dataclass(frozen=True, kw_only=True)
class RowScore:
    """One row under one sub-model; sums are over its supervised tokens.

    Args:
        loss_sum: In nats.
        right: Tokens that greedy decoding would get right.
        bins: Those with the lowest probabilities first.
        agreeing: Tokens of which the reference finds the same the likeliest; None without a reference.
        kl_sum: KL(reference || this), in nats; None without a reference.
    """

    loss_sum: float
    tokens: int
    right: int
    bins: tuple[Bin, ...]
    agreeing: int | None = None
    kl_sum: float | None = None


@dataclass(frozen=True)
class Answers:
    """What a sub-model makes of the supervised tokens of a batch."""

    hidden: Float[Tensor, "labelled dim"]
    scores: TokenScores


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model to measure; it is in evaluation mode from now on.

    Args:
        model: With an adapter or without.
        tokenizer: What generated ids are read by.
        collator: Makes batches of rows.
        towers: The model's; with what is kept of soft tokens.
        reference: The sub-model that all are compared with, usually the parent; None compares with none.
        kept_bytes: About how much of what sub-models have in common is kept for those whose turn is to come.
        unsaid: Ids that are not to be generated, beside those of media, such as those of towers not loaded.
    """

    model: Gemma3n | PeftModel
    tokenizer: Tokenizer
    collator: Collator
    towers: SharedTowers
    reference: SliceSpec | None = None
    kept_bytes: int = KEPT_BYTES
    unsaid: Collection[int] = ()

    def __post_init__(self) -> None:
        self.model.eval()

    @property
    def gemma(self) -> Gemma3n:
        """The model itself, without what wraps it."""
        return base_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    def score(self, rows: Sequence[TokenRow], specs: Sequence[SliceSpec]) -> list[list[RowScore]]:
        """What each sub-model makes of each row, which together are one batch: a list of rows' scores per spec.

        Raises:
            InputError: A medium cannot be decoded.
        """
        return self.score_batch(self.batch_of(rows), specs)

    def batch_of(self, rows: Sequence[TokenRow]) -> Prepared:
        """The rows as one batch; what this takes needs no model, so it can be done ahead.

        Raises:
            InputError: A medium cannot be decoded.
        """
        table = self.gemma.per_layer_table
        return Prepared.of(rows, lambda different: with_table_rows(self.collator(different), table))

    @torch.no_grad()
    def score_batch(self, prepared: Prepared, specs: Sequence[SliceSpec]) -> list[list[RowScore]]:
        """As ``score``, of a batch of rows."""
        asked = prepared.to(self.device)
        inputs = self.towers.encode(asked.batch).inputs
        wanted = distinct(specs if self.reference is None else (self.reference, *specs))
        softcap = self.gemma.config.text.final_logit_softcapping
        reference: Answers | None = None
        early: dict[int, Answers] = {}  # of those that end where the reference goes on
        found: dict[Shape, list[RowScore]] = {}
        shapes = list(wanted)
        for number, hidden in self.gemma.hidden_of_each(inputs, list(wanted.values()), kept_bytes=self.kept_bytes):
            own = hidden[asked.reads, asked.columns]
            scores = token_scores(own[None], self.gemma.head_weight, asked.answers[None], softcap=softcap)
            early[number] = Answers(own, scores)
            if self.reference is not None and number == 0:
                reference = early[number]
            if self.reference is None or reference is not None:
                for waiting in list(early):
                    found[shapes[waiting]] = self.by_row(early.pop(waiting), reference, asked.lengths)
            del hidden, own, scores  # not to be in memory while the next sub-model is run
        return [found[spec.shape] for spec in specs]

    def by_row(self, answers: Answers, reference: Answers | None, lengths: Sequence[int]) -> list[RowScore]:
        """The figures of each row, of which ``lengths`` tokens are supervised."""
        scores, rows = answers.scores, len(lengths)
        row_of = torch.arange(rows, device=answers.hidden.device).repeat_interleave(
            torch.tensor(lengths).to(self.device)
        )

        def sums(values: Tensor, places: Tensor = row_of, size: int = rows) -> list[float]:
            # One after the other, so that a sum hangs neither on the batch nor on the number of threads.
            return torch.zeros(size, dtype=torch.float64).index_add_(0, places.cpu(), values.cpu().double()).tolist()

        tenth = (scores.confidences * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        place = row_of * NUM_BINS + tenth
        binned = [sums(values, place, rows * NUM_BINS) for values in (
            torch.ones_like(scores.confidences), scores.confidences, scores.right)]  # fmt: skip
        losses, right = sums(scores.losses), sums(scores.right)
        agreeing: Sequence[float | None] = [None] * rows
        kl_sums: Sequence[float | None] = [None] * rows
        if reference is not None:
            agreeing = sums(scores.likeliest == reference.scores.likeliest)
            kl_sums = sums(divergences(self.gemma, reference.hidden, answers.hidden))
        return [
            RowScore(
                loss_sum=losses[row], tokens=lengths[row], right=int(right[row]),
                bins=tuple(
                    Bin(tokens=int(tokens), confidence_sum=confidence, right=int(hits))
                    for tokens, confidence, hits in zip(
                        *(column[row * NUM_BINS : (row + 1) * NUM_BINS] for column in binned), strict=True
                    )
                ),
                agreeing=None if (same := agreeing[row]) is None else int(same), kl_sum=kl_sums[row],
            )
            for row in range(rows)
        ]  # fmt: skip

    @torch.no_grad()
    def prompts_of(self, rows: Sequence[TokenRow]) -> Inputs:
        """All tokens of rows as one batch of prompts, padded on the left, with soft tokens for their media.

        Raises:
            InputError: A medium cannot be decoded.
        """
        return self.towers.encode(self.collator.prompts(rows).to(self.device)).inputs

    def generate(
        self, prompts: Inputs, specs: Sequence[SliceSpec], *, sampling: SamplingConfig, stop_ids: Collection[int]
    ) -> list[list[str]]:
        """How each sub-model goes on with each prompt: a list of texts per spec, without what ended them.

        Args:
            prompts: Padded on the left, media decoded or encoded; see ``prompts_of``.
            specs: The sub-models.
            sampling: How tokens are chosen, and how many there may be.
            stop_ids: What ends a text.

        Raises:
            InputError: As of ``model.generation.generate.generate``.
        """
        found: dict[Shape, list[str]] = {}
        for shape, steps in self.continued(prompts, specs, sampling=sampling, stop_ids=stop_ids):
            found[shape] = [self.tokenizer.decode(ids) for ids in said_in(steps, stop_ids)]
        return [found[spec.shape] for spec in specs]

    def continued(
        self,
        prompts: Inputs,
        specs: Sequence[SliceSpec],
        *,
        sampling: SamplingConfig,
        stop_ids: Collection[int],
        seeds: Sequence[int] = (),
    ) -> Iterator[tuple[Shape, Iterator[Int[Tensor, " batch"]]]]:
        """How each sub-model that differs goes on, token by token, as ``model.generation.generate.generate`` says it.

        Layers that sub-models begin with alike read the prompts once for all. What one has read is forgotten when the
        next is asked for, so the tokens of each are to be taken before that; until then it is in memory beside what
        the tokens add to it. ``seeds`` are those of rows, if any.
        """
        check_prompts(prompts, sampling, self.gemma.config.text.max_position_embeddings)
        wanted = list(distinct(specs).values())
        for number, read in self.gemma.read_each(prompts.to(self.device), wanted, kept_bytes=self.kept_bytes):
            spec = wanted[number]
            steps = go_on(
                self.model, read, sampling=sampling, stop_ids=stop_ids, spec=spec, unsaid=self.unsaid, seeds=seeds
            )
            yield spec.shape, steps
            steps.close()  # with what it has read, wherever its text came to an end


def distinct(specs: Sequence[SliceSpec]) -> dict[Shape, SliceSpec]:
    """The sub-models that differ, in the order they first come in: those of other names are measured once."""
    found: dict[Shape, SliceSpec] = {}
    for spec in specs:
        found.setdefault(spec.shape, spec)
    return found
