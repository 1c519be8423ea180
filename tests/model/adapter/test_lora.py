# SPDX-License-Identifier: Apache-2.0
"""Adapters: attach, train, save, load, merge; alone and on transformers' model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.adapter.lora import AdapterConfig, attach, load_adapter, merge, save_adapter, with_our_layers
from model.adapter.targets import TargetSet
from model.checkpoint.saving import save
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.gemma3n import Gemma3n
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, slice_adapter
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

CONFIG = tiny_config()
INPUTS = tiny_inputs(CONFIG)
EVERYTHING = [TargetSet.all_linear, TargetSet.per_layer]
SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
PREFIX = "base_model.model."


@torch.no_grad()
def scores(model: Callable[..., object], spec: SliceSpec | None = None) -> Tensor:
    return model(INPUTS, spec=spec).logits  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def randomise(adapted: PeftModel) -> PeftModel:
    """Factors whose update is far from zero."""
    generator = torch.Generator().manual_seed(4)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


def adapted_tiny(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PeftModel:
    config = AdapterConfig(targets=EVERYTHING, rank=3, alpha=6, dropout=dropout)
    return randomise(attach(tiny_model(dtype=dtype), config)).eval()


def of_multimodal_base(adapted: PeftModel) -> PeftModel:
    """The same, as if its base had been read from a multimodal checkpoint."""
    base = cast(Gemma3n, adapted.get_base_model())
    base.config = ModelConfig(text=TINY_TEXT, published={"model_type": "gemma3n"})
    return adapted


def test_a_fresh_adapter_changes_nothing() -> None:
    adapted = attach(tiny_model(), AdapterConfig(targets=EVERYTHING, rank=2, alpha=2))
    assert torch.equal(scores(adapted), scores(tiny_model()))
    assert torch.equal(scores(adapted, SPEC), scores(tiny_model(), SPEC))


def test_only_factors_are_trained() -> None:
    adapted = attach(tiny_model(), AdapterConfig(targets=[TargetSet.ffn], rank=2, alpha=2))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3 * TINY_TEXT.num_hidden_layers
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("spec", [None, SPEC])
def test_factors_are_float32_beside_a_bfloat16_base_and_learn(spec: SliceSpec | None) -> None:
    adapted = adapted_tiny(torch.bfloat16)
    factors = [parameter for name, parameter in adapted.named_parameters() if "lora_" in name]
    assert {factor.dtype for factor in factors} == {torch.float32}
    adapted(INPUTS, spec=spec).logits.sum().backward()
    assert sum(factor.grad is not None and bool(factor.grad.any()) for factor in factors) > len(factors) / 2


@pytest.mark.parametrize("spec", [None, SPEC])
def test_dropout_is_on_in_training_and_off_in_evaluation(spec: SliceSpec | None) -> None:
    adapted = adapted_tiny(dropout=0.5)
    assert torch.equal(scores(adapted, spec), scores(adapted_tiny(), spec))
    adapted.train()
    torch.manual_seed(0)
    first = scores(adapted, spec)
    assert not torch.equal(first, scores(adapted, spec))


def test_a_switched_off_adapter_leaves_the_base_at_every_size() -> None:
    adapted = adapted_tiny()
    with adapted.disable_adapter():
        assert torch.equal(scores(adapted), scores(tiny_model()))
        assert torch.equal(scores(adapted, SPEC), scores(tiny_model(), SPEC))


def test_a_narrow_layer_honours_a_merged_adapter_and_taking_it_out_again() -> None:
    adapted = adapted_tiny(torch.float64)  # where sums in another order are the same sums
    before = scores(adapted, SPEC)
    adapted.merge_adapter()
    torch.testing.assert_close(scores(adapted, SPEC), before, rtol=0, atol=1e-6)
    with adapted.disable_adapter():
        torch.testing.assert_close(
            scores(adapted, SPEC), scores(tiny_model(dtype=torch.float64), SPEC), rtol=0, atol=1e-6
        )


def test_a_saved_adapter_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    adapted = adapted_tiny()
    save_adapter(adapted, tmp_path / "adapter")
    loaded = load_adapter(tiny_model(), tmp_path / "adapter")
    assert torch.equal(scores(loaded), scores(adapted))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("trainable", [False, True])
def test_the_dropout_of_a_loaded_adapter_is_on_only_if_it_is_to_be_trained(tmp_path: Path, *, trainable: bool) -> None:
    save_adapter(adapted_tiny(dropout=0.5), tmp_path / "adapter")
    loaded = load_adapter(tiny_model(), tmp_path / "adapter", trainable=trainable)
    assert torch.equal(scores(loaded), scores(loaded)) is not trainable


def test_a_loaded_adapter_can_be_trained_on(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    loaded = load_adapter(tiny_model(), tmp_path / "adapter", trainable=True)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in loaded.named_parameters())


def test_a_merged_model_has_its_original_names_and_the_adapted_models_scores() -> None:
    adapted = adapted_tiny(torch.float64)  # where sums in another order are the same sums
    expected, narrow = scores(adapted), scores(adapted, SPEC)
    merged = merge(adapted)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in tiny_model().named_parameters()]
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(scores(merged), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores(merged, SPEC), narrow, rtol=0, atol=1e-6)


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once() -> None:
    adapted = adapted_tiny(torch.bfloat16)
    name = "model.language_model.layers.0.mlp.up_proj"
    factors = {key: value.detach() for key, value in adapted.named_parameters() if f"{name}.lora" in key}
    down, up = (factors[f"{PREFIX}{name}.lora_{factor}.default.weight"] for factor in "AB")
    base = dict(tiny_model(dtype=torch.bfloat16).named_parameters())[f"{name}.weight"]
    exact = (base.float() + 2.0 * (up @ down)).bfloat16()
    assert torch.equal(dict(merge(adapted).named_parameters())[f"{name}.weight"], exact)


def test_an_adapter_that_broke_in_training_is_not_merged_quietly() -> None:
    adapted = adapted_tiny()
    with torch.no_grad():
        next(parameter for name, parameter in adapted.named_parameters() if "lora_A" in name).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        merge(adapted)


def by_peft(**lora: object) -> PeftModel:
    """An adapter attached by PEFT's own means."""
    config = LoraConfig(r=2, lora_alpha=4, **lora)  # pyright: ignore[reportArgumentType]
    return randomise(cast(PeftModel, get_peft_model(tiny_model(), with_our_layers(config))))


