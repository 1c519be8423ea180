# SPDX-License-Identifier: Apache-2.0
"""What is planned is what is there: parameters and bytes of built models, a real cache, counted operations."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given, settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import LayerType, ModelConfig, TextConfig
from model.errors import ConfigError, SliceError
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.kv_cache import KeyValues, KVCache
from model.slicing.config import slice_config
from model.slicing.plan import Plan, StoredAs
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import AudioConfig, Modality, VisionConfig
from tests.laws.drawn import specs
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config

E4B = ModelConfig(text=TextConfig.parse({}), vision=VisionConfig(), audio=AudioConfig())
E2B_WRITTEN = SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192])
FULL, E2B = (SliceSpec.full(E4B.text), SliceSpec.resolve(E2B_WRITTEN, E4B.text))
SHORT = SliceSpec("short", (0, 1, 2, 6, 8), (40, 24, 48, 17, 24))  # of the tiny model


def planned(
    config: ModelConfig, spec: SliceSpec, context_tokens: int = 16, *, modalities: tuple[Modality, ...] | None = None
) -> Plan:
    return Plan.of(config, SubModel(spec, modalities), context_tokens=context_tokens)


def test_the_published_sizes_are_planned_in_both_conventions() -> None:
    e4b, e2b = planned(E4B, FULL), planned(E4B, E2B)
    assert (e4b.used.total, e2b.used.total) == (7_818_517_072, 5_418_464_192)
    assert (e4b.used.text, e2b.used.text) == (6_835_235_568, 4_435_182_688)
    assert (e4b.published.text, e2b.published.text) == (6_866_696_688, 4_456_156_768)
    assert (e4b.published.effective, e2b.published.effective) == (3_980_491_248, 1_905_495_648)
    assert e4b.published.total - e4b.used.total == 31_461_120  # keys and values of the readers


@given(spec=specs(TINY_TEXT))
@settings(max_examples=15)
def test_parameters_and_bytes_are_those_of_the_built_model(spec: SliceSpec) -> None:
    config = tiny_multimodal_config()
    built = Gemma3n.build(slice_config(config, SubModel(spec)), device="meta", dtype=torch.bfloat16)
    text = built.model.language_model
    tables = [parameter for name, parameter in text.named_parameters() if name.startswith("embed_tokens")]
    plan = planned(config, spec)
    assert plan.used.total == sum(parameter.numel() for parameter in built.parameters())
    assert plan.used.text == sum(parameter.numel() for parameter in text.parameters())
    assert plan.used.effective == plan.used.text - sum(table.numel() for table in tables)
    assert plan.weight_bytes[StoredAs.bf16] == sum(parameter.nbytes for parameter in built.parameters())
    assert plan.per_layer_table_bytes[StoredAs.bf16] == text.embed_tokens_per_layer.weight.nbytes
    assert plan.weight_bytes[StoredAs.fp32] == 2 * plan.weight_bytes[StoredAs.bf16]


@pytest.mark.parametrize(("kind", "bits"), [(StoredAs.int8, 8), (StoredAs.int4, 4)])
def test_small_numbers_come_in_groups_with_a_scale_and_the_rest_stays_bfloat16(kind: StoredAs, bits: int) -> None:
    config = tiny_multimodal_config(intermediate_size=(64,) * 9)
    expected = 0
    grouped: set[str] = set()
    for name, parameter in Gemma3n.build(config, device="meta").named_parameters():
        if name.startswith("model.language_model") and parameter.ndim == 2 and parameter.shape[1] in (32, 64):
            groups = parameter.shape[0] * parameter.shape[1] // 32
            expected += groups * (32 * bits // 8 + 2)
            grouped.add(name.rpartition("layers.0.")[2])
        else:
            expected += 2 * parameter.numel()
    assert {"mlp.down_proj.weight", "mlp.up_proj.weight", "altup.modality_router.weight"} <= grouped
    assert "altup.prediction_coefs.weight" not in grouped
    assert planned(config, SliceSpec.full(config.text)).weight_bytes[kind] == expected


def test_of_the_published_decoder_nearly_all_is_stored_small() -> None:
    for kind, bits in ((StoredAs.int8, 8.5), (StoredAs.int4, 4.5)):
        plan = planned(E4B, FULL, modalities=(Modality.text,))
        assert 8 * plan.weight_bytes[kind] / plan.used.text == pytest.approx(bits, rel=1e-3)


def cache_after(model: Gemma3n, inputs: Inputs) -> KVCache:
    with torch.no_grad():
        cache = model(inputs, cache=KVCache.empty(len(inputs.ids), torch.device("cpu"))).cache
    assert cache is not None
    return cache


def bytes_of(cache: KVCache) -> int:
    return sum(kept.keys.nbytes + kept.values.nbytes for kept in cache.layers.values())


def within(window: int, cache: KVCache, config: TextConfig) -> KVCache:
    """The cache without what local layers no longer reach."""
    layers = {
        layer: KeyValues(kept.keys[:, :, -window:], kept.values[:, :, -window:])
        if config.layer_types[layer] is LayerType.sliding_attention else kept
        for layer, kept in cache.layers.items()
    }  # fmt: skip
    return KVCache(layers, cache.mask)


@pytest.mark.parametrize("context_tokens", [5, 8, 21])  # the window is 8
def test_bytes_of_keys_and_values_are_those_of_a_real_cache(context_tokens: int) -> None:
    config = slice_config(tiny_config(), SubModel(SHORT))
    cache = cache_after(tiny_model(config), tiny_inputs(config, batch=1, seq=context_tokens))
    plan = planned(tiny_config(), SHORT, context_tokens)
    assert plan.whole_cache_bytes[StoredAs.fp32] == bytes_of(cache)
    assert plan.cache_bytes[StoredAs.fp32] == bytes_of(within(8, cache, config.text))
    assert plan.cache_bytes[StoredAs.bf16] * 2 == plan.cache_bytes[StoredAs.fp32]


def test_what_a_window_no_longer_reaches_need_not_be_kept() -> None:
    config = tiny_config()
    model, inputs = tiny_model(config), tiny_inputs(config, batch=1, seq=21)
    *_, last = inputs.ids[0].tolist()
    cache = cache_after(model, inputs)
    blank = {
        layer: KeyValues(without_old(kept.keys), without_old(kept.values))
        if config.text.layer_types[layer] is LayerType.sliding_attention else kept
        for layer, kept in cache.layers.items()
    }  # fmt: skip
    following = Inputs(ids=torch.tensor([[last]]), mask=torch.ones(1, 1, dtype=torch.bool))
    with torch.no_grad():
        expected = model(following, cache=cache).logits
        assert torch.equal(model(following, cache=KVCache(blank, cache.mask)).logits, expected)


def without_old(states: torch.Tensor) -> torch.Tensor:
    """Keys or values with zeros where the window of 8 does not reach."""
    return torch.cat((torch.zeros_like(states[:, :, :-8]), states[:, :, -8:]), dim=2)


def operations_of(config: ModelConfig, context_tokens: int) -> int:
    """What torch counts while the last of so many tokens is decoded."""
    model, inputs = tiny_model(config), tiny_inputs(config, batch=1, seq=context_tokens)
    before, last = (Inputs(ids=inputs.ids[:, part], mask=inputs.mask[:, part]) for part in (slice(-1), slice(-1, None)))
    cache = cache_after(model, before)
    # The fused kernel of the CPU is not among what torch can count; the plain one is made of products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(last, cache=cache)
    return counter.get_total_flops()


@pytest.mark.parametrize("spec", [SliceSpec.full(TINY_TEXT), SHORT], ids=["full", "short"])
def test_planned_operations_are_those_that_are_counted(spec: SliceSpec) -> None:
    config = tiny_config(sliding_window=64)
    counted = operations_of(slice_config(config, SubModel(spec)), 21)
    assert planned(config, spec, 21).work_per_token.total == counted


def test_local_layers_are_planned_to_look_back_no_further_than_their_window() -> None:
    config, full = tiny_config(), SliceSpec.full(TINY_TEXT)
    local = sum(kind is LayerType.sliding_attention for kind in TINY_TEXT.layer_types)
    masked = 4 * TINY_TEXT.num_attention_heads * TINY_TEXT.head_dim * local * (21 - 8)  # ours computes, and discards
    assert planned(config, full, 21).work_per_token.total + masked == operations_of(config, 21)


def test_work_is_told_by_where_it_arises() -> None:
    work = planned(E4B, FULL, 8192).work_per_token
    assert work.head == 2 * 262_400 * 2048
    assert work.attention == 4 * 8 * 256 * (7 * 8192 + 28 * 512)
    assert work.linear == pytest.approx(2 * planned(E4B, FULL).used.effective, rel=2e-3)
    assert work.total == work.linear + work.attention + work.head


def test_towers_that_are_left_out_are_not_planned() -> None:
    with_towers, without = planned(E4B, E2B), planned(E4B, E2B, modalities=(Modality.text,))
    assert without.used.total == without.used.text == with_towers.used.text
    assert without.config.modalities == (Modality.text,)
    towers = with_towers.weight_bytes[StoredAs.int4] - without.weight_bytes[StoredAs.int4]
    assert towers == 2 * (with_towers.used.total - with_towers.used.text)  # they stay bfloat16


@pytest.mark.parametrize("context_tokens", [-1, 0, 513])
def test_a_context_the_model_cannot_have_is_refused(context_tokens: int) -> None:
    with pytest.raises(ConfigError, match=rf"context is {context_tokens} tokens; it must be 1 to 512"):
        planned(tiny_config(), SliceSpec.full(TINY_TEXT), context_tokens)


def test_what_is_no_part_of_the_parent_is_refused() -> None:
    with pytest.raises(SliceError, match="layer 18 is skipped"):
        planned(E4B, dataclasses.replace(FULL, kept_layers=(19, 20), ffn_widths=(8, 8)))


def test_planning_takes_neither_torch_nor_weights() -> None:
    code = "import sys, model.slicing.plan, model.slicing.propose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tensor_that_cannot_be_grouped_is_as_large_as_in_bfloat16() -> None:
    assert StoredAs.int4.bytes_of((2048,)) == 4096
    assert StoredAs.int4.bytes_of((4, 33)) == 2 * prod((4, 33))
    assert StoredAs.int4.bytes_of((4, 64)) == 4 * (32 + 4)
