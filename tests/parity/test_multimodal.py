# SPDX-License-Identifier: Apache-2.0
"""Merged logits, losses and every gradient for all kinds of input, against transformers on the same weights.

Once in float32 at the figures we promise, and once with both implementations computing in float64.
Clips of one batch have one length and no padding: with others, the reference's convolutions read a
clip's padding, so that its soft tokens depend on its batch-mates.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma3nForConditionalGeneration

from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs
from model.layers.kv_cache import KVCache
from tests.parity.reference import multimodal_reference_of, relative, widen_float32
from tests.releases import differs_before_oracle
from tests.tiny import (
    SEVEN_KINDS,
    TINY_AUDIO,
    TINY_VISION,
    tiny_model,
    tiny_multimodal_config,
    tiny_multimodal_inputs,
)

pytestmark = pytest.mark.parity

CONFIG = tiny_multimodal_config()
PLACEHOLDERS = [TINY_VISION.tokens.placeholder_id, TINY_AUDIO.tokens.placeholder_id]


@dataclass
class Pair:
    """One of our models, and the reference with its weights."""

    ours: Gemma3n
    theirs: Gemma3nForConditionalGeneration


@dataclass
class Result:
    logits: Tensor  # of real tokens
    loss: Tensor
    gradients: dict[str, Tensor | None]


@pytest.fixture(scope="module")
def pair() -> Pair:
    # Larger weights let the decoder enlarge the towers' rounding; the float64 test has them.
    model = tiny_model(CONFIG, spread=0.05)
    return Pair(model, multimodal_reference_of(model))


def media(inputs: Inputs) -> dict[str, Tensor]:
    """The media of our inputs as the reference takes them."""
    given: dict[str, Tensor] = {}
    if isinstance(inputs.images, Images):
        given["pixel_values"] = inputs.images.pixels
    if isinstance(inputs.audio, Audio):
        given |= {"input_features": inputs.audio.frames, "input_features_mask": inputs.audio.mask}
    return given


def their_embeddings(model: Gemma3n, inputs: Inputs) -> Tensor:
    """What the reference hands to its decoder, "batch seq dim"."""
    reference, embedded = multimodal_reference_of(model), []
    reference.model.language_model.register_forward_pre_hook(
        lambda *call: embedded.append(call[-1]["inputs_embeds"]), with_kwargs=True
    )
    given = {name: t.to(reference.dtype) if t.is_floating_point() else t for name, t in media(inputs).items()}
    reference(input_ids=inputs.ids, attention_mask=inputs.mask, **given)
    return embedded[0]


def results(pair: Pair, inputs: Inputs) -> tuple[Result, Result]:
    """Ours and theirs. What would be predicted from padding does not count."""
    labels = inputs.ids.masked_fill(~inputs.mask, -100)
    labels[:, 1:][~inputs.mask[:, :-1]] = -100
    pair.ours.zero_grad()
    logits = pair.ours(inputs).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    ours = Result(logits[inputs.mask].detach(), loss.detach(), {n: p.grad for n, p in pair.ours.named_parameters()})

    pair.theirs.zero_grad()
    # The reference scales the vision tower's output in place: what is given must not be what we were given.
    output = pair.theirs(
        input_ids=inputs.ids, attention_mask=inputs.mask, labels=labels, use_cache=False, **media(inputs)
    )
    output.loss.backward()
    gradients = {n: p.grad for n, p in pair.theirs.named_parameters()}
    return ours, Result(output.logits[inputs.mask].detach(), output.loss.detach(), gradients)


def assert_equal(ours: Result, theirs: Result, *, share: float) -> None:
    """Everything within a share of the reference's largest value; no gradient missing that is not zero there."""
    assert relative(ours.logits, theirs.logits) <= share
    assert abs(ours.loss - theirs.loss) <= share * theirs.loss
    assert ours.gradients.keys() == theirs.gradients.keys()
    missing, worst = [], {}
    for name, expected in theirs.gradients.items():
        mine = ours.gradients[name]
        # The reference embeds ids of media that are not there and throws the result away; we do not compute it.
        if expected is None or not expected.any():
            assert mine is None or not mine.any(), name
        elif mine is None:
            missing.append(name)
        else:
            worst[name] = relative(mine, expected)
    assert missing == []
    assert max(worst.values()) <= share, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("kind", SEVEN_KINDS)
