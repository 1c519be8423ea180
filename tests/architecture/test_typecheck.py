# SPDX-License-Identifier: Apache-2.0
"""Annotations are checked while tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from model.layers.norm import rms_norm
from tests.typecheck import FIRST, ONE_IN, at_times, began


def test_what_fits_no_annotation_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        rms_norm(torch.ones(2, 3, dtype=torch.long), 1e-6)


def test_the_first_calls_of_every_test_are_checked_and_one_in_some_of_the_others() -> None:
    called = at_times(lambda: "plain", lambda: "checked")
    made = [called() for _ in range(10 * ONE_IN)]
    assert made[:FIRST] == ["checked"] * FIRST
    assert made[FIRST:].count("checked") == 10
    began[0] += 1
    assert called() == "checked"
