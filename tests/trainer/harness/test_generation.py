# SPDX-License-Identifier: Apache-2.0
"""Answers end where they are asked to, and are asked for as tasks of lm-evaluation-harness say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckpointError, ConfigError
from model.generation.sampling import SamplingConfig
from tests.tiny import tiny_model
from tests.trainer.harness.parts import FULL, PUBLISHED, SHORT, TEXT, asked, engine_of, harness_model, tokenizer
from trainer.harness.generation import Endings, Usual, answers, asked_of

USUAL = Usual(stop_ids=frozenset({1, 6}), top_k=64, top_p=0.95)
MODEL = tiny_model(TEXT)
PROMPTS = ("The value", "If a class is", "Return")


def test_a_task_that_says_nothing_is_answered_greedily() -> None:
    found = asked_of({}, USUAL, "here")
    assert found.sampling == SamplingConfig(max_new_tokens=256)
    assert found.ends == ()


@pytest.mark.parametrize("key", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_every_name_for_the_number_of_tokens_is_known(key: str) -> None:
    assert asked_of({key: 7}, USUAL, "here").sampling.max_new_tokens == 7


def test_what_a_task_leaves_open_of_drawing_the_checkpoint_says() -> None:
    sampling = asked_of({"temperature": 0.7, "do_sample": True}, USUAL, "here").sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 64, 0.95)
    sampling = asked_of({"temperature": 0.7, "top_k": 3, "top_p": 1.0}, USUAL, "here").sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 3, 1.0)
    assert asked_of({"temperature": 0.7, "do_sample": False}, USUAL, "here").sampling.temperature == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "here: generation_kwargs has num_beams=4, which matslice cannot do"),
        ({"do_sample": True}, "do_sample=true without a temperature above 0"),
        ({"max_gen_toks": 0}, "max_new_tokens is 0; it must be 1 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked_of(settings, USUAL, "here")


def test_a_checkpoint_says_what_ends_answers(tmp_path: Path) -> None:
    assert Usual.read(tmp_path, tokenizer(), TEXT.text).stop_ids == {6, *TEXT.text.eos_token_id}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(PUBLISHED | {"eos_token_id": 9}))
    assert Usual.read(tmp_path, tokenizer(), TEXT.text) == Usual(stop_ids=frozenset({9}), top_k=64, top_p=0.95)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: cannot be read"):
        Usual.read(tmp_path, tokenizer(), TEXT.text)


def test_an_answer_ends_at_a_text_of_several_tokens_and_without_it() -> None:
    endings = Endings.of([" end", "\n\n"], {1}, tokenizer())
    ids = tokenizer().encode("some words end here")
    reached = [endings.reached(ids[: number + 1]) for number in range(len(ids))]
    assert reached.index(True) == len(tokenizer().encode("some words end")) - 1
    assert endings.text(ids) == "some words"
    assert endings.text([*tokenizer().encode("some"), 1, *tokenizer().encode("more")]) == "some"


def test_a_special_token_ends_an_answer_though_no_text_shows_it() -> None:
    endings = Endings.of(["<end_of_turn>"], {1}, tokenizer())
    ids = [*tokenizer().encode("some"), tokenizer().end_of_turn_id]
    assert endings.reached(ids)
    assert endings.text([*ids, *tokenizer().encode("more")]) == "some"


def test_an_answer_is_the_whole_one_up_to_its_end_however_early_it_is_left() -> None:
    engine = engine_of(MODEL)
    prompts, turns = [tokenizer().encode_marked(text) for text in PROMPTS], [0] * len(PROMPTS)
    long = asked_of({"max_gen_toks": 16}, USUAL, "here")
    (whole,) = answers(engine, prompts, [FULL], asked=long, stop_ids={1, 6}, turns=turns)
    for text in whole:
        end = text[len(text) // 2 :][:2]
        short = asked_of({"max_gen_toks": 16, "until": [end]}, USUAL, "here")
        cut, other = answers(engine, prompts, [FULL, SHORT], asked=short, stop_ids={1, 6}, turns=turns)
        assert cut == [one.partition(end)[0] for one in whole]
        assert [other] == answers(engine, prompts, [SHORT], asked=short, stop_ids={1, 6}, turns=turns)


@pytest.mark.parametrize("spec", [FULL, SHORT], ids=lambda spec: spec.name)
def test_answers_do_not_depend_on_the_batch(spec: Any) -> None:
    settings = {"max_gen_toks": 12, "until": ["\n\n"]}
    others = {"max_gen_toks": 5}
    requests = asked(*[(text, settings) for text in PROMPTS], ("The value", others), ("", settings))
    together = harness_model(MODEL, spec, batch_size=4).generate_until(requests)
    assert together == harness_model(MODEL, spec, batch_size=1).generate_until(requests)
    assert len(set(together)) == len(together)


def test_drawn_answers_are_the_same_for_a_seed_and_others_for_another() -> None:
    requests = asked(*[("The value", {"max_gen_toks": 12, "temperature": 1.0})] * 4)
    found = harness_model(MODEL, seed=1).generate_until(requests)
    assert found == harness_model(MODEL, seed=1).generate_until(requests)
    assert found != harness_model(MODEL, seed=2).generate_until(requests)
    assert len(set(found)) == 4  # one asked several times, in two batches


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_what_is_drawn_does_not_depend_on_the_batch(batch_size: int) -> None:
    drawn = {"max_gen_toks": 12, "temperature": 1.0}
    requests = asked(
        *[("The value", drawn)] * 8, *[(text, drawn) for text in PROMPTS], ("The value", {"max_gen_toks": 3})
    )
    found = harness_model(MODEL, seed=1, batch_size=batch_size).generate_until(requests)
    assert len(set(found[:9])) == 9  # as often as it is asked, also apart from the others
    assert found == harness_model(MODEL, seed=1, batch_size=5).generate_until(requests)
    first = harness_model(MODEL, seed=1, batch_size=batch_size).generate_until(requests[:2])
    assert first == found[:2]  # more draws leave the first ones
