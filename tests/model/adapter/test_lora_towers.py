# SPDX-License-Identifier: Apache-2.0
"""Adapters of the towers and embedders: attach, train, save, load, merge, slice; alone and on transformers' model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from model.adapter.lora import AdapterConfig, attach, load_adapter, merge, save_adapter
from model.adapter.targets import TargetSet
from model.checkpoint.load import load
from model.checkpoint.saving import save
from model.errors import CheckpointError, SliceError
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs
from model.slicing.adapter import ADAPTER_WEIGHTS_FILE, slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.parity.reference import multimodal_reference_of, relative
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

CONFIG = tiny_multimodal_config()
# Clips of one length: with others, the reference's soft tokens depend on a clip's batch-mates.
INPUTS = tiny_multimodal_inputs(CONFIG, "text image text audio text", "text audio image text", frames=[64])
TEXT_INPUTS = tiny_inputs(tiny_config())
MEDIA_SETS = [TargetSet.vision, TargetSet.audio, TargetSet.embedders]
EVERYTHING = [*MEDIA_SETS, TargetSet.text]
SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
PREFIX = "base_model.model."
TOLERANCE = 2e-5  # fp32 sums in another order, of the largest score; a third of it was seen


@torch.no_grad()
def scores(model: nn.Module, inputs: Inputs = INPUTS, **how: Any) -> Tensor:
    return model(inputs, **how).logits[inputs.mask]


@torch.no_grad()
def their_scores(model: nn.Module, inputs: Inputs = INPUTS) -> Tensor:
    media: dict[str, Any] = {}
    if isinstance(inputs.images, Images) and isinstance(inputs.audio, Audio):
        media["pixel_values"] = inputs.images.pixels
        media |= {"input_features": inputs.audio.frames, "input_features_mask": inputs.audio.mask}
    told = model.eval()(input_ids=inputs.ids, attention_mask=inputs.mask.long(), use_cache=False, **media)
    return told.logits.float()[inputs.mask]


@torch.no_grad()
def tiny(**how: Any) -> Gemma3n:
    """A model whose towers matter, and whose decoder does not enlarge their rounding."""
    model = tiny_model(CONFIG, **how)
    for parameter in model.model.language_model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.1)
    return model


@torch.no_grad()
def randomise(adapted: PeftModel) -> PeftModel:
    """Factors whose update is about as large as what it is added to."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            size = 1.0 if "lora_B" in name else (0.02 if "language_model" in name else 0.2)
            parameter.copy_(size / parameter[0].numel() ** 0.5 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def adapted_tiny(targets: Iterable[TargetSet] = EVERYTHING, **how: Any) -> PeftModel:
    return randomise(attach(tiny(**how), AdapterConfig(targets=list(targets), rank=3, alpha=6)))


@pytest.mark.parametrize("targets", [[target_set] for target_set in EVERYTHING])
def test_every_set_changes_what_the_model_says_of_media(targets: list[TargetSet]) -> None:
    whole = tiny()
    fresh = attach(tiny(), AdapterConfig(targets=targets, rank=3, alpha=6))
    assert torch.equal(scores(fresh.eval()), scores(whole.eval()))
    assert relative(scores(adapted_tiny(targets)), scores(whole)) > 100 * TOLERANCE


def test_every_factor_gets_a_gradient() -> None:
    adapted = adapted_tiny()
    # Of token scores alone, the last local layer's queries and the like may have none; of all, every factor has.
    adapted(INPUTS).logits.square().sum().backward()
    factors = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert not [name for name, factor in factors.items() if factor.grad is None or not factor.grad.any()]


def test_towers_whose_adapter_is_of_the_text_alone_run_outside_autograd() -> None:
    adapted = adapted_tiny([TargetSet.text])
    soft = cast(Any, adapted.get_base_model()).soft_tokens(INPUTS)
    assert not soft.images.features.requires_grad
    assert not soft.audio.features.requires_grad


def test_a_saved_adapter_of_everything_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    adapted = adapted_tiny()
    save_adapter(adapted, tmp_path / "adapter")
    assert torch.equal(scores(load_adapter(tiny(), tmp_path / "adapter")), scores(adapted))


def test_a_merged_model_has_its_original_names_and_the_adapted_models_scores() -> None:
    adapted = adapted_tiny()
    expected = scores(adapted)
    merged = merge(adapted)
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in tiny_model(CONFIG).named_parameters()
    ]
    assert relative(scores(merged), expected) <= TOLERANCE


def test_a_bfloat16_convolution_is_merged_in_float32_and_rounded_once() -> None:
    adapted = adapted_tiny([TargetSet.vision], dtype=torch.bfloat16)
    name = "model.vision_tower.timm_model.msfa.ffn.pw_exp.conv"
    factors = {key: value.detach() for key, value in adapted.named_parameters() if f"{name}.lora" in key}
    down, up = (factors[f"{PREFIX}{name}.lora_{factor}.default.weight"].flatten(1) for factor in "AB")
    base = dict(tiny(dtype=torch.bfloat16).named_parameters())[f"{name}.weight"]
    exact = (base.float() + 2.0 * (up @ down)[..., None, None]).bfloat16()
    assert torch.equal(dict(merge(adapted).named_parameters())[f"{name}.weight"], exact)


