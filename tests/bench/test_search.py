# SPDX-License-Identifier: Apache-2.0
"""The study of search methods measures what it says, goes on where it stopped, and tells regret rightly."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.gemma3n import Gemma3n
from tests.bench.search import NUM_BUDGETS, Truth, everything, run
from tests.bench.search_measure import Losses, enumerated, losses_of
from tests.bench.search_model import (
    CONFIG,
    ROW_TOKENS,
    SCALES,
    Split,
    all_specs,
    files,
    rows_of,
    texts,
    trained,
)  # fmt: skip
from trainer.data.collate import Collator
from trainer.loss import token_scores
from trainer.search.methods import SearchMethod
from trainer.step import loss_sum

SMALL = SCALES["small"]


def made_up(rows: int = 4) -> Losses:
    """Wider is better, the deeper the more; rows and splits differ a little."""
    chance = np.random.default_rng(0)
    levels = np.array([[int(digit) for digit in spec.name[1:]] for spec in all_specs()])
    loss = 2 - 0.02 * (levels * np.arange(1, 9)).sum(axis=1) / 8
    return Losses({
        split: loss[:, None] + 0.1 * chance.normal(size=(1, rows)) + 0.001 * chance.normal(size=(len(loss), rows))
        for split in Split
    })  # fmt: skip


def test_splits_and_training_share_no_file() -> None:
    # Small ones, such as an __init__.py that is empty, may well be alike.
    parts = {part: {file for file in own if len(file) > 500} for part, own in files().items()}
    assert all(sum(map(len, own)) > 100_000 for own in parts.values())
    for one, other in itertools.combinations(parts.values(), 2):
        assert not one & other


def test_regret_is_told_against_all_sub_models() -> None:
    truth = Truth.of(made_up())
    row = run(truth, SearchMethod.surrogate, 65, seed=0)
    assert row.evaluations <= 65
    assert len(row.picks) == NUM_BUDGETS
    assert (row.search_regrets >= 0).all()
    assert row.search_regrets.mean() < 0.002
    assert row.r2 is not None
    assert row.r2 > 0.9
    assert all(truth.prices[place] <= budget for place, budget in zip(row.picks, truth.budgets, strict=True))
    whole = everything(truth)
    assert whole.search_regrets.max() == 0
    both = truth.losses.of(Split.search) + truth.losses.of(Split.calibration)
    for place, other, budget in zip(whole.picks, row.picks, truth.budgets, strict=True):
        assert truth.prices[place] <= budget
        assert both[place] == both[truth.prices <= budget].min() <= both[other]


def test_losses_are_those_of_the_model() -> None:
    model = Gemma3n.build(CONFIG)
    model.initialize(0)
    batch = Collator(CONFIG.text.pad_token_id)(rows_of(texts()[1][Split.search], count=2, seed=1))
    specs = [*all_specs()[:4], *all_specs()[5::1300]]
    found = losses_of(model.eval(), batch, specs, compiled=False)
    for number, hidden in model.hidden_of_each(batch.inputs, specs, kept_bytes=1 << 20):
        scores = token_scores(hidden, model.head_weight, batch.labels, softcap=CONFIG.text.final_logit_softcapping)
        np.testing.assert_allclose(found[number], scores.losses.view(batch.labels.shape).mean(dim=1), rtol=1e-5)


@pytest.mark.slow  # half a minute: the run names every one of the 6,561 sizes that it trains
def test_losses_are_those_of_each_sub_model_and_an_interrupted_enumeration_goes_on(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", SMALL, threads=1)
    specs = all_specs()[::1300]
    two = dataclasses.replace(SMALL, measured_rows=2, batches=dict.fromkeys(Split, 2))
    one = dataclasses.replace(SMALL, measured_rows=2, batches=dict.fromkeys(Split, 1))
    path = tmp_path / "losses.npz"
    first = enumerated(model, one, path, specs=specs)
    stored = dict(np.load(path))
    both = enumerated(model, two, path, specs=specs)
    with pytest.raises(InputError, match="another model"):
        enumerated(model, two, path, specs=specs[1:])
    assert both.num_bytes(Split.report) == 2 * first.num_bytes(Split.report) == 4 * ROW_TOKENS
    for split in Split:
        np.testing.assert_array_equal(both.rows[split][:, :2], stored[f"{split}_0"])
        batch = Collator(CONFIG.text.pad_token_id)(rows_of(texts()[1][split], count=4, seed=1))
        with torch.no_grad():
            sums = [loss_sum(model, batch.inputs, batch.labels, spec).item() for spec in specs]
        np.testing.assert_allclose(both.of(split), np.array(sums) / both.num_bytes(split), rtol=1e-5)
