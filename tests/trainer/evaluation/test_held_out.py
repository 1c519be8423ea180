# SPDX-License-Identifier: Apache-2.0
"""A score says what the model would do, whatever the batches it was measured in."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.checkpoint.load import load
from model.checkpoint.saving import save
from model.inputs import Inputs
from model.layers.embedding import HostTable, TablePlacement, TableRows
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_TEXT, tiny_model
from tests.trainer.parts import SLICES, conversation, rows, spelling
from trainer.data.collate import Collator
from trainer.data.supervise import TokenRow
from trainer.evaluation.held_out import Score, majority_accuracy, score_batches, total

FULL = SliceSpec.full(TINY_TEXT)
SPECS = {name: SliceSpec.resolve(written, TINY_TEXT) for name, written in SLICES.items()}


def measured(of: Sequence[TokenRow], spec: SliceSpec = FULL, *, batch_size: int) -> Score:
    """The tiny model's score."""
    (score,) = total(score_batches(tiny_model(), of, [spec], collator=Collator(0), batch_size=batch_size), [spec])
    return score


def with_greedy_answer(row: TokenRow, spec: SliceSpec) -> TokenRow:
    """The same prompt, and as many tokens as the answer has, decoded greedily by the tiny model."""
    model, first = tiny_model(), int(row.supervised.nonzero()[0])
    ids = row.ids[:first]
    for _ in range(int(row.supervised.sum())):
        logits = model(Inputs.of(ids[None]), spec=spec).logits[0, -1]
        ids = torch.cat((ids, logits.argmax()[None]))
    return TokenRow(ids, row.supervised[: len(ids)], row.where)


@pytest.mark.parametrize("name", SPECS)
def test_an_example_is_exact_if_greedy_decoding_would_say_it(name: str) -> None:
    decoded = [with_greedy_answer(row, SPECS[name]) for row in rows(spelling(4))]
    wrong = decoded[0].ids.clone()
    wrong[-1] = (wrong[-1] + 1) % TINY_TEXT.vocab_size
    other = TokenRow(wrong, decoded[0].supervised, "")
    score = measured([*decoded, other], SPECS[name], batch_size=2)
    assert (score.exact, score.examples, score.accuracy) == (4, 5, 0.8)


def test_the_score_does_not_depend_on_the_batch_size() -> None:
    one, many = (measured(rows(spelling(7)), batch_size=size) for size in (1, 5))
    assert one.loss == pytest.approx(many.loss, rel=1e-5)  # float32 sums in another order
    assert (one.exact, one.examples, one.supervised_tokens) == (many.exact, many.examples, many.supervised_tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_a_table_away_from_the_device_come_ahead_and_change_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    save(tiny_model(), tmp_path / "model")
    gather, threads = HostTable.gather, set[str]()

    def watched(table: HostTable, ids: torch.Tensor) -> TableRows:
        threads.add(threading.current_thread().name.partition("_")[0])
        return gather(table, ids)

    monkeypatch.setattr(HostTable, "gather", watched)
    specs = list(SPECS.values())
    expected, found = (
        total(
            score_batches(
                load(tmp_path / "model", dtype=torch.float32, per_layer_table=placement), rows(spelling(7)), specs,
                collator=Collator(0), batch_size=2, workers=workers,
            ), specs,
        )
        for placement in (TablePlacement.device, TablePlacement.host)
    )  # fmt: skip
    assert found == expected
    assert threads == ({"read ahead"} if workers else {threading.current_thread().name})


def test_the_score_of_all_is_the_sum_of_the_scores_of_the_parts() -> None:
    all_rows = rows(spelling(6))
    first, second, both = (measured(part, batch_size=1) for part in (all_rows[:2], all_rows[2:], all_rows))
    assert (first + second).loss == pytest.approx(both.loss, rel=1e-12)  # the same float64 terms in another order


def test_sizes_measured_together_score_as_each_does_alone() -> None:
    of, specs = rows(spelling(5)), list(SPECS.values())
    together = total(score_batches(tiny_model(), of, specs, collator=Collator(0), batch_size=2), specs)
    assert together == [measured(of, spec, batch_size=2) for spec in specs]


def test_measuring_leaves_the_model_in_training_mode_and_without_gradients() -> None:
    model = tiny_model().train()
    for (score,) in score_batches(model, rows(spelling(2)), [FULL], collator=Collator(0), batch_size=1):
        assert score.examples == 1
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_and_perplexity_are_per_supervised_token() -> None:
    score = Score(loss_sum=6.0, supervised_tokens=4, exact=1, examples=2)
    assert (score.loss, score.accuracy) == (1.5, 0.5)
    assert score.perplexity == pytest.approx(math.exp(1.5))


def test_the_majority_answer_is_the_most_frequent_one_of_training() -> None:
    train = [conversation("q", answer) for answer in ("yes", "no", " yes ")]
    validation = [conversation("q", answer) for answer in ("no", "no", "yes", "maybe")]
    assert majority_accuracy(train, validation) == 0.25


def test_a_tie_between_answers_does_not_hang_on_their_order() -> None:
    train = [conversation("q", answer) for answer in ("no", "yes")]
    validation = [conversation("q", "no"), conversation("q", "yes"), conversation("q", "yes")]
    assert majority_accuracy(train, validation) == majority_accuracy(train[::-1], validation)
