# SPDX-License-Identifier: Apache-2.0
"""Adapters of sub-models: what of a PEFT directory is cut, renumbered, carried along or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.adapter.lora import load_adapter, merge, save_adapter, with_our_layers
from model.errors import CheckpointError, SliceError
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, slice_adapter, slice_peft_config
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

# Parent's layers 0 1 2 6 7 8 become 0 to 5.
SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
LONG = SubModel(SliceSpec("long", tuple(range(11)), (16,) * 11))
CONFIG = tiny_config()
INPUTS = tiny_inputs(CONFIG)


def trained(directory: Path, **lora: Any) -> Path:
    """An adapter made by PEFT itself, with random factors, written as PEFT writes it."""
    adapted = get_peft_model(tiny_model(), with_our_layers(LoraConfig(r=3, lora_alpha=6, **lora)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(directory / "parent"))
    return directory / "parent"


def sliced_config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / ADAPTER_CONFIG_FILE).read_text())


def edit(directory: Path, **changes: Any) -> None:
    path = directory / ADAPTER_CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_commutes_with_merging(parent: Path, target: Path) -> None:
    """The law L4, for one adapter and one spec."""
    slice_adapter(parent, target, SubModel(SPEC), CONFIG)
    merged_then_sliced = slice_module(merge(load_adapter(tiny_model(), parent)), SubModel(SPEC))
    sliced_then_merged = merge(load_adapter(slice_module(tiny_model(), SubModel(SPEC)), target))
    expected = dict(merged_then_sliced.named_parameters())
    for name, parameter in sliced_then_merged.named_parameters():
        # B @ A of fewer rows may be summed in another order.
        torch.testing.assert_close(parameter, expected[name], rtol=1e-6, atol=1e-6, msg=name)


def test_the_modules_of_chosen_layers_are_spelled_out(tmp_path: Path) -> None:
    parent = trained(
        tmp_path, target_modules=["q_proj", "up_proj"], layers_to_transform=[1, 4, 7], layers_pattern="layers"
    )
    assert_commutes_with_merging(parent, tmp_path / "small")
    written = sliced_config(tmp_path / "small")
    assert written["target_modules"] == [
        f"layers.{layer}.{leaf}" for layer in (1, 4) for leaf in ("mlp.up_proj", "self_attn.q_proj")
    ]
    assert written["layers_to_transform"] is None
    assert written["layers_pattern"] is None


@pytest.mark.parametrize(
    "excluded", [["layers.0.self_attn.q_proj", "layers.3.self_attn.q_proj"], r".*layers\.[036]\..*"]
)
def test_what_the_parent_excluded_stays_excluded(tmp_path: Path, excluded: list[str] | str) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"], exclude_modules=excluded)
    slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)
    written = sliced_config(tmp_path / "small")
    assert "layers.0.self_attn.q_proj" not in written["target_modules"]
    assert written["exclude_modules"] is None
    load_adapter(slice_module(tiny_model(), SubModel(SPEC)), tmp_path / "small")


def test_targets_by_full_path_are_renumbered_or_dropped(tmp_path: Path) -> None:
    text = "model.language_model"
    targets = [f"{text}.layers.2.mlp.down_proj", f"{text}.layers.4.mlp.down_proj", f"{text}.layers.8.mlp.down_proj"]
    parent = trained(tmp_path, target_modules=targets)
    assert_commutes_with_merging(parent, tmp_path / "small")
    assert sliced_config(tmp_path / "small")["target_modules"] == ["layers.2.mlp.down_proj", "layers.5.mlp.down_proj"]


def test_targets_are_written_in_the_order_of_layers(tmp_path: Path) -> None:
    written = slice_peft_config({}, [f"model.layers.{layer}.mlp.up_proj.lora_A.weight" for layer in (10, 2, 9)], LONG)
    assert written["target_modules"] == [f"layers.{layer}.mlp.up_proj" for layer in (2, 9, 10)]


def test_a_target_expression_becomes_the_modules_it_stood_for(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=r".*layers\.[4-7]\.mlp\.gate_proj")
    assert_commutes_with_merging(parent, tmp_path / "small")
    assert sliced_config(tmp_path / "small")["target_modules"] == ["layers.3.mlp.gate_proj", "layers.4.mlp.gate_proj"]


def test_rank_and_alpha_patterns_follow_their_layers(tmp_path: Path) -> None:
    parent = trained(
        tmp_path,
        target_modules=["q_proj", "gate_proj"],
        rank_pattern={r"layers\.[67]\.mlp\.gate_proj": 5, "layers.4.self_attn.q_proj": 2},
        alpha_pattern={"layers.7.mlp.gate_proj": 20},
    )
    assert_commutes_with_merging(parent, tmp_path / "small")
    written = sliced_config(tmp_path / "small")
    assert written["rank_pattern"] == {"layers.3.mlp.gate_proj": 5, "layers.4.mlp.gate_proj": 5}
    assert written["alpha_pattern"] == {"layers.4.mlp.gate_proj": 20}


def test_patterns_that_name_no_layers_are_spelled_out_too(tmp_path: Path) -> None:
    parent = trained(
        tmp_path,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2, "q_proj": 5},
        alpha_pattern={r".*\.[67]\.self_attn\.q_proj": 20},
    )
    assert_commutes_with_merging(parent, tmp_path / "small")
    written = sliced_config(tmp_path / "small")
    assert written["rank_pattern"]["layers.5.mlp.down_proj"] == 2
    assert written["alpha_pattern"] == {"layers.3.self_attn.q_proj": 20, "layers.4.self_attn.q_proj": 20}


def test_modules_trained_in_full_are_cut_like_base_weights(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"], modules_to_save=["per_layer_model_projection"])
    assert_commutes_with_merging(parent, tmp_path / "small")
    block = TINY_TEXT.hidden_size_per_layer_input
    name = "base_model.model.model.language_model.per_layer_model_projection.weight"
    assert load_file(tmp_path / "small" / ADAPTER_WEIGHTS_FILE)[name].shape == (6 * block, TINY_TEXT.hidden_size)


def test_an_adapter_of_the_per_layer_table_loses_the_skipped_layers_blocks(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["embed_tokens_per_layer", "o_proj"])
    assert_commutes_with_merging(parent, tmp_path / "small")


def test_a_bias_of_a_factor_is_cut_with_it(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["up_proj"], lora_bias=False)
    tensors = load_file(parent / ADAPTER_WEIGHTS_FILE)
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name.replace(".weight", ".bias")] = tensors[name][:, 0].clone()
    save_file(tensors, parent / ADAPTER_WEIGHTS_FILE)
    slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)
    biases = {
        name: tensor for name, tensor in load_file(tmp_path / "small" / ADAPTER_WEIGHTS_FILE).items() if "bias" in name
    }
    assert {tensor.shape for tensor in biases.values()} == {(16,)}


def test_an_adapter_spelled_as_on_transformers_text_only_model_keeps_its_spelling(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["up_proj"])
    tensors = load_file(parent / ADAPTER_WEIGHTS_FILE)
    renamed = {name.replace(".language_model", ""): tensor for name, tensor in tensors.items()}
    save_file(renamed, parent / ADAPTER_WEIGHTS_FILE)
    assert_commutes_with_merging(parent, tmp_path / "small")
    assert "base_model.model.model.layers.5.mlp.up_proj.lora_B.weight" in load_file(
        tmp_path / "small" / ADAPTER_WEIGHTS_FILE
    )


def test_dora_magnitudes_are_refused_by_name(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(SliceError, match=r"q_proj\.lora_magnitude_vector.*merge, then slice"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)


def test_an_adapter_of_skipped_layers_only_is_refused(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"], layers_to_transform=[3, 4])
    with pytest.raises(SliceError, match="nothing is left"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)
    assert not (tmp_path / "small").exists()


def test_a_tensor_that_is_no_factor_and_no_weight_is_refused_by_name(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"])
    tensors: dict[str, Tensor] = load_file(parent / ADAPTER_WEIGHTS_FILE)
    tensors["base_model.model.model.language_model.norm.strange"] = torch.zeros(2)
    save_file(tensors, parent / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=r"norm\.strange', which the parent does not have; give the adapter of"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"])
    edit(parent, peft_type="IA3")
    with pytest.raises(CheckpointError, match="IA3"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"])
    (parent / ADAPTER_WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)


def test_peft_itself_loads_a_sliced_adapter(tmp_path: Path) -> None:
    parent = trained(tmp_path, target_modules=["q_proj", "o_proj"])
    slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)
    by_peft = PeftModel.from_pretrained(slice_module(tiny_model(), SubModel(SPEC)), str(tmp_path / "small"))
    by_us = load_adapter(slice_module(tiny_model(), SubModel(SPEC)), tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(by_peft(INPUTS).logits, by_us(INPUTS).logits)
    save_adapter(by_us, tmp_path / "again")
    again, first = (load_file(tmp_path / kind / ADAPTER_WEIGHTS_FILE) for kind in ("again", "small"))
    assert len(again) == len(first)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_an_adapter_whose_config_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    parent = trained(tmp_path, target_modules=["q_proj"])
    (parent / ADAPTER_CONFIG_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read as a PEFT adapter"):
        slice_adapter(parent, tmp_path / "small", SubModel(SPEC), CONFIG)
    with pytest.raises(CheckpointError, match="cannot be read as a PEFT adapter"):
        load_adapter(tiny_model(), parent)
