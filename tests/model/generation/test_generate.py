# SPDX-License-Identifier: Apache-2.0
"""Decoding over the cache equals decoding without one, for every row of a batch and every spec."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from model.errors import InputError
from model.gemma3n import Gemma3n
from model.generation.generate import complete, generate, pad_left
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import tiny_config, tiny_model

PROMPTS = [[5, 17, 40, 8, 90, 3, 71, 22, 64, 31, 12, 9], [33, 7], [60, 61, 62, 63, 64]]
SHORT = SliceConfig(name="short", skip_layers=[3, 4, 5], ffn_widths=[48, 16, 48, 32, 48, 8])
TEXT_IDS = tiny_config().text.vocab_size_per_layer_input  # those behind them belong to media


@cache
def model() -> Gemma3n:
    return tiny_model().eval()


def spec_named(name: str) -> SliceSpec | None:
    return SliceSpec.resolve(SHORT, model().config.text) if name == "short" else None


@torch.no_grad()
def greedy_without_cache(prompt: list[int], steps: int, spec: SliceSpec | None) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(steps):
        best = model()(Inputs.of(ids), spec).logits[:, -1:, :TEXT_IDS].argmax(-1)
        ids = torch.cat((ids, best), dim=1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["full", "short"])
def test_greedy_decoding_equals_decoding_without_a_cache(name: str) -> None:
    # 30 steps are several times the window of 8 tokens.
    spec = spec_named(name)
    found = complete(model(), pad_left(PROMPTS, 0), sampling=SamplingConfig(max_new_tokens=30), stop_ids=(), spec=spec)
    assert found == [greedy_without_cache(prompt, 30, spec) for prompt in PROMPTS]


def test_a_spec_generates_what_the_sliced_model_does() -> None:
    spec = spec_named("short")
    assert spec is not None
    sampling = SamplingConfig(max_new_tokens=12)
    sliced = complete(slice_module(model(), SubModel(spec)), pad_left(PROMPTS, 0), sampling=sampling, stop_ids=())
    assert complete(model(), pad_left(PROMPTS, 0), sampling=sampling, stop_ids=(), spec=spec) == sliced


def test_a_seed_repeats_a_sample() -> None:
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    first, second = (complete(model(), pad_left(PROMPTS, 0), sampling=sampling, stop_ids=()) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_sample() -> None:
    samples = {
        str(complete(model(), pad_left(PROMPTS, 0), sampling=SamplingConfig(temperature=1.0, seed=seed), stop_ids=()))
        for seed in range(3)
    }
    assert len(samples) == 3


def test_a_row_ends_before_its_stop_token() -> None:
    free = complete(model(), pad_left(PROMPTS, 0), sampling=SamplingConfig(max_new_tokens=12), stop_ids=())
    stop = free[0][4]
    stopped = complete(model(), pad_left(PROMPTS, 0), sampling=SamplingConfig(max_new_tokens=12), stop_ids={stop})
    for row, before in zip(stopped, free, strict=True):
        assert row == (before[: before.index(stop)] if stop in before else before)


def test_a_stopped_row_yields_padding() -> None:
    inputs = pad_left(PROMPTS, 0)
    first = next(generate(model(), inputs, sampling=SamplingConfig(max_new_tokens=1), stop_ids=()))
    steps = list(generate(model(), inputs, sampling=SamplingConfig(max_new_tokens=3), stop_ids={int(first[0])}))
    assert steps[1][0] == steps[2][0] == 0


def test_generation_ends_when_all_rows_have_stopped() -> None:
    everything = set(range(tiny_config().text.vocab_size))
    steps = list(generate(model(), pad_left(PROMPTS, 0), sampling=SamplingConfig(), stop_ids=everything))
    assert len(steps) == 1


def test_the_model_is_left_in_its_mode() -> None:
    training = tiny_model().train()
    complete(training, pad_left(PROMPTS, 0), sampling=SamplingConfig(max_new_tokens=2), stop_ids=())
    assert training.training


def test_padding_on_the_right_is_refused() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    inputs = Inputs(ids=torch.ones(2, 2, dtype=torch.long), mask=mask)
    with pytest.raises(InputError, match="pad prompts on the left"):
        next(generate(model(), inputs, sampling=SamplingConfig(), stop_ids=()))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        pad_left([[1], []], 0)


def test_more_tokens_than_positions_are_refused() -> None:
    sampling = SamplingConfig(max_new_tokens=512)
    with pytest.raises(InputError, match="512 make 513; the model has 512 positions"):
        next(generate(model(), pad_left([[1]], 0), sampling=sampling, stop_ids=()))
