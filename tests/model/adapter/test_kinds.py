# SPDX-License-Identifier: Apache-2.0
"""Every kind of adapter that can be asked for: begun, trained, saved, loaded, narrowed, merged; here and in PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adapter.config import AdapterConfig
from model.adapter.lora import attach, load_adapter, merge, save_adapter
from model.adapter.targets import TargetSet
from model.errors import CheckpointError, ConfigError
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images
from model.slicing.adapter import ADAPTER_WEIGHTS_FILE
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.daily import daily
from tests.parity.reference import multimodal_reference_of, reference_of, relative
from tests.tiny import (
    GLOBAL,
    LOCAL,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_multimodal_config,
    tiny_multimodal_inputs,
)
from trainer.step import SupervisedLoss
from trainer.weights import adapter_weights

# Two producers of keys and values, a reader of each, and one more reader that is skipped below.
CONFIG = tiny_config(
    layer_types=(LOCAL, GLOBAL, GLOBAL, LOCAL, GLOBAL),
    intermediate_size=(48,) * 5,
    activation_sparsity_pattern=(0.9,) + (0.0,) * 4,
    num_kv_shared_layers=3,
)
INPUTS = tiny_inputs(CONFIG, padding="right")
FULL = SliceSpec.full(CONFIG.text)
NARROW = SliceSpec.resolve(SliceConfig(name="narrow", ffn_widths=[16]), CONFIG.text)
SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[2], ffn_widths=[16]), CONFIG.text)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora with dropout": {"dora": True, "dropout": 0.3},
    "patterns": {"rank_pattern": {r"layers\.[0-2]\..*": 2, "q_proj": 6}, "alpha_pattern": {"mlp.down_proj": 20}},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal", "rank": 4},
    "pissa": {"init": "pissa"},
    "quick pissa": {"init": "pissa_niter_4"},
    "pissa with patterns": {
        "init": "pissa", "rslora": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"mlp\..*": 9},
    },
    "olora": {"init": "olora"},
}  # fmt: skip
STARTED = [kind for kind, how in KINDS.items() if how.get("init", "") not in ("", "gaussian", "orthogonal")]
SOME = pytest.mark.parametrize("kind", ["dora with dropout", "pissa with patterns"])
ALL = pytest.mark.parametrize("kind", daily(KINDS, "lora", "dora with dropout", "pissa with patterns"))


def base(dtype: torch.dtype = torch.float32) -> Gemma3n:
    return tiny_model(CONFIG, spread=0.1, dtype=dtype)


def fresh(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    settings = {"targets": [TargetSet.all_linear, TargetSet.per_layer], "rank": 3, "alpha": 6} | KINDS[kind]
    return attach(base(dtype), AdapterConfig(**settings))


def train(adapted: PeftModel, *, steps: int = 2) -> list[float]:
    """A few steps by the path that training takes, at a size that moves everything."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses, training = [], SupervisedLoss(adapted.train())
    labels = INPUTS.ids.roll(-1, 1).masked_fill(~INPUTS.mask, -100)
    for _ in range(steps):
        loss = training(INPUTS, labels, FULL) / 50
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trained(kind: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    adapted = fresh(kind, dtype)
    train(adapted)
    return adapted.eval()


@torch.no_grad()
def scores(model: nn.Module, spec: SliceSpec | None = None) -> Tensor:
    return model.eval()(INPUTS, spec=spec).logits[INPUTS.mask]


@torch.no_grad()
def their_scores(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=INPUTS.ids, attention_mask=INPUTS.mask.long()).logits.float()[INPUTS.mask]


@ALL
def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        adapted = fresh(kind, dtype)
        for spec in (FULL, SPEC):
            found, expected = scores(adapted, spec), scores(base(dtype), spec)
            if kind == "orthogonal":  # its factors are orthogonal up to rounding
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.1)
            else:
                assert torch.equal(found, expected)


