# SPDX-License-Identifier: Apache-2.0
"""How well one sub-model says what the assistant said in conversations it was not trained on."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.adapter.lora import PeftModel, base_of
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceSpec
from trainer.data.ahead import Ahead, with_table_rows
from trainer.data.batch import IGNORED, Batch
from trainer.data.collate import Collator
from trainer.data.example import Example
from trainer.data.supervise import TokenRow
from trainer.loss import token_scores
from trainer.soft_tokens import SharedTowers


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over examples; those of two sets of examples add up to those of both."""

    loss_sum: float = 0.0
    supervised_tokens: int = 0
    exact: int = 0
    examples: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            loss_sum=self.loss_sum + other.loss_sum,
            supervised_tokens=self.supervised_tokens + other.supervised_tokens,
            exact=self.exact + other.exact,
            examples=self.examples + other.examples,
        )

    @property
    def loss(self) -> float:
        """Mean loss in nats per supervised token."""
        return self.loss_sum / self.supervised_tokens

    @property
    def perplexity(self) -> float:
        """Among how many tokens, all alike, the model seems to choose."""
        return float(np.exp(min(self.loss, 700.0)))  # exp overflows a little above; numpy's, as of a task's figures

    @property
    def accuracy(self) -> float:
        """Share of examples that greedy decoding would answer to the letter."""
        return self.exact / self.examples


def score_batch(model: Gemma3n | PeftModel, batch: Batch, spec: SliceSpec) -> Score:
    """The score of ``batch`` under ``spec``.

    An example is exact if the most likely token at every supervised position is the one that stands there.
    That is what greedy decoding would produce, though nothing is decoded: its first token is the most likely
    one after the prompt; as long as it agrees, decoding goes on from the very text that the model is given
    here; so the two part at the first disagreement or never. (With several assistant turns, each is judged
    given the true ones before it.)
    """
    gemma = base_of(model)
    hidden, _ = gemma.hidden(batch.inputs, spec)
    supervised = batch.labels != IGNORED
    scores = token_scores(
        hidden, gemma.head_weight, batch.labels, softcap=gemma.config.text.final_logit_softcapping
    )  # fmt: skip
    right = torch.ones_like(supervised)
    right[supervised] = scores.right
    return Score(
        loss_sum=scores.losses.sum().item(),
        supervised_tokens=int(supervised.sum()),
        exact=int(right.all(dim=1).sum()),
        examples=batch.examples,
    )


def score_batches(
    model: Gemma3n | PeftModel,
    rows: Sequence[TokenRow],
    specs: Sequence[SliceSpec],
    *,
    collator: Collator,
    batch_size: int,
    towers: SharedTowers | None = None,
    workers: int = 0,
) -> Iterator[list[Score]]:
    """The scores of ``rows`` under each of ``specs``, batch by batch.

    In the end ``model`` is in the mode, training or not, that it was in.

    Args:
        model: With an adapter or without.
        rows: Conversations as tokens.
        specs: The sub-models to measure.
        collator: Makes batches of rows.
        batch_size: Rows in a batch.
        towers: The model's, to run once for all specs; None where no row has media.
        workers: Threads that make batches ahead.

    Raises:
        InputError: A medium cannot be decoded.
    """
    device, table = next(model.parameters()).device, base_of(model).per_layer_table
    was_training = model.training
    model.eval()
    # By length, so that little is padding; the score does not depend on the order.
    by_length = sorted(rows, key=lambda row: len(row.ids))
    batches = Ahead(
        lambda start: with_table_rows(collator(by_length[start : start + batch_size]), table),
        stride=batch_size, end=len(by_length), workers=workers,
    )  # fmt: skip
    with contextlib.closing(batches):
        for start in range(0, len(by_length), batch_size):
            batch = batches(start).to(device)
            with torch.no_grad():  # not around the yield, where it would reach the caller
                encoded = batch if towers is None else towers.encode(batch)
                scores = [score_batch(model, encoded, spec) for spec in specs]
            yield scores
    model.train(was_training)


def total(batches: Iterable[Sequence[Score]], specs: Sequence[SliceSpec]) -> list[Score]:
    """The score under each spec, summed over batches; there may be none."""
    scores = [Score()] * len(specs)
    for batch in batches:
        scores = [score + more for score, more in zip(scores, batch, strict=True)]
    return scores


def majority_accuracy(train: Iterable[Example], validation: Sequence[Example]) -> float:
    """The accuracy of always giving the most frequent training answer: what a model must beat to have read anything."""
    counts = Counter(example.answers for example in train)
    most = max(counts.values())
    answer = min(answers for answers, count in counts.items() if count == most)  # a tie must not hang on file order
    return sum(example.answers == answer for example in validation) / len(validation)
