# SPDX-License-Identifier: Apache-2.0
"""What lm-evaluation-harness is answered is what the sub-model's own scores say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from model.errors import InputError
from model.inputs import Inputs
from model.processor.chat import CHAT_TEMPLATE, Message, Role, render
from tests.tiny import tiny_model
from tests.trained_tokenizer import TEXTS
from tests.trainer.harness.parts import FULL, SHORT, TEXT, asked, harness_model, requests_of, tokenizer
from trainer.harness.chat import Chat

MODEL = tiny_model(TEXT)
PAIRS = [(TEXTS[5], " None"), ("The value", " is returned."), ("", "Return"), ("x = ", "1"), (TEXTS[9], " else")]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is it? "}]


@torch.no_grad()
def directly(context: str, continuation: str, spec: Any) -> tuple[float, bool]:
    """From the scores of the whole vocabulary."""
    split = requests_of().encoding.pair(context, continuation)
    ids = torch.tensor([[*split.given, *split.scored]])
    logits = MODEL(Inputs(ids=ids[:, :-1], mask=torch.ones_like(ids[:, :-1], dtype=torch.bool)), spec).logits[0]
    logits = logits[-len(split.scored) :].log_softmax(dim=-1)
    answer = ids[0, -len(split.scored) :]
    return float(logits.gather(1, answer[:, None]).sum()), bool((logits.argmax(dim=1) == answer).all())


@pytest.mark.parametrize("spec", [FULL, SHORT], ids=lambda spec: spec.name)
def test_a_log_likelihood_is_the_sum_over_what_is_scored(spec: Any) -> None:
    found = harness_model(MODEL, spec).loglikelihood(asked(*PAIRS))
    for pair, (likelihood, greedy) in zip(PAIRS, found, strict=True):
        expected, expected_greedy = directly(*pair, spec)
        assert likelihood == pytest.approx(expected, abs=1e-4)  # fp32 sums in another order
        assert greedy is expected_greedy


def test_what_greedy_decoding_says_is_said_to_be_greedy() -> None:
    model = harness_model(MODEL)
    (said,) = model.generate_until(asked(("The value", {"max_gen_toks": 3})))
    given = requests_of().encoding.encode("The value")
    assert requests_of().encoding.encode("The value" + said)[: len(given)] == given  # what is said is read as such
    found = model.loglikelihood(asked(("The value", said), ("The value", said + "!")))
    assert [greedy for _, greedy in found] == [True, False]


@torch.no_grad()
def test_a_text_is_as_likely_as_its_parts_are_together() -> None:
    text = TEXTS[5]
    (whole,) = harness_model(MODEL).loglikelihood_rolling(asked((text,)))
    ids = [2, *tokenizer().encode_marked(text)]
    logits = MODEL(Inputs(ids=torch.tensor([ids[:-1]]), mask=torch.ones(1, len(ids) - 1, dtype=torch.bool))).logits[0]
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None]).sum()
    assert whole == pytest.approx(float(expected), abs=1e-3)
    model = harness_model(MODEL, max_length=16)
    (cut,) = model.loglikelihood_rolling(asked((text,)))
    assert cut != pytest.approx(whole, abs=1e-3)  # less is given
    splits = list(model.requests.encoding.windows(text))
    rows = [model.requests.encoding.row(split, "here") for split in splits]
    scores = model.asking.engine.score(rows, [FULL])[0]
    assert cut == pytest.approx(-sum(score.loss_sum for score in scores), abs=1e-3)
    assert harness_model(MODEL).loglikelihood_rolling(asked(("",)))[0] == pytest.approx(
        harness_model(MODEL).loglikelihood_rolling(asked(("<bos>",)))[0]
    )


def test_answers_are_in_the_order_of_the_questions_and_kept_where_they_are_wanted() -> None:
    kept: list[Any] = []

    class Hook:
        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            kept.append((attr, req, res))

    model = harness_model(MODEL)
    forward = model.loglikelihood(asked(*PAIRS))
    model.set_cache_hook(Hook())
    backward = model.loglikelihood(asked(*reversed(PAIRS)))
    for (there, _), (back, _) in zip(forward, reversed(backward), strict=True):
        assert there == pytest.approx(back, abs=1e-4)
    assert kept == [("loglikelihood", pair, answer) for pair, answer in zip(reversed(PAIRS), backward, strict=True)]


def test_media_are_refused() -> None:
    with pytest.raises(InputError, match="has images or sound, which are not passed on yet"):
        harness_model(MODEL).generate_until(asked(("What is it?", {}, {"visual": []})))


def test_a_conversation_is_written_as_matslice_itself_writes_it() -> None:
    found = harness_model(MODEL).apply_chat_template(TURNS)
    messages = [Message(Role.system, "Be brief."), Message(Role.user, " What is it? ")]
    assert found == render(messages, add_generation_prompt=True).text
    assert requests_of().encoding.encode(found)[:2] == [2, tokenizer().start_of_turn_id]


def test_an_answer_that_is_begun_is_gone_on_with() -> None:
    found = harness_model(MODEL).apply_chat_template(
        [*TURNS, {"role": "assistant", "content": "It is"}], add_generation_prompt=False
    )
    assert found.endswith("<start_of_turn>model\nIt is")


@pytest.mark.parametrize("begun", ["Answer:", "Answer: ", "Answer:\n", " It  is", "a < b "])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace(" | trim", "")], ids=["trims", "keeps"])
def test_it_is_gone_on_with_as_transformers_does(begun: str, template: str) -> None:
    messages = [TURNS[1], {"role": "assistant", "content": begun}]
    (expected,), _ = render_jinja_template(
        conversations=[messages], chat_template=template, continue_final_message=True, bos_token="<bos>"
    )
    assert Chat(template).write(messages, add_generation_prompt=False) == expected


def test_the_template_is_recorded_where_it_is_used() -> None:
    model = harness_model(MODEL)
    assert model.chat_template(True) == CHAT_TEMPLATE
    assert model.chat_template(False) is None
    assert model.get_model_info()["max_length"] == 512


def test_a_template_without_system_messages_is_given_none() -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    assert Chat(strict).write(TURNS, add_generation_prompt=True) == Chat(CHAT_TEMPLATE).write(
        TURNS[1:], add_generation_prompt=True
    )
    with pytest.raises(InputError, match="chat template does not take a conversation"):
        Chat(strict).write([{"role": "assistant", "content": "x"}], add_generation_prompt=True)
