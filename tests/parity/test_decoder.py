# SPDX-License-Identifier: Apache-2.0
"""Logits, losses and every gradient, against transformers on the same random weights.

Once in float32 at the figures we promise, and once with both implementations computing in float64:
there, only a difference in the mathematics is left, and twelve digits agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.kv_cache import KVCache
from tests.daily import daily
from tests.parity.reference import reference_of, relative, their_name
from tests.releases import differs_before_oracle
from tests.tiny import GLOBAL, LOCAL, tiny_config, tiny_inputs, tiny_model

pytestmark = pytest.mark.parity

BLOCK = (LOCAL,) * 4 + (GLOBAL,)
SHAPES = {
    "tiny": tiny_config(),
    "like_e4b": tiny_config(
        layer_types=BLOCK * 7, intermediate_size=(32,) * 35, num_kv_shared_layers=15,
        activation_sparsity_pattern=(0.95,) * 10 + (0.0,) * 25,
    ),
    "like_e2b": tiny_config(
        layer_types=BLOCK * 6, intermediate_size=(32,) * 30, num_kv_shared_layers=10,
        activation_sparsity_pattern=(0.95,) * 10 + (0.0,) * 20,
    ),
    "no_sharing": tiny_config(num_kv_shared_layers=0),
    "few_readers": tiny_config(num_kv_shared_layers=2),
    "dense": tiny_config(activation_sparsity_pattern=(0.0,) * 9),
    "mixed_widths": tiny_config(intermediate_size=(48, 24, 40) * 3),
    "odd_heads_and_streams": tiny_config(
        num_attention_heads=4, num_key_value_heads=1, head_dim=6, altup_num_inputs=3, altup_correct_scale=False
    ),
}  # fmt: skip
PADDING = pytest.mark.parametrize("padding", daily(["none", "left", "right"], "left"))


@dataclass
class Result:
    logits: Tensor  # of real tokens
    loss: Tensor
    gradients: dict[str, Tensor]


def supervised(inputs: Inputs) -> Tensor:
    """Labels for transformers: padding, and what would be predicted from padding, does not count."""
    labels = inputs.ids.masked_fill(~inputs.mask, -100)
    labels[:, 1:][~inputs.mask[:, :-1]] = -100
    return labels


def our_result(model: Gemma3n, inputs: Inputs) -> Result:
    logits = model(inputs).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), supervised(inputs)[:, 1:].flatten())
    loss.backward()
    gradients = {their_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Result(logits[inputs.mask].detach(), loss.detach(), gradients)


def their_result(model: Gemma3n, inputs: Inputs) -> Result:
    reference = reference_of(model)
    output = reference(inputs.ids, attention_mask=inputs.mask, labels=supervised(inputs), use_cache=False)
    output.loss.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    return Result(output.logits[inputs.mask].detach(), output.loss.detach(), gradients)


@PADDING
@pytest.mark.parametrize("shape", daily(SHAPES, "tiny", "like_e2b", "no_sharing", "odd_heads_and_streams"))
def test_logits_losses_and_all_gradients_equal_the_reference(shape: str, padding: str) -> None:
    # Through 30 layers and more, float32 rounding of larger weights grows to 1e-4 in either implementation;
    # the float64 test below has large weights for all shapes.
    model = tiny_model(SHAPES[shape], spread=0.02 if SHAPES[shape].text.num_hidden_layers >= 30 else 0.1)
    inputs = tiny_inputs(SHAPES[shape], padding=padding)
    ours, theirs = our_result(model, inputs), their_result(model, inputs)
    assert relative(ours.logits, theirs.logits) <= 1e-5
    assert abs(ours.loss - theirs.loss) <= 1e-6 * theirs.loss
    assert ours.gradients.keys() == theirs.gradients.keys()
    worst = {name: relative(ours.gradients[name], theirs.gradients[name]) for name in theirs.gradients}
    assert max(worst.values()) <= 1e-5, max(worst, key=lambda name: worst[name])


@differs_before_oracle("computes parts of it in float32 whatever the weights are")
@PADDING
@pytest.mark.parametrize("shape", daily(SHAPES, *(set(SHAPES) - {"like_e4b"})))
def test_in_float64_nothing_differs_but_the_last_digits(
    shape: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the float32 islands of both, widened
    model = tiny_model(SHAPES[shape], dtype=torch.float64)
    inputs = tiny_inputs(SHAPES[shape], padding=padding)
    ours, theirs = our_result(model, inputs), their_result(model, inputs)
    assert relative(ours.logits, theirs.logits) <= 1e-10
    assert abs(ours.loss - theirs.loss) <= 1e-10 * theirs.loss
    assert ours.gradients.keys() == theirs.gradients.keys()
    worst = {name: relative(ours.gradients[name], theirs.gradients[name]) for name in theirs.gradients}
    assert max(worst.values()) <= 1e-10, max(worst, key=lambda name: worst[name])


@pytest.mark.parametrize("shape", ["tiny", "like_e4b", "mixed_widths"])
def test_bfloat16_errs_at_most_twice_as_much_as_the_reference(shape: str) -> None:
    config = SHAPES[shape]
    inputs = tiny_inputs(config, batch=8, padding="left")
    exact_model = tiny_model(config, spread=0.2)
    low_model = tiny_model(config, spread=0.2).to(torch.bfloat16)
    with torch.no_grad():
        exact = reference_of(exact_model)(inputs.ids, attention_mask=inputs.mask).logits[inputs.mask]
        ours = low_model(inputs).logits[inputs.mask]
        theirs = reference_of(low_model)(inputs.ids, attention_mask=inputs.mask).logits[inputs.mask].float()
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


def test_bfloat16_rounds_where_the_reference_rounds() -> None:
    # Few layers, so that no rounding is amplified: one taken elsewhere (a norm, the sparse threshold, the
    # embedding's scale) shows as 0.07 of the scores and more.
    config = tiny_config(layer_types=(LOCAL, GLOBAL, LOCAL), intermediate_size=(48,) * 3,
                         activation_sparsity_pattern=(0.9, 0.0, 0.0), num_kv_shared_layers=1)  # fmt: skip
    inputs = tiny_inputs(config, batch=8, padding="left")
    model = tiny_model(config).to(torch.bfloat16)
    with torch.no_grad():
        ours = model(inputs).logits[inputs.mask]
        theirs = reference_of(model)(inputs.ids, attention_mask=inputs.mask).logits[inputs.mask].float()
    assert (ours - theirs).norm() <= 0.01 * theirs.norm()


@differs_before_oracle("clips them otherwise")
def test_altup_coefficients_are_clipped_as_the_reference_clips_in_training_but_not_overwritten() -> None:
    config = tiny_config()
    model, inputs = tiny_model(config), tiny_inputs(config)
    coefs = [p for name, p in model.named_parameters() if "_coefs" in name]
    with torch.no_grad():
        for weight in coefs:
            weight[0] = 300.0
        theirs = reference_of(model).train()(inputs.ids, attention_mask=inputs.mask, use_cache=False).logits
        ours = model(inputs).logits
        assert torch.equal(model.eval()(inputs).logits, ours)
    assert relative(ours, theirs) < 0.05  # coefficients this large amplify rounding; unclipped it would be 1.2
    assert all((weight[0] == 300.0).all() for weight in coefs)


def test_casting_the_model_leaves_rotary_angles_in_float32() -> None:
    # The reference, cast in the same way, turns position 300 by a visibly different angle.
    config = tiny_config(sliding_window=400)
    inputs = tiny_inputs(config, batch=2, seq=330)
    model = tiny_model(config, spread=0.2)
    with torch.no_grad():
        exact = model(inputs).logits
        ours = tiny_model(config, spread=0.2).to(torch.bfloat16)(inputs).logits
        cast = reference_of(model).bfloat16()
        theirs = cast(inputs.ids, attention_mask=inputs.mask).logits.float()
    assert (ours - exact)[:, 300:].norm() < (theirs - exact)[:, 300:].norm()


@differs_before_oracle("does not read all ids that it may decode")
@pytest.mark.parametrize("shape", daily(["tiny", "no_sharing", "odd_heads_and_streams"], "tiny"))
def test_greedy_decoding_equals_the_reference_far_past_the_window(shape: str) -> None:
    config: ModelConfig = SHAPES[shape]
    model, steps = tiny_model(config), config.text.sliding_window + 100
    inputs = tiny_inputs(config, batch=3, seq=7, padding="left")
    reference = reference_of(model)
    theirs = reference.generate(  # pyright: ignore[reportAttributeAccessIssue]: transformers' own protocol
        inputs.ids, attention_mask=inputs.mask, max_new_tokens=steps, do_sample=False, eos_token_id=None
    )
    assert isinstance(theirs, Tensor)
    assert torch.equal(greedy(model, inputs, steps), theirs[:, inputs.ids.shape[1] :])


@torch.no_grad()
def greedy(model: Gemma3n, inputs: Inputs, steps: int) -> Tensor:
    cache = KVCache.empty(inputs.ids.shape[0], inputs.ids.device)
    chosen = []
    for _ in range(steps):
        output = model(inputs, cache=cache)
        assert output.cache is not None
        cache = output.cache
        chosen.append(output.logits[:, -1:].argmax(-1))
        inputs = Inputs.of(chosen[-1])
    return torch.cat(chosen, dim=1)