def test_an_adapter_of_the_token_table_cannot_be_merged_into_a_tied_head(tmp_path: Path) -> None:
    by_peft(target_modules=["embed_tokens"]).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="the table is also the head"):
        merge(load_adapter(tiny_model(), tmp_path))


def test_an_adapter_of_the_per_layer_table_is_scaled_like_the_table_and_merges() -> None:
    adapted = by_peft(target_modules=["embed_tokens_per_layer"]).eval()
    expected = scores(adapted)
    torch.testing.assert_close(scores(merge(adapted)), expected, rtol=0, atol=2e-4)  # fp32 sums in another order


def test_what_an_expression_for_another_layout_excludes_has_no_factors(tmp_path: Path) -> None:
    by_peft(target_modules=["q_proj", "up_proj"], exclude_modules=r".*\.layers\.[3-8]\..*").save_pretrained(
        str(tmp_path)
    )
    config = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    (tmp_path / ADAPTER_CONFIG_FILE).write_text(json.dumps(config | {"exclude_modules": r"model\.layers\.[3-8]\..*"}))
    loaded = load_adapter(tiny_model(), tmp_path)
    assert not [name for name, _ in loaded.named_parameters() if "layers.3" in name and "lora_" in name]


def test_factors_of_the_keys_and_values_of_readers_are_dropped(tmp_path: Path) -> None:
    """transformers before 5.6 makes them, though nothing reads those projections."""
    by_peft(target_modules=["q_proj", "k_proj", "v_proj"], rank_pattern={"k_proj": 3}).save_pretrained(str(tmp_path))
    expected = scores(load_adapter(tiny_model(), tmp_path))
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS_FILE)
    alive = {name: tensor for name, tensor in tensors.items() if "layers.0" in name and "q_proj" not in name}
    for layer in range(TINY_TEXT.first_shared_layer, TINY_TEXT.num_hidden_layers):
        tensors |= {name.replace("layers.0", f"layers.{layer}"): tensor.clone() for name, tensor in alive.items()}
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS_FILE)
    assert torch.equal(scores(load_adapter(tiny_model(), tmp_path)), expected)
    slice_adapter(tmp_path, tmp_path / "small", SubModel(SPEC), CONFIG)
    small = load_adapter(slice_module(tiny_model(), SubModel(SPEC)), tmp_path / "small")
    torch.testing.assert_close(scores(small), scores(load_adapter(tiny_model(), tmp_path), SPEC), rtol=0, atol=2e-4)


@pytest.mark.parametrize("coefs", ["prediction_coefs", "correction_coefs"])
def test_an_adapter_of_altups_coefficients_is_refused_by_name(tmp_path: Path, coefs: str) -> None:
    by_peft(target_modules=["q_proj", coefs]).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=rf"layers\.0\.altup\.{coefs}'.*never calls.*train it without"):
        load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize("module", ["per_layer_model_projection", "down_proj", "q_norm", "embed_tokens_per_layer"])
def test_modules_that_were_trained_in_full_are_loaded_saved_and_merged(tmp_path: Path, module: str) -> None:
    trained = randomise(by_peft(target_modules=["q_proj"], modules_to_save=[module])).eval()
    trained.save_pretrained(str(tmp_path / "peft"))
    for spec in (None, SPEC):
        expected = scores(trained, spec)
        assert not torch.allclose(expected, scores(tiny_model(), spec), atol=0.1)
        loaded = load_adapter(tiny_model(), tmp_path / "peft")
        assert torch.equal(scores(loaded, spec), expected)
        save_adapter(loaded, tmp_path / "ours", overwrite=True)
        assert torch.equal(scores(load_adapter(tiny_model(), tmp_path / "ours"), spec), expected)
        torch.testing.assert_close(scores(merge(loaded), spec), expected, rtol=0, atol=2e-4)  # sums in another order


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trainable_token_indices": [1, 2]}, "has trainable_token_indices, .* merge it in transformers and load"),
        ({"modules_to_save": ["embed_tokens"]}, "has a token table of its own .* the table is also the head"),
    ],
)
def test_tokens_that_were_trained_by_themselves_are_refused(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    by_peft(target_modules=["q_proj"], **settings).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=told):
        load_adapter(tiny_model(), tmp_path)


