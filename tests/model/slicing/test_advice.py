# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from model.config import ModelConfig, TextConfig
from model.slicing.advice import advice
from model.slicing.config import slice_config
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import published_slices
from tests.tiny import TINY_TEXT

E4B = TextConfig.parse({})
NARROW, WIDE = 8192, 16384
BLOCK = [20, 21, 22, 23, 24]


def notes(skip: list[int], widths: list[int], config: TextConfig = E4B) -> list[str]:
    return advice(SliceSpec.resolve(SliceConfig(name="mine", skip_layers=skip, ffn_widths=widths), config), config)


@pytest.mark.parametrize("name", published_slices())
def test_nothing_is_said_of_what_google_published(name: str) -> None:
    assert advice(SliceSpec.resolve(published_slices()[name], E4B), E4B) == []


@pytest.mark.parametrize(
    ("skip", "widths", "expected"),
    [
        (BLOCK, [12288], ["width 12288 of layers 0-19, 25-34 was never trained: it is between 8192 and 16384"]),
        (BLOCK, [4096], ["width 4096 of layers 0-19, 25-34 was never trained: it is below both 8192 and 16384"]),
        ([], [NARROW] * 3 + [12288] + [WIDE] * 31, ["widths of Gemma 3n's training; ask for 8192 or 16384, or train"]),
        ([], [NARROW], ["layers 20-24 are narrowed, but trained at full width only: the smaller size of Gemma 3n"]),
        ([], [NARROW], ["leaves layers 20-24 out; keep the full width there, or skip layers 20-24"]),
        ([], [WIDE] * 22 + [12288] + [WIDE] * 12, ["layer 22 is narrowed, but trained at full width only"]),
        ([20, 21], [], ["layers 20-21 of block 20-24 are left out, but training left out the whole block or nothing"]),
        ([25, 26, 27, 28, 29], [], ["block 25-29 is left out, which training never did; only layers 20-24 may go"]),
        (
            [3, 26],
            [],
            ["layer 3 of block 0-4 and layer 26 of block 25-29 are left out, which training never did; only layers"],
        ),
        ([], [12300] + [WIDE] * 34, ["further (at 12288: 12300 is no multiple of 16, which accelerators compute more"]),
        (
            [],
            [7] + [WIDE] * 34,
            ["it is below both 8192 and 16384, the widths of Gemma 3n's training; ask for 8192, or"],
        ),
        ([], [7] + [WIDE] * 34, ["or train the slice further (at 16: 7 is no multiple of 16, which accelerators"]),
        (
            [],
            [4096, 6144, 12288] + [WIDE] * 32,
            ["widths 4096 to 12288 of layers 0-2 were never trained: they are not 8192 and 16384, the widths of Gem"],
        ),
        ([], [4097, 6145] + [WIDE] * 33, ["are below both 8192 and 16384, the widths of Gemma 3n's training; ask for"]),
        ([], [4097, 6145] + [WIDE] * 33, ["ask for 8192, or train the slice further (at multiples of 16: others are"]),
    ],
)
def test_what_was_never_trained_is_said_with_its_remedy(
    skip: list[int], widths: list[int], expected: list[str]
) -> None:
    found = notes(skip, widths)
    assert len(found) == len(expected)
    for note, part in zip(found, expected, strict=True):
        assert re.search(re.escape(part), note)


def test_a_slice_of_e2b_is_not_told_that_its_layers_behind_20_are_optional() -> None:
    e2b = SliceSpec.resolve(published_slices()["Config for official E2B Model"], E4B)
    small = slice_config(ModelConfig(text=E4B), SubModel(e2b)).text
    assert notes([], [], small) == []
    (note,) = notes([20, 21, 22, 23, 24], [], small)
    assert "block 20-24 is left out, which training never did; its parent needs all its layers" in note


def test_a_parent_of_another_shape_is_taken_to_be_trained_alike() -> None:
    assert notes([3, 4, 5], [24], TINY_TEXT) == []  # half of it, though no multiple of 16
    (untrained,) = notes([3, 4, 5], [32], TINY_TEXT)
    assert untrained.startswith("width 32 of layers 0-2, 6-8 was never trained: it is between 24 and 48, the widths of")
    assert "of training, taken for granted to be like Gemma 3n's; ask for 24 or 48, or train" in untrained
    (narrowed,) = notes([], [48] * 3 + [24] + [48] * 5, TINY_TEXT)
    assert "layer 3 is narrowed, but trained at full width only: a smaller size, taken for granted as Gem" in narrowed


@pytest.mark.parametrize("config", [E4B, TINY_TEXT], ids=["e4b", "tiny"])
@pytest.mark.parametrize("divisor", [2, 3, 5, 7])
def test_what_a_note_asks_for_is_not_warned_of(config: TextConfig, divisor: int) -> None:
    width = config.intermediate_size[0] // divisor
    for note in notes([], [width, *config.intermediate_size[1:]], config):
        assert (asked := re.search(r"ask for (\d+)", note))
        assert notes([], [int(asked[1]), *config.intermediate_size[1:]], config) == []


def test_every_layer_of_its_own_width_is_told_in_one_note() -> None:
    widths = [width - 16 * layer - 16 for layer, width in enumerate(E4B.intermediate_size)]
    assert len(notes([*BLOCK], [width for layer, width in enumerate(widths) if layer not in BLOCK])) == 1