@ALL
def test_training_moves_every_factor_and_nothing_of_the_base(kind: str) -> None:
    adapted = trained(kind)
    before = dict(fresh(kind).named_parameters())
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name
    own = dict(base().named_parameters())
    kept = {name.replace(".base_layer", ""): p for name, p in adapted.get_base_model().named_parameters()}
    assert all(torch.equal(kept[name], parameter) for name, parameter in own.items())
    assert relative(scores(adapted), scores(base())) > 3e-3
    with adapted.disable_adapter():
        assert torch.equal(scores(adapted), scores(base()))


@pytest.mark.parity
@ALL
def test_a_saved_adapter_is_the_same_when_we_load_it_and_when_peft_puts_it_into_transformers_model(
    tmp_path: Path, kind: str
) -> None:
    adapted = trained(kind)
    save_adapter(adapted, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(reference_of(base()), str(tmp_path / "adapter"))
    assert relative(scores(adapted), their_scores(theirs)) <= 1e-5
    loaded = load_adapter(base(), tmp_path / "adapter")
    assert relative(scores(loaded), scores(adapted)) <= (1e-5 if kind in STARTED else 0)
    assert relative(scores(loaded, SPEC), scores(adapted, SPEC)) <= (1e-5 if kind in STARTED else 0)


@pytest.mark.parity
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 5}, "alpha_pattern": {"q_proj": 9}},
        {"init_lora_weights": "orthogonal"},
    ],
)
def test_we_load_what_peft_trained_on_transformers_model(tmp_path: Path, settings: dict[str, Any]) -> None:
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=leaves, **settings)
    theirs = cast(Any, get_peft_model(cast(Any, reference_of(base())), lora))
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        theirs(input_ids=INPUTS.ids, attention_mask=INPUTS.mask.long(), labels=INPUTS.ids).loss.backward()
        optimizer.step()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    ours = load_adapter(base(), tmp_path / "adapter")
    expected = their_scores(theirs)
    assert relative(scores(base()), expected) > 1e-2
    assert relative(scores(ours), expected) <= 1e-5
    save_adapter(ours, tmp_path / "again")
    assert torch.equal(scores(load_adapter(base(), tmp_path / "again")), scores(ours))