@pytest.mark.parametrize(("kept", "lacking"), [([], "audio and vision"), ([Modality.audio], "vision")])
def test_an_adapter_of_a_tower_that_the_model_does_not_have_is_refused(
    tmp_path: Path, kept: list[Modality], lacking: str
) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=f"adapts the model's {lacking} part, but this model has text"):
        load_adapter(tiny_model(CONFIG.only(kept)), tmp_path / "adapter")


def test_a_sub_models_adapter_carries_what_is_changed_of_towers_whole(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    slice_adapter(tmp_path / "adapter", tmp_path / "small", SubModel(SPEC), CONFIG)
    parent, small = (load_file(tmp_path / kind / ADAPTER_WEIGHTS_FILE) for kind in ("adapter", "small"))
    towers = {name for name in parent if "language_model" not in name}
    assert towers == {name for name in small if "language_model" not in name}
    assert all(torch.equal(parent[name], small[name]) for name in towers)


def test_of_a_sub_model_without_a_tower_the_adapter_has_nothing_of_it(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(), tmp_path / "adapter")
    slice_adapter(tmp_path / "adapter", tmp_path / "small", SubModel(SPEC, modalities=(Modality.audio,)), CONFIG)
    names = load_file(tmp_path / "small" / ADAPTER_WEIGHTS_FILE)
    assert any("audio" in name for name in names)
    assert not [name for name in names if "vision" in name]
    small = load(sliced_base(tmp_path, [Modality.audio]), dtype=torch.float32)
    load_adapter(small, tmp_path / "small")


def test_an_adapter_of_towers_alone_leaves_nothing_to_a_text_model(tmp_path: Path) -> None:
    save_adapter(adapted_tiny(MEDIA_SETS), tmp_path / "adapter")
    with pytest.raises(SliceError, match="none of the kept layers and towers; nothing is left"):
        slice_adapter(tmp_path / "adapter", tmp_path / "small", SubModel(SPEC, modalities=(Modality.text,)), CONFIG)


def sliced_base(directory: Path, modalities: list[Modality]) -> Path:
    save(tiny(), directory / "base")
    slice_checkpoint(directory / "base", directory / "sliced", SubModel(SPEC, modalities=tuple(modalities)))
    return directory / "sliced"


@pytest.mark.parity
def test_peft_loads_a_text_models_sliced_adapter_onto_transformers_text_model(tmp_path: Path) -> None:
    adapted = adapted_tiny()
    save_adapter(adapted, tmp_path / "adapter")
    slice_adapter(tmp_path / "adapter", tmp_path / "small", SubModel(SPEC, modalities=(Modality.text,)), CONFIG)
    base = AutoModelForCausalLM.from_pretrained(sliced_base(tmp_path, [Modality.text]))
    theirs = their_scores(PeftModel.from_pretrained(base, str(tmp_path / "small")), TEXT_INPUTS)
    ours = load_adapter(load(tmp_path / "sliced", dtype=torch.float32), tmp_path / "small")
    assert relative(scores(ours, TEXT_INPUTS), theirs) <= TOLERANCE
    assert relative(scores(load(tmp_path / "sliced", dtype=torch.float32), TEXT_INPUTS), theirs) > 100 * TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("targets", [EVERYTHING, [TargetSet.text]])
def test_peft_loads_our_adapter_onto_transformers_multimodal_model(tmp_path: Path, targets: list[TargetSet]) -> None:
    adapted = adapted_tiny(targets)
    save_adapter(adapted, tmp_path / "adapter")
    base = multimodal_reference_of(tiny())
    without = their_scores(base)
    theirs = their_scores(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    assert relative(scores(adapted), theirs) <= TOLERANCE
    assert relative(without, theirs) > 100 * TOLERANCE


@pytest.mark.parity
def test_an_adapter_trained_without_the_towers_fits_transformers_multimodal_model(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "base")
    text = load(tmp_path / "base", dtype=torch.float32, modalities=[Modality.text])
    adapted = randomise(attach(text, AdapterConfig(targets=[TargetSet.text], rank=3, alpha=6)))
    save_adapter(adapted, tmp_path / "adapter")
    base = multimodal_reference_of(tiny())
    theirs = their_scores(PeftModel.from_pretrained(base, str(tmp_path / "adapter")), text_only())
    assert relative(scores(adapted, text_only()), theirs) <= TOLERANCE


def text_only() -> Inputs:
    """Ids of text alone, of which a multimodal model and a text-only one say the same."""
    return tiny_multimodal_inputs(CONFIG, "text text text", "text")


@pytest.mark.parity
def test_we_load_an_adapter_that_peft_made_on_transformers_multimodal_model(tmp_path: Path) -> None:
    """Also of convolutions that look around, with and without a stride, which no set of ours has."""
    base = multimodal_reference_of(tiny())
    leaves = r".*(conv_exp|conv_stem\.conv|key\.proj|q_proj|pos_proj|input_proj_linear|embedding_projection|up_proj)"
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=leaves, alpha_pattern={"embed_vision.embedding_projection": 9})
    theirs = randomise(cast(PeftModel, get_peft_model(base, lora)))
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = load_adapter(tiny(), tmp_path / "adapter")
    expected = their_scores(theirs)
    assert relative(scores(ours), expected) <= TOLERANCE
    assert relative(scores(merge(ours)), expected) <= TOLERANCE
