# SPDX-License-Identifier: Apache-2.0
"""Prompts with pictures and sound: the media are read once, and what is said is text."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from model.adapter.lora import AdapterConfig, attach
from model.errors import InputError
from model.gemma3n import Gemma3n
from model.generation.generate import complete, generate, ids_of_media, pad_left
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import SEVEN_KINDS, tiny_config, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

SHORT = SliceConfig(name="short", skip_layers=[3, 4, 5], ffn_widths=[48, 16, 48, 32, 48, 8])
STEPS = 12  # past the window of 8 tokens


@cache
def model() -> Gemma3n:
    return tiny_model(tiny_multimodal_config()).eval()


@torch.no_grad()
def greedy_without_cache(gemma: Gemma3n, inputs: Inputs, spec: SliceSpec | None = None) -> list[list[int]]:
    """Reads everything again for every token, media included, and takes the best that is text."""
    start, unsaid = inputs.ids.shape[1], torch.tensor(ids_of_media(gemma.config))
    for _ in range(STEPS):
        scores = gemma(inputs, spec).logits[:, -1].index_fill(1, unsaid, -torch.inf)
        ids = torch.cat((inputs.ids, scores.argmax(-1)[:, None]), dim=1)
        mask = torch.cat((inputs.mask, torch.ones_like(inputs.mask[:, :1])), dim=1)
        inputs = dataclasses.replace(inputs, ids=ids, mask=mask)
    return inputs.ids[:, start:].tolist()


@pytest.mark.parametrize("kind", SEVEN_KINDS)
def test_greedy_decoding_after_media_equals_decoding_without_a_cache(kind: str) -> None:
    inputs = tiny_multimodal_inputs(model().config, *SEVEN_KINDS[kind])
    found = complete(model(), inputs, sampling=SamplingConfig(max_new_tokens=STEPS), stop_ids=())
    assert found == greedy_without_cache(model(), inputs)


def test_a_spec_generates_from_media_what_the_sliced_model_does() -> None:
    spec, sampling = SliceSpec.resolve(SHORT, model().config.text), SamplingConfig(max_new_tokens=STEPS)
    inputs = tiny_multimodal_inputs(model().config, "text image text audio text", "audio text")
    found = complete(model(), inputs, sampling=sampling, stop_ids=(), spec=spec)
    assert found == complete(slice_module(model(), SubModel(spec)), inputs, sampling=sampling, stop_ids=())
    assert found != complete(model(), inputs, sampling=sampling, stop_ids=())


def test_an_adapter_has_its_say_about_media() -> None:
    adapted = attach(tiny_model(tiny_multimodal_config()), AdapterConfig(rank=4, alpha=8)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    inputs = tiny_multimodal_inputs(model().config, "image text audio")
    found = complete(adapted, inputs, sampling=SamplingConfig(max_new_tokens=STEPS), stop_ids=())
    assert found == greedy_without_cache(adapted, inputs)  # pyright: ignore[reportArgumentType]: forwards to it
    assert found != greedy_without_cache(model(), inputs)


def test_what_is_said_depends_on_the_media() -> None:
    first, second = (tiny_multimodal_inputs(model().config, "text image", seed=seed) for seed in range(2))
    other = dataclasses.replace(first, images=second.images)
    sampling = SamplingConfig(max_new_tokens=STEPS)
    said = [complete(model(), inputs, sampling=sampling, stop_ids=()) for inputs in (first, other)]
    assert said[0] != said[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_no_id_of_a_medium_is_ever_said(temperature: float) -> None:
    gemma = tiny_model(tiny_multimodal_config())
    # Rows of media that outscore any text, whichever sign the hidden state has.
    rows = gemma.model.language_model.embed_tokens.weight.data
    rows[78:] = 5.0 * rows[:18] * torch.tensor([1.0, -1.0]).repeat(9)[:, None]
    prompt = pad_left([[5, 17, 40]], 0)
    assert int(gemma(prompt).logits[0, -1].argmax()) >= 78
    sampling = SamplingConfig(max_new_tokens=200, temperature=temperature)
    assert max(complete(gemma, prompt, sampling=sampling, stop_ids=())[0]) < 78


def test_ids_without_per_layer_rows_are_not_said_by_a_text_only_model_either() -> None:
    assert ids_of_media(tiny_config()) == list(range(80, 96))
    assert ids_of_media(tiny_multimodal_config()) == [78, 79, *range(80, 96)]


def test_only_the_last_token_of_a_prompt_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma, scored = tiny_model(tiny_multimodal_config()), []
    head = gemma.head
    monkeypatch.setattr(gemma, "head", lambda hidden: scored.append(tuple(hidden.shape)) or head(hidden))
    inputs = tiny_multimodal_inputs(gemma.config, "text image text", "text")
    complete(gemma, inputs, sampling=SamplingConfig(max_new_tokens=3), stop_ids=())
    assert scored == [(2, 32)] * 3


def test_towers_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = tiny_model(tiny_multimodal_config())
    seen = []
    see = gemma.model.see
    monkeypatch.setattr(gemma.model, "see", lambda images: seen.append(len(images)) or see(images))
    inputs = tiny_multimodal_inputs(gemma.config, "image text image")
    complete(gemma, inputs, sampling=SamplingConfig(max_new_tokens=5), stop_ids=())
    assert seen == [2]


def test_after_the_prompt_no_one_looks_for_ids_of_media(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma, below = tiny_model(tiny_multimodal_config()), []
    hidden = gemma.hidden
    monkeypatch.setattr(gemma, "hidden", lambda x, *a, **k: below.append(x.ids_below) or hidden(x, *a, **k))
    complete(gemma, pad_left([[5, 17, 40]], 0), sampling=SamplingConfig(max_new_tokens=4), stop_ids=())
    assert below == [41, 80, 80, 80]


def test_media_without_placeholders_are_refused() -> None:
    inputs = tiny_multimodal_inputs(model().config, "image text")
    inputs = dataclasses.replace(inputs, ids=inputs.ids.clamp(max=77))
    with pytest.raises(InputError, match="1 image, but its text has no runs"):
        next(generate(model(), inputs, sampling=SamplingConfig(), stop_ids=()))