@ALL
def test_the_forward_pass_of_a_spec_is_that_of_the_merged_and_sliced_model(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    adapted = trained(kind).double()
    expected, narrow = scores(adapted), scores(adapted, SPEC)
    merged = merge(adapted)
    assert relative(scores(merged), expected) <= 1e-12
    assert relative(scores(slice_module(merged, SubModel(SPEC))), narrow) <= 1e-12


@SOME
def test_a_trained_spec_leaves_alone_what_is_cut_of_the_factors(kind: str) -> None:
    adapted = trained(kind)
    SupervisedLoss(adapted.train())(INPUTS, INPUTS.ids, NARROW).backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and ".mlp." in name:
            assert parameter.grad is not None
            is_second = "lora_A" not in name
            cut = parameter.grad[:, 16:] if "down_proj.lora_A" in name else parameter.grad[16:]
            if "down_proj.lora_A" in name or (is_second and "down_proj" not in name):
                assert not cut.any(), name
            assert parameter.grad.any(), name


@SOME
def test_a_run_goes_on_from_what_it_saved_as_if_it_had_not_stopped(tmp_path: Path, kind: str) -> None:
    straight = fresh(kind)
    train(straight)
    (tmp_path / "weights").mkdir()
    adapter_weights(straight).save(tmp_path / "weights")
    resumed = fresh(kind, seed=5)
    adapter_weights(resumed).load(tmp_path / "weights")
    assert torch.equal(scores(resumed), scores(straight))
    assert train(resumed) == train(straight)


def test_merging_a_bfloat16_base_rounds_magnitudes_and_starts_once() -> None:
    for kind in ("dora", "pissa"):
        adapted = trained(kind, torch.bfloat16)
        exact, rounded = merge(copy.deepcopy(adapted).float()), merge(adapted)
        for (name, wanted), found in zip(exact.named_parameters(), rounded.parameters(), strict=True):
            assert torch.equal(found, wanted.bfloat16()), name


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"init": "gaussian"}])
def test_towers_take_every_kind_that_is_not_made_of_matrices(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = tiny_multimodal_config()
    inputs = tiny_multimodal_inputs(config, "text image text audio", "text audio image text", frames=[64])
    targets = [TargetSet.vision, TargetSet.audio, TargetSet.embedders]
    adapted = attach(tiny_model(config, spread=0.1), AdapterConfig(targets=targets, rank=2, alpha=4, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.normal_(std=0.1 / parameter[0].numel() ** 0.5)
            elif parameter.requires_grad:
                parameter.mul_(1.05)
        adapted.eval()
        save_adapter(adapted, tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(
            multimodal_reference_of(tiny_model(config, spread=0.1)), str(tmp_path / "adapter")
        ).eval()
        assert isinstance(inputs.images, Images)
        assert isinstance(inputs.audio, Audio)
        expected = theirs(
            input_ids=inputs.ids, attention_mask=inputs.mask.long(), pixel_values=inputs.images.pixels,
            input_features=inputs.audio.frames, input_features_mask=inputs.audio.mask,
        ).logits[inputs.mask]  # fmt: skip
        assert relative(adapted(inputs).logits[inputs.mask], expected) <= 1e-5
        assert relative(tiny_model(config, spread=0.1)(inputs).logits[inputs.mask], expected) > 1e-3
        assert relative(merge(adapted)(inputs).logits[inputs.mask], expected) <= 1e-5


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_starts_that_are_made_of_matrices_are_refused_for_convolutions(init: str) -> None:
    model = Gemma3n.build(tiny_multimodal_config().only([Modality.vision]), device="meta")
    with pytest.raises(ConfigError, match=r"made for linear maps, but '.*conv.*' is a Conv2d"):
        attach(model, AdapterConfig(targets=[TargetSet.vision], rank=2, alpha=2, init=init))


def test_a_start_larger_than_a_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes 17 parts of the weight of '.*k_proj', but it has only 16"):
        attach(base(), AdapterConfig(targets=[TargetSet.attention], rank=17, init="pissa"))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_peft_trained_on_a_changed_base_is_refused(tmp_path: Path, init: str) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=cast(Any, init))
    get_peft_model(cast(Any, reference_of(base())), lora).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=f"'{init}'.*fits no published one"):
        load_adapter(base(), tmp_path)


@pytest.mark.parity
def test_an_adapter_that_peft_fitted_to_the_published_base_again_is_loaded(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")
    theirs = get_peft_model(cast(Any, reference_of(base())), lora)
    theirs.save_pretrained(str(tmp_path / "start"))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    expected = their_scores(theirs)
    theirs.save_pretrained(str(tmp_path / "end"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert relative(scores(load_adapter(base(), tmp_path / "end")), expected) <= 1e-5
    assert relative(scores(base()), expected) > 1e-2


def test_magnitudes_of_readers_keys_and_values_are_dropped(tmp_path: Path) -> None:
    save_adapter(trained("dora"), tmp_path / "adapter")
    expected = scores(load_adapter(base(), tmp_path / "adapter"))
    path = tmp_path / "adapter" / ADAPTER_WEIGHTS_FILE
    tensors = load_file(path)
    tensors |= {
        name.replace("layers.0", "layers.4"): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.0.self_attn.k_proj" in name
    }
    save_file(tensors, path)
    assert torch.equal(scores(load_adapter(base(), tmp_path / "adapter")), expected)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"init": "loftq"}, "not quantised here"),
        ({"init": "pisssa"}, "choose default, gaussian"),
        ({"init": "pissa_niter_0"}, "choose default, gaussian"),
        ({"init": "orthogonal", "rank": 3}, "even ranks, but one is 3"),
        ({"init": "orthogonal", "rank_pattern": {"q_proj": 5}}, "even ranks, but one is 5"),
        ({"init": "pissa", "dora": True}, "exclude each other"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern: 'q_proj' is 0"),
        ({"alpha_pattern": {"q_proj": -1}}, r"alpha_pattern: 'q_proj' is -1"),
        ({"targets_matching": ["("]}, r"targets_matching: '\(' is no regular expression"),
        ({"exclude_matching": ["*"]}, r"exclude_matching: '\*' is no regular expression"),
    ],
)
def test_a_senseless_adapter_config_is_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        AdapterConfig(**settings)