def test_a_model_gets_no_second_adapter(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    model = tiny_model()
    attach(model, AdapterConfig(targets=[TargetSet.attention], rank=2, alpha=2))
    with pytest.raises(CheckpointError, match="merge it first"):
        attach(model, AdapterConfig(targets=[TargetSet.ffn], rank=2, alpha=2))
    with pytest.raises(CheckpointError, match="merge it first"):
        load_adapter(model, tmp_path / "adapter")


def test_of_several_adapters_none_is_saved_or_merged_in_place_of_all(tmp_path: Path) -> None:
    adapted = adapted_tiny()
    adapted.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"\['default', 'other'\], but one per model"):
        save_adapter(adapted, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="one per model"):
        merge(adapted)


def test_kinds_of_peft_that_cannot_be_narrowed_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="MiCALinearVariant cannot be narrowed"):
        by_peft(target_modules=["up_proj"], init_lora_weights="mica")


def test_an_adapter_of_another_size_is_refused_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    other = tiny_model(tiny_config(intermediate_size=(40,) * 9))
    names = [name for name, _ in other.named_parameters()]
    with pytest.raises(CheckpointError, match=r"27 misshapen .* slice the adapter like its base"):
        load_adapter(other, tmp_path / "adapter")
    assert [name for name, _ in other.named_parameters()] == names


def test_an_adapter_with_tensors_too_many_and_too_few_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS_FILE)
    name = next(iter(tensors))
    tensors[name.replace("layers.0", "layers.77")] = tensors.pop(name)
    save_file(tensors, tmp_path / "adapter" / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=r"1 missing .*layers\.0\..* 1 extra .*layers\.77\."):
        load_adapter(tiny_model(), tmp_path / "adapter")


def test_a_directory_that_is_no_adapter_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json there"):
        load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("alpha", -1), ("dropout", 1.0)])
def test_a_senseless_adapter_config_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        AdapterConfig(**{field: value})  # pyright: ignore[reportArgumentType]


def test_peft_by_itself_loads_an_adapter_of_a_multimodal_base_onto_our_model(tmp_path: Path) -> None:
    adapted = of_multimodal_base(adapted_tiny())
    save_adapter(adapted, tmp_path / "adapter")
    assert torch.equal(
        scores(PeftModel.from_pretrained(tiny_model().eval(), str(tmp_path / "adapter"))), scores(adapted)
    )


@pytest.mark.parity
def test_peft_loads_our_adapter_onto_transformers_text_model(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "base")
    adapted = adapted_tiny()
    save_adapter(adapted, tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    theirs = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    with torch.no_grad():
        logits = theirs(input_ids=INPUTS.ids, use_cache=False).logits
    assert not torch.allclose(logits, scores(tiny_model()), atol=0.1)
    torch.testing.assert_close(logits, scores(adapted), rtol=0, atol=2e-4)  # fp32 sums in another order


@pytest.mark.parity
def test_we_load_an_adapter_that_peft_made_on_transformers_text_model(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=r"model\.layers\.\d\.(self_attn\.q_proj|mlp\.down_proj)")
    theirs = randomise(cast(PeftModel, get_peft_model(base, lora))).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        logits = theirs(input_ids=INPUTS.ids, use_cache=False).logits
    ours = load_adapter(tiny_model(), tmp_path / "adapter")
    torch.testing.assert_close(logits, scores(ours), rtol=0, atol=2e-4)  # fp32 sums in another order


@pytest.mark.parity
@pytest.mark.parametrize(
    "pattern", ["model.layers.0.self_attn.q_proj", r"^model\.layers\.[0-2]\.mlp.*", r"layers\.7\..*", "o_proj"]
)
def test_ranks_and_strengths_of_single_modules_are_those_peft_gives_them_on_transformers_text_model(
    tmp_path: Path, pattern: str
) -> None:
    save(tiny_model(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    leaves = ["q_proj", "o_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=2, lora_alpha=4, target_modules=leaves, rank_pattern={pattern: 3}, alpha_pattern={pattern: 20},
        layers_to_transform=[0, 1, 7],
    )  # fmt: skip
    theirs = randomise(cast(PeftModel, get_peft_model(base, lora))).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        logits = theirs(input_ids=INPUTS.ids, use_cache=False).logits
    ours = load_adapter(tiny_model(), tmp_path / "adapter")
    torch.testing.assert_close(logits, scores(ours), rtol=0, atol=2e-4)  # fp32 sums in another order
    save_adapter(of_multimodal_base(ours), tmp_path / "saved")
    again = load_adapter(tiny_model(), tmp_path / "saved")
    assert torch.equal(scores(again), scores(ours))
