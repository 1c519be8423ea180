# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig, TextConfig
from model.errors import InputError, SliceError
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.kv_cache import KVCache
from model.recompute import RecomputeConfig
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

HALF_WITHOUT_BLOCK = SliceSpec.resolve(SliceConfig(name="half", skip_layers=[3, 4, 5], ffn_widths=[24]), TINY_TEXT)


def gradients(model: Gemma3n, inputs: Inputs, spec: SliceSpec | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    model(inputs, spec).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("spec", [None, HALF_WITHOUT_BLOCK], ids=["full", "sub-model"])
def test_recomputing_layers_gives_the_same_gradients_to_the_last_bit(spec: SliceSpec | None) -> None:
    model, inputs = tiny_model(), tiny_inputs(tiny_config(), padding="left")
    kept = gradients(model, inputs, spec)
    model.recompute = RecomputeConfig.everything()
    recomputed = gradients(model, inputs, spec)
    assert kept.keys() == recomputed.keys()
    assert [name for name in kept if not torch.equal(kept[name], recomputed[name])] == []


def test_recomputing_really_drops_activations() -> None:
    model, inputs = tiny_model(), tiny_inputs(tiny_config())

    def saved_bytes() -> int:
        seen = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal seen
            seen += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(inputs)
        return seen

    everything = saved_bytes()
    model.recompute = RecomputeConfig.everything()
    assert saved_bytes() < everything / 4


def test_a_zero_embedding_row_gives_finite_gradients() -> None:
    model, inputs = tiny_model(), tiny_inputs(tiny_config(), padding="left")
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[0] = 0  # the padding row, as initialised and as published
        model.model.language_model.embed_tokens.weight[inputs.ids[0, -1]] = 0  # and one that counts
    assert all(gradient.isfinite().all() for gradient in gradients(model, inputs).values())


def test_every_parameter_gets_a_gradient_in_a_freshly_initialised_model() -> None:
    model = Gemma3n.build(tiny_config())
    model.initialize(seed=0)
    assert [name for name, gradient in gradients(model, tiny_inputs(tiny_config())).items() if not gradient.any()] == []
    assert all(p.grad is not None for p in model.parameters())


def test_initialising_with_a_seed_repeats_the_weights() -> None:
    first, second, third = (Gemma3n.build(tiny_config()) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (third, 2)):
        model.initialize(seed)
    assert torch.equal(first(Inputs.of(torch.ones(1, 3, dtype=torch.long))).logits,
                       second(Inputs.of(torch.ones(1, 3, dtype=torch.long))).logits)  # fmt: skip
    assert not torch.equal(next(first.parameters()), next(third.parameters()))


@pytest.mark.parametrize("spec", [None, HALF_WITHOUT_BLOCK], ids=["full", "sub-model"])
def test_decoding_step_by_step_equals_one_pass_past_the_window(spec: SliceSpec | None) -> None:
    config = tiny_config()
    model, inputs = tiny_model(config, spread=0.1), tiny_inputs(config, seq=30, padding="left")
    with torch.no_grad():
        at_once = model(inputs, spec).logits
        cache, steps = KVCache.empty(3, torch.device("cpu")), []
        for part in (slice(0, 9), slice(9, 10), slice(10, 14), *(slice(i, i + 1) for i in range(14, 30))):
            output = model(Inputs(ids=inputs.ids[:, part], mask=inputs.mask[:, part]), spec, cache=cache)
            cache = output.cache
            steps.append(output.logits)
    # Another number of queries at once is another matrix kernel; sums differ in their last digits.
    torch.testing.assert_close(torch.cat(steps, dim=1)[inputs.mask], at_once[inputs.mask], rtol=1e-5, atol=1e-5)


def test_a_cache_holds_producers_only() -> None:
    config = tiny_config()
    output = tiny_model(config)(tiny_inputs(config), cache=KVCache.empty(3, torch.device("cpu")))
    assert output.cache is not None
    assert sorted(output.cache.layers) == list(range(config.text.first_shared_layer))


def test_padding_on_either_side_does_not_change_a_sequence() -> None:
    config = tiny_config()
    model, plain = tiny_model(config, spread=0.1), tiny_inputs(config, batch=1, seq=12)
    pad = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        alone = model(plain).logits
        for ids, where in (
            (torch.cat((pad, plain.ids), 1), slice(5, None)),
            (torch.cat((plain.ids, pad), 1), slice(12)),
        ):
            mask = torch.zeros_like(ids, dtype=torch.bool)
            mask[:, where] = True
            # Left padding moves every position by five: rotary angles are relative, up to rounding.
            torch.testing.assert_close(model(Inputs(ids=ids, mask=mask)).logits[:, where], alone, rtol=1e-5, atol=1e-5)


def test_a_token_beyond_the_window_reaches_only_global_layers() -> None:
    config = tiny_config(layer_types=(TINY_TEXT.layer_types[0],) * 2, intermediate_size=(48,) * 2,
                         activation_sparsity_pattern=(0.0,) * 2, num_kv_shared_layers=0)  # fmt: skip
    model, inputs = tiny_model(config), tiny_inputs(config, batch=1, seq=30)
    reach = 2 * (config.text.sliding_window - 1)  # two local layers see seven tokens further back each
    changed = inputs.ids.clone()
    changed[0, 0] = changed[0, 0] % 90 + 1
    with torch.no_grad():
        difference = (model(inputs).logits - model(Inputs.of(changed)).logits).abs().amax(-1)[0]
    assert difference[reach] > 0
    assert torch.equal(difference[reach + 1 :], torch.zeros_like(difference[reach + 1 :]))


def test_a_spec_of_a_larger_parent_is_refused() -> None:
    spec = SliceSpec("e2b", tuple(range(30)), (8,) * 30)
    with pytest.raises(SliceError, match="keeps layers 0 to 29, but this model has layers 0 to 8"):
        tiny_model()(tiny_inputs(tiny_config()), spec)


@pytest.mark.parametrize("stranger", [-1, TINY_TEXT.vocab_size])
def test_an_id_that_is_not_in_the_vocabulary_is_refused(stranger: int) -> None:
    with pytest.raises(InputError, match="this model has 0 to 95; use the tokenizer that came with it"):
        tiny_model()(Inputs.of(torch.tensor([[1, stranger]])))


def test_empty_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="at least one whole number is needed"):
        Inputs.of(torch.zeros(1, 0, dtype=torch.long))


def test_inputs_of_two_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    with pytest.raises(InputError, match=r"ids have shape \(1, 3\) and mask \(1, 4\)"):
        Inputs(ids=torch.ones(1, 3, dtype=torch.long), mask=torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({}, 6_835_235_568),
        ({"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}, 4_435_182_688),
    ],
    ids=["E4B", "E2B"],
)
def test_real_shapes_have_the_published_number_of_parameters(published: dict, expected: int) -> None:
    model = Gemma3n.build(ModelConfig(text=TextConfig.parse(published)), device="meta")
    assert sum(p.numel() for p in model.parameters()) == expected


def test_scores_are_float32_and_within_the_soft_cap() -> None:
    logits = tiny_model(dtype=torch.bfloat16)(tiny_inputs(tiny_config())).logits
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= tiny_config().text.final_logit_softcapping
