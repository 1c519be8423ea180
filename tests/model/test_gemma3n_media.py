# SPDX-License-Identifier: Apache-2.0
"""The whole model with images and sound: when towers run, when they learn, and what their items depend on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.adapter.lora import AdapterConfig, attach
from model.adapter.targets import TargetSet
from model.config import ModelConfig, TextConfig
from model.errors import InputError
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs, SoftTokens
from model.processor.audio import AudioProcessor
from model.processor.media import Recording
from model.recompute import RecomputeConfig
from model.slicing.spec import SliceConfig, SliceSpec
from model.tower_config import AudioConfig, VisionConfig
from tests.tiny import (
    SEVEN_KINDS,
    TINY_AUDIO,
    TINY_TEXT,
    TINY_VISION,
    tiny_model,
    tiny_multimodal_config,
    tiny_multimodal_inputs,
)

CONFIG = tiny_multimodal_config()
EVERYTHING = SEVEN_KINDS["image+audio+text"]
HALF_WITHOUT_BLOCK = SliceSpec.resolve(SliceConfig(name="half", skip_layers=[3, 4, 5], ffn_widths=[24]), TINY_TEXT)
RECORDINGS = Path(__file__).parents[2] / "recipes" / "recordings"


def towers_of(model: Gemma3n) -> dict[str, nn.Module]:
    names = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    return {name: model.model.get_submodule(name) for name in names}


def frozen(model: Gemma3n) -> Gemma3n:
    for name in ("vision_tower", "audio_tower"):
        model.model.get_submodule(name).requires_grad_(False)
    return model


def backward(model: nn.Module, inputs: Inputs, spec: SliceSpec | None = None) -> dict[str, Tensor]:
    """Gradients of a forward pass; of parameters that took no part, none."""
    model.zero_grad()
    model(inputs, spec).logits[inputs.mask].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def soft(given: Images | Audio | SoftTokens | None) -> SoftTokens:
    assert isinstance(given, SoftTokens)
    return given


def calls_of(model: Gemma3n) -> Counter[str]:
    """Counts, from now on, how often a module of each tower and embedder is run."""
    calls: Counter[str] = Counter()
    for name, tower in towers_of(model).items():
        for module in tower.modules():
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, 7_818_517_072),
        ({"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}, 5_418_464_192),
    ],
    ids=["E4B", "E2B"],
)
def test_real_shapes_have_the_published_number_of_parameters(text: dict[str, int], expected: int) -> None:
    config = ModelConfig(text=TextConfig.parse(text), vision=VisionConfig(), audio=AudioConfig())
    assert sum(p.numel() for p in Gemma3n.build(config, device="meta").parameters()) == expected


def test_a_text_only_step_runs_no_tower_and_leaves_it_without_gradients() -> None:
    model, inputs = tiny_model(CONFIG), tiny_multimodal_inputs(CONFIG, *SEVEN_KINDS["text only"])
    calls = calls_of(model)
    gradients = backward(model, inputs)
    assert calls == {}
    assert {name for name in gradients if "language_model" not in name} == set()
    assert set(gradients) == {name for name, _ in model.named_parameters() if "language_model" in name}
    backward(model, tiny_multimodal_inputs(CONFIG, *EVERYTHING))
    assert set(calls) == set(towers_of(model))  # the count counts


@pytest.mark.parametrize(
    ("row", "idle"), [("text image", ("audio_tower", "embed_audio")), ("audio text", ("vision_tower", "embed_vision"))]
)
def test_a_medium_that_is_not_there_runs_nothing(row: str, idle: tuple[str, ...]) -> None:
    model = tiny_model(CONFIG)
    calls = calls_of(model)
    gradients = backward(model, tiny_multimodal_inputs(CONFIG, row, "text"))
    assert not set(idle) & set(calls)
    assert [name for name in gradients if name.split(".")[1] in idle] == []


def test_a_text_only_step_is_that_of_the_text_model() -> None:
    model, inputs = tiny_model(CONFIG), tiny_multimodal_inputs(CONFIG, *SEVEN_KINDS["text only"])
    text = Gemma3n.build(CONFIG.only([]))
    text.load_state_dict({name: t for name, t in model.state_dict().items() if "language_model" in name})
    assert torch.equal(model(inputs).logits, text(inputs).logits)


def test_frozen_towers_leave_nothing_for_the_backward_pass() -> None:
    model, inputs = frozen(tiny_model(CONFIG)), tiny_multimodal_inputs(CONFIG, *EVERYTHING)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        done = model.soft_tokens(inputs)
    assert saved == []
    assert not soft(done.images).features.requires_grad
    assert not soft(done.audio).features.requires_grad
    gradients = backward(model, inputs)
    assert not [name for name in gradients if "tower" in name]
    assert [name for name, p in model.named_parameters() if p.requires_grad and name not in gradients] == []


def test_trained_towers_keep_what_the_backward_pass_needs() -> None:
    gradients = backward(tiny_model(CONFIG), tiny_multimodal_inputs(CONFIG, *EVERYTHING))
    assert all(gradient.any() for gradient in gradients.values())
    assert {name.split(".")[1] for name in gradients} == {"language_model", *towers_of(tiny_model(CONFIG))}


@pytest.mark.parametrize("targets", [TargetSet.vision, TargetSet.audio])
def test_a_tower_with_an_adapter_inside_is_trained(targets: TargetSet) -> None:
    adapted = attach(tiny_model(CONFIG), AdapterConfig(targets=[targets], rank=2, alpha=2))
    factors = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(f"{targets}_tower" in name for name in factors)
    assert set(backward(adapted, tiny_multimodal_inputs(CONFIG, *EVERYTHING))) == factors


@pytest.mark.parametrize("how", ["frozen", "no_grad"])
def test_soft_tokens_outside_autograd_do_not_depend_on_the_batch_to_the_last_bit(how: str) -> None:
    model = tiny_model(CONFIG) if how == "no_grad" else frozen(tiny_model(CONFIG))
    inputs = tiny_multimodal_inputs(CONFIG, "image audio image", "audio image image audio audio")
    assert isinstance(inputs.images, Images)
    assert isinstance(inputs.audio, Audio)
    with torch.set_grad_enabled(how == "frozen"):
        together = model.soft_tokens(inputs)
        for index, pixels in enumerate(inputs.images.pixels):
            alone = tiny_multimodal_inputs(CONFIG, "image")
            alone = model.soft_tokens(dataclasses.replace(alone, images=Images(pixels=pixels[None])))
            assert torch.equal(soft(together.images).features[index], soft(alone.images).features[0])
        for index, (frames, real) in enumerate(zip(inputs.audio.frames, inputs.audio.mask, strict=True)):
            alone = tiny_multimodal_inputs(CONFIG, "audio")
            alone = model.soft_tokens(dataclasses.replace(alone, audio=Audio.of([frames[real]])))
            heard = soft(together.audio).mask[index]
            assert torch.equal(soft(together.audio).features[index][heard], soft(alone.audio).features[0])
            assert heard.sum() == soft(alone.audio).features.shape[1]


def test_16_real_recordings_sound_the_same_alone_and_in_a_batch_while_the_tower_learns() -> None:
    files = sorted(file for file in RECORDINGS.rglob("*") if file.suffix in (".ogg", ".flac"))
    clips = [AudioProcessor()(Recording(file)) for file in files[:: len(files) // 16][:16]]
    assert len({len(clip) for clip in clips}) > 8
    audio = dataclasses.replace(
        TINY_AUDIO, input_feat_size=128, tokens=dataclasses.replace(TINY_AUDIO.tokens, per_item=188)
    )
    config = ModelConfig(text=TINY_TEXT, audio=audio)
    model = tiny_model(config)
    row = tiny_multimodal_inputs(config, "audio")
    batch = Inputs.of(row.ids.repeat(16, 1))
    together = soft(model.soft_tokens(dataclasses.replace(batch, audio=Audio.of(clips))).audio)
    assert together.features.requires_grad
    for clip, features, real in zip(clips, together.features, together.mask, strict=True):
        alone = soft(model.soft_tokens(dataclasses.replace(row, audio=Audio.of([clip]))).audio)
        assert (features[real] - alone.features[0]).abs().max() <= 1e-5
        assert int(real.sum()) == alone.features.shape[1] == -(-len(clip) // 16)


def test_soft_tokens_may_be_made_before_and_kept() -> None:
    model, inputs = frozen(tiny_model(CONFIG)), tiny_multimodal_inputs(CONFIG, *EVERYTHING)
    done = model.soft_tokens(inputs)
    calls = calls_of(model)
    assert torch.equal(model(done).logits, model(inputs).logits)
    calls.clear()
    model(done)
    assert set(calls) == {"embed_vision", "embed_audio"}


@pytest.mark.parametrize("spec", [None, HALF_WITHOUT_BLOCK], ids=["full", "sub-model"])
def test_recomputing_layers_gives_the_same_gradients_to_the_last_bit(spec: SliceSpec | None) -> None:
    model, inputs = tiny_model(CONFIG), tiny_multimodal_inputs(CONFIG, *EVERYTHING)
    kept = backward(model, inputs, spec)
    model.recompute = RecomputeConfig.everything()
    recomputed = backward(model, inputs, spec)
    assert kept.keys() == recomputed.keys()
    assert [name for name in kept if not torch.equal(kept[name], recomputed[name])] == []


def test_recomputing_reaches_every_block_of_both_towers() -> None:
    model, inputs = tiny_model(CONFIG), tiny_multimodal_inputs(CONFIG, *EVERYTHING)
    assert model.model.vision_tower is not None
    assert model.model.audio_tower is not None
    blocks = [block for stage in model.model.vision_tower.timm_model.blocks for block in stage.children()]
    blocks += [*model.model.audio_tower.conformer, *model.model.language_model.layers]
    calls: Counter[nn.Module] = Counter()
    for block in blocks:
        # Before, not after: a block that is run again stops where nothing more is needed.
        block.register_forward_pre_hook(lambda module, *_: calls.update([module]))
    model.recompute = RecomputeConfig.everything()
    backward(model, inputs)
    assert [calls[block] for block in blocks] == [2] * len(blocks)
    calls.clear()
    model.recompute = RecomputeConfig()
    backward(model, inputs)
    assert [calls[block] for block in blocks] == [1] * len(blocks)


@pytest.mark.parametrize("kind", SEVEN_KINDS)
def test_in_bfloat16_everything_is_finite(kind: str) -> None:
    model = tiny_model(CONFIG, spread=0.2).to(torch.bfloat16)
    gradients = backward(model, tiny_multimodal_inputs(CONFIG, *SEVEN_KINDS[kind]))
    assert all(gradient.isfinite().all() and gradient.dtype == torch.bfloat16 for gradient in gradients.values())


def test_no_buffer_is_rounded_when_the_model_is_cast() -> None:
    # Rotary angles and the audio tower's sinusoids are made anew, in float32, in every pass.
    assert list(tiny_model(CONFIG).buffers()) == []


def test_every_parameter_gets_a_gradient_in_a_freshly_initialised_model() -> None:
    model = Gemma3n.build(CONFIG)
    model.initialize(seed=0)
    gradients = backward(model, tiny_multimodal_inputs(CONFIG, *EVERYTHING))
    assert [name for name, gradient in gradients.items() if not gradient.any() or not gradient.isfinite().all()] == []
    assert set(gradients) == {name for name, _ in model.named_parameters()}


def test_initialising_with_a_seed_repeats_the_weights() -> None:
    first, second = Gemma3n.build(CONFIG), Gemma3n.build(CONFIG)
    first.initialize(seed=3)
    second.initialize(seed=3)
    assert [n for n, p in first.state_dict().items() if not torch.equal(p, second.state_dict()[n])] == []


@pytest.mark.parametrize("stranger", [96, 97, 103], ids=str)
def test_ids_added_behind_the_media_are_read_from_the_text_s_table(stranger: int) -> None:
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(TINY_TEXT, vocab_size=104))
    model = tiny_model(config)
    calls = calls_of(model)
    gradients = backward(model, Inputs.of(torch.tensor([[2, stranger, 7]])))
    assert calls == {}
    embedded = model.model.embed(Inputs.of(torch.tensor([[stranger]])))
    assert torch.equal(embedded, model.model.language_model.embed_tokens(torch.tensor([[stranger]])))
    assert gradients["model.language_model.embed_tokens.weight"][stranger].any()


def test_ids_between_the_media_are_read_from_the_text_s_table() -> None:
    tokens = dataclasses.replace(TINY_AUDIO.tokens, placeholder_id=93, end_id=92)
    audio = dataclasses.replace(TINY_AUDIO, vocab_offset=92, vocab_size=4, tokens=tokens)
    model = tiny_model(ModelConfig(text=TINY_TEXT, vision=TINY_VISION, audio=audio))
    calls = calls_of(model)
    model(Inputs.of(torch.arange(88, 92)[None]))
    assert calls == {}
    model(Inputs.of(torch.tensor([[87, 95]])))
    assert set(calls) == {"embed_vision", "embed_audio"}


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(InputError, match="this model has 0 to 95; use the tokenizer that came with it"):
        tiny_model(CONFIG)(Inputs.of(torch.tensor([[2, 96]])))


def test_without_a_tower_its_ids_are_text() -> None:
    config = CONFIG.only([])
    model = tiny_model(config)
    ids = torch.tensor([[TINY_VISION.tokens.placeholder_id, TINY_AUDIO.tokens.end_id]])
    assert torch.equal(model.model.embed(Inputs.of(ids)), model.model.language_model.embed_tokens(ids))
