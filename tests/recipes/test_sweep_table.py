# SPDX-License-Identifier: Apache-2.0
"""What the terminal says of a sweep's figures."""

import dataclasses
import math

from recipes.sweep import main_figure
from tests.trainer.sweep.page_rows import figure, sweep_rows


def test_a_figure_stands_with_its_interval_or_with_why_there_is_none() -> None:
    row = sweep_rows(every=4)[0]
    loss = figure(2.5, 0.25, "nats per token", higher=False)
    unsure = dataclasses.replace(loss, low=math.nan, high=math.nan)
    nothing = dataclasses.replace(unsure, value=math.nan)
    told = [
        main_figure(dataclasses.replace(row, num_items=number, metrics={"loss": found}))
        for number, found in ((1_200, loss), (1_200, unsure), (1, unsure), (7, nothing))
    ]
    assert told == ["2.5000 (2.2500 to 2.7500)", "2.5000 (all 1,200 items alike)", "2.5000 (of one item)", "–"]
    assert main_figure(None) == "–"
