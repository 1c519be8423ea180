# SPDX-License-Identifier: Apache-2.0
"""The laws of slicing for adapters of every kind that PEFT makes and that can be cut, over random sub-models."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from peft import LoraConfig, PeftModel, get_peft_model

from model.adapter.lora import load_adapter, merge, with_our_layers
from model.gemma3n import Gemma3n
from model.slicing.adapter import slice_adapter
from model.slicing.module import slice_module
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from tests.laws.drawn import assert_close, in_float64, scratch, specs, sub_models, weights
from tests.tiny import TINY_TEXT, tiny_inputs, tiny_model, tiny_multimodal_config

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
CONFIG = tiny_multimodal_config().only([Modality.audio])  # what is in the vision tower, test_adapters.py adapts
CHOSEN = (0, 4, 6)
KINDS: dict[str, dict[str, Any]] = {
    "ranks and alphas of their own": {
        "target_modules": r".*audio_tower.*q_proj|.*layers\.\d\.mlp\.(up|down)_proj",
        "rank_pattern": {r"conformer\.2\..*q_proj": 5, r"layers\.[67]\.mlp\.up_proj": 2},
        "alpha_pattern": {r"conformer\.[12]\..*q_proj": 9, r"layers\.[78]\.mlp\.down_proj": 20},
    },
    "modules in full": {
        "target_modules": ["q_proj"],
        "modules_to_save": [
            "per_layer_model_projection",
            "embed_tokens_per_layer",
            "down_proj",
            "embedding_projection",
        ],
    },
    "chosen layers": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "layers_to_transform": list(CHOSEN),
        "layers_pattern": "layers",
    },
    "scaled by the root of the rank": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    "per-layer embeddings": {"target_modules": ["embed_tokens_per_layer", "q_proj"]},
}
# Not to be merged, so what they compute is compared: the token table is also the head, and no layer here has a bias.
UNMERGED: dict[str, dict[str, Any]] = {
    "token tables": {"target_modules": ["embed_tokens", "embed_tokens_per_layer"]},
    "biases": {"target_modules": ["q_proj", "gate_proj", "down_proj"], "lora_bias": True},
}


@cache
def base() -> Gemma3n:
    return tiny_model(CONFIG, dtype=torch.float64)


@cache
def trained(kind: str) -> Path:
    """An adapter of PEFT's own making, all of it far from its start."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    adapted = get_peft_model(
        tiny_model(CONFIG), with_our_layers(LoraConfig(r=3, lora_alpha=6, **(KINDS | UNMERGED)[kind]))
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(directory / "adapter"))
    return directory / "adapter"


@cache
def merged_parent(kind: str) -> Gemma3n:
    return merge(load_adapter(tiny_model(CONFIG, dtype=torch.float64), trained(kind)).double())


@pytest.mark.parametrize("kind", KINDS)
@given(sub=sub_models(CONFIG))
@settings(max_examples=3)
def test_slicing_commutes_with_merging_an_adapter_of_any_kind(kind: str, sub: SubModel) -> None:
    assume(set(CHOSEN) & set(sub.spec.kept_layers))  # otherwise nothing may be left of the adapter, and is refused
    with scratch() as directory:
        slice_adapter(trained(kind), directory / "small", sub, CONFIG)
        sliced_then_merged = weights(merge(load_adapter(slice_module(base(), sub), directory / "small").double()))
    merged_then_sliced = weights(slice_module(merged_parent(kind), sub))
    assert merged_then_sliced.keys() == sliced_then_merged.keys()
    for name, tensor in sliced_then_merged.items():
        # B @ A of fewer rows may be summed in another order.
        torch.testing.assert_close(tensor, merged_then_sliced[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_changes_the_parent(kind: str) -> None:
    changed = [name for name, tensor in weights(merged_parent(kind)).items() if not tensor.equal(weights(base())[name])]
    assert len(changed) > 2


@cache
def adapted_parent(kind: str) -> PeftModel:
    return load_adapter(tiny_model(CONFIG, dtype=torch.float64), trained(kind)).double()


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")  # that biases cannot be merged
@pytest.mark.parametrize("trimmed", [False, True], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("kind", UNMERGED)
@given(spec=specs(TINY_TEXT))
@settings(max_examples=3)
def test_what_cannot_be_merged_computes_in_a_sub_model_what_it_computes_in_the_parent(
    kind: str, spec: SliceSpec, *, trimmed: bool
) -> None:
    ids = range(TINY_TEXT.vocab_size_per_layer_input)
    vocabulary = Vocabulary.of(ids[::2], CONFIG) if trimmed else None
    kept = torch.tensor(vocabulary.kept if vocabulary else ids)  # the sub-model's ids are their places here
    with scratch() as directory:
        slice_adapter(trained(kind), directory / "small", SubModel(spec, vocabulary=vocabulary), CONFIG)
        small = slice_module(base(), SubModel(spec, vocabulary=vocabulary))
        small = load_adapter(small, directory / "small").double()
    inputs = tiny_inputs(CONFIG)
    own = inputs.ids % len(kept)
    with torch.no_grad(), in_float64():
        parents = replace(inputs, ids=kept[own])
        expected = adapted_parent(kind)(parents, spec=spec).logits[..., kept]
        found = small(replace(inputs, ids=own)).logits[..., : len(kept)]
        plain = base()(parents, spec=spec).logits[..., kept]
    assert_close(found, expected)
    assert not torch.allclose(plain, expected, rtol=0.1)
