# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.tiny import TINY_TEXT

E4B = TextConfig.parse({})


def test_the_published_e2b_is_a_legal_part_of_e4b() -> None:
    spec = SliceSpec.resolve(SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192]), E4B)
    assert spec.kept_layers == (*range(20), *range(25, 35))
    assert spec.ffn_widths == (8192,) * 30


def test_nothing_written_means_the_parent() -> None:
    assert SliceSpec.resolve(SliceConfig(name="full"), E4B) == SliceSpec.full(E4B)


@pytest.mark.parametrize(
    ("skip", "widths", "message"),
    [
        ([19], [], r"layer 19 is skipped, but layer 24 \(full_attention\) reads its keys and values; keep 19"),
        ([18], [], r"layer 18 is skipped, but layer 20 \(sliding_attention\) reads"),
        ([35], [], r"skip_layers has \[35\], but the parent has layers 0 to 34"),
        ([-1], [], r"skip_layers has \[-1\]"),
        (list(range(35)), [], "leaves no layer"),
        ([], [8192, 8192], "2 ffn_widths for 35 kept layers; give one per kept layer, or a single width"),
        ([], [16385], "layer 0 asks for width 16385; its parent has 1 to 16384"),
        ([], [0], "layer 0 asks for width 0"),
    ],
)
def test_what_is_no_part_of_the_parent_is_refused(skip: list[int], widths: list[int], message: str) -> None:
    with pytest.raises(SliceError, match=f"slice 'mine': .*{message}"):
        SliceSpec.resolve(SliceConfig(name="mine", skip_layers=skip, ffn_widths=widths), E4B)


def test_a_producer_may_go_when_all_its_readers_go() -> None:
    readers_of_19 = [24, 29, 34]
    spec = SliceSpec.resolve(SliceConfig(name="local", skip_layers=[19, *readers_of_19]), E4B)
    assert 19 not in spec.kept_layers


@pytest.mark.parametrize(
    ("kept", "widths", "message"),
    [
        ((), (), "must be ascending"),
        ((0, 0, 1), (8, 8, 8), "must be ascending"),
        ((1, 0), (8, 8), "must be ascending"),
        ((0, 9), (8, 8), "this model has layers 0 to 8; resolve the slice for this model"),
        ((-1, 0), (8, 8), "this model has layers 0 to 8"),
        ((0, 1), (8,), "1 widths for 2 kept layers"),
        ((True, 2), (8, 8), "kept_layers has True; layers are whole numbers from 0 on; write a whole number"),
    ],
)
def test_a_spec_made_by_hand_is_checked_all_the_same(
    kept: tuple[Any, ...], widths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SliceError, match=message):
        SliceSpec("by hand", kept, widths).check(TINY_TEXT)


def test_a_row_must_be_put_in_before_a_slice_is_resolved() -> None:
    with pytest.raises(SliceError, match=r"slice 'mine': csv is None and row 'Main model', but .*written_in makes of"):
        SliceSpec.resolve(SliceConfig(name="mine", row="Main model"), E4B)


@pytest.mark.parametrize(
    ("kept", "widths", "message"),
    [
        ((0, 99), (1, 1), "slice 'second': keeps layers 0 to 99, but this model has layers 0 to 2"),
        ((0, -1), (1, 1), "must be ascending"),
        ((0, 1), (1,), "1 widths for 2 kept layers"),
        ((0, 2), (1, 9), "slice 'second': layer 2 asks for width 9; its parent has 1 to 8"),
    ],
)
def test_a_part_of_a_sub_model_has_nothing_that_the_sub_model_has_not(
    kept: tuple[int, ...], widths: tuple[int, ...], message: str
) -> None:
    first = SliceSpec("first", (0, 1, 7), (8, 16, 8))
    assert first.then(SliceSpec("second", (0, 2), (1, 8))) == SliceSpec("second", (0, 7), (1, 8))
    with pytest.raises(SliceError, match=message):
        first.then(SliceSpec("second", kept, widths))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": (Modality.text, Modality.vision)}, "asks for vision, which slice 'first' leaves out"),
        ({"audio_layers": (0, 2)}, r"keeps layers \[0, 2\] of the audio tower; they must be .* among 0 to 1"),
        ({"audio_layers": (True,)}, "kept audio layers are whole numbers from 0 on, and one is True"),
    ],
)
def test_a_part_of_a_sub_model_has_no_tower_or_audio_layer_that_the_sub_model_has_not(
    changes: dict[str, Any], message: str
) -> None:
    spec = SliceSpec("first", (0, 1), (8, 8))
    first = SubModel(spec, (Modality.text, Modality.audio), audio_layers=(1, 4))
    second = SubModel(SliceSpec("second", (0,), (8,)))
    assert first.then(replace(second, modalities=(Modality.audio,), audio_layers=(1,))).audio_layers == (4,)
    assert first.then(replace(second, modalities=())).modalities == ()
    with pytest.raises(SliceError, match=f"slice 'second': .*{message}"):
        first.then(replace(second, **changes))