def test_logits_losses_and_all_gradients_equal_the_reference(pair: Pair, kind: str, padding: str) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, *SEVEN_KINDS[kind], frames=(131,), padding=padding)
    assert_equal(*results(pair, inputs), share=2e-5)


def test_with_both_media_in_the_batch_every_parameter_gets_a_gradient(pair: Pair) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio text", "text")
    pair.ours.zero_grad()
    pair.ours(inputs).logits[inputs.mask].square().mean().backward()
    assert [name for name, p in pair.ours.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("frames", [1, 16, 17, 100, 177, 192])
def test_a_clip_of_any_length_fills_its_run_as_in_the_reference(pair: Pair, frames: int) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "text audio text", "text text", frames=(frames,))
    assert_equal(*results(pair, inputs), share=2e-5)


@differs_before_oracle("computes parts of it in float32 whatever the weights are")
@pytest.mark.parametrize("kind", SEVEN_KINDS)
def test_in_float64_nothing_differs_but_the_last_digits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widen_float32(monkeypatch)
    model = tiny_model(CONFIG, dtype=torch.float64)
    inputs = tiny_multimodal_inputs(CONFIG, *SEVEN_KINDS[kind], frames=(131,))
    assert_equal(*results(Pair(model, multimodal_reference_of(model)), inputs), share=1e-9)


@torch.no_grad()
def test_faint_soft_tokens_are_scaled_up_as_in_the_reference() -> None:
    # The norms that follow hide the scale, down to where their epsilon counts.
    model = tiny_model(CONFIG)
    assert model.model.vision_tower is not None
    model.model.vision_tower.timm_model.msfa.norm.weight.mul_(1e-7)
    inputs = tiny_multimodal_inputs(CONFIG, "image")
    theirs = their_embeddings(model, inputs)[inputs.ids == PLACEHOLDERS[0]]
    assert theirs.square().mean() < 0.9  # it counts here
    ours = model.model.embed(model.soft_tokens(inputs))[inputs.ids == PLACEHOLDERS[0]]
    assert relative(ours, theirs) <= 2e-5


@torch.no_grad()
def test_greedy_decoding_after_media_equals_the_reference_far_past_the_window(pair: Pair) -> None:
    steps = CONFIG.text.sliding_window + 12
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio text", "text audio image", frames=(131,))
    reference = pair.theirs.generate(  # pyright: ignore[reportAttributeAccessIssue]: transformers' own protocol
        inputs.ids, attention_mask=inputs.mask, **media(inputs), max_new_tokens=steps, do_sample=False,
        eos_token_id=None, suppress_tokens=PLACEHOLDERS,
    )  # fmt: skip
    assert isinstance(reference, Tensor)
    theirs = reference[:, inputs.ids.shape[1] :]
    cache, chosen = KVCache.empty(2, torch.device("cpu")), []
    for _ in range(steps):
        output = pair.ours(inputs, cache=cache)
        output.logits[..., PLACEHOLDERS] = -torch.inf
        chosen.append(output.logits[:, -1:].argmax(-1))
        cache, inputs = output.cache, Inputs.of(chosen[-1])
    assert torch.equal(torch.cat(chosen, dim=1), theirs)


@torch.no_grad()
def test_in_bfloat16_hard_ids_are_the_reference_s_and_soft_tokens_are_within_a_hundredth() -> None:
    model = tiny_model(CONFIG, spread=0.05).to(torch.bfloat16)
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio text", "image audio", frames=(131,))
    theirs = their_embeddings(model, inputs)
    ours = model.model.embed(model.soft_tokens(inputs))
    hard = ~torch.isin(inputs.ids, torch.tensor(PLACEHOLDERS))
    assert torch.equal(ours[hard], theirs[hard])
    for placeholder in PLACEHOLDERS:  # the towers round on the way; against float32 both are off by 3 in a hundred
        mine, other = ours[inputs.ids == placeholder].float(), theirs[inputs.ids == placeholder].float()
        assert (mine - other).norm() <= 0.01 * other.norm()
