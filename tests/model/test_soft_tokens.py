# SPDX-License-Identifier: Apache-2.0
"""What stands at each id, and which media, texts and models do not belong together."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from model.config import ModelConfig
from model.errors import InputError, counted
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs, SoftTokens
from model.soft_tokens import fill
from tests.tiny import (
    SEVEN_KINDS,
    TINY_AUDIO,
    TINY_PICTURE_PX,
    TINY_TEXT,
    TINY_VISION,
    tiny_model,
    tiny_multimodal_config,
    tiny_multimodal_inputs,
)

CONFIG = tiny_multimodal_config()
IMAGE, CLIP = TINY_VISION.tokens, TINY_AUDIO.tokens
RUN = [IMAGE.begin_id, *[IMAGE.placeholder_id] * IMAGE.per_item, IMAGE.end_id]


@pytest.fixture(scope="module")
def model() -> Gemma3n:
    return tiny_model(CONFIG)


def pictures(count: int) -> Images:
    return Images(pixels=torch.rand(count, 3, TINY_PICTURE_PX, TINY_PICTURE_PX))


def image_features(count: int) -> torch.Tensor:
    return torch.randn(count, IMAGE.per_item, TINY_VISION.hidden_size, generator=torch.Generator().manual_seed(0))


def seen(features: torch.Tensor) -> SoftTokens:
    return SoftTokens(features=features, mask=torch.ones(features.shape[:2], dtype=torch.bool))


def refused(model: Gemma3n, inputs: Inputs, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        model(inputs)


def test_values_stand_at_their_places_in_order_row_after_row() -> None:
    places = torch.tensor([[False, True, True], [True, False, False]])
    values = torch.arange(6.0).view(3, 2)
    filled = fill(torch.full((2, 3, 2), -1.0), places, values)
    assert filled[..., 0].tolist() == [[-1, 0, 2], [4, -1, -1]]


def test_text_is_not_changed_by_media_beside_it(model: Gemma3n) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio text")
    embedded = model.model.embed(model.soft_tokens(inputs))
    text = inputs.ids < TINY_VISION.vocab_offset
    assert torch.equal(embedded[text], model.model.language_model.embed_tokens(inputs.ids)[text])


def test_delimiters_are_read_from_their_medium_s_table_and_begin_marks_from_the_text_s(model: Gemma3n) -> None:
    assert model.model.embed_vision is not None
    assert model.model.embed_audio is not None
    inputs = tiny_multimodal_inputs(CONFIG, "image audio")
    embedded = model.model.embed(model.soft_tokens(inputs))
    for token, expected in (
        (IMAGE.end_id, model.model.embed_vision.hard(torch.tensor([IMAGE.end_id]))),
        (CLIP.end_id, model.model.embed_audio.hard(torch.tensor([CLIP.end_id]))),
        (IMAGE.begin_id, model.model.language_model.embed_tokens(torch.tensor([[IMAGE.begin_id]]))[0]),
        (CLIP.begin_id, model.model.language_model.embed_tokens(torch.tensor([[CLIP.begin_id]]))[0]),
    ):
        torch.testing.assert_close(embedded[inputs.ids == token], expected)


def test_images_stand_in_their_runs_in_order(model: Gemma3n) -> None:
    features = image_features(3)
    inputs = tiny_multimodal_inputs(CONFIG, "image text", "text image image")
    embedded = model.model.embed(dataclasses.replace(inputs, images=seen(features)))
    assert model.model.embed_vision is not None
    expected = model.model.embed_vision.soft(features * TINY_VISION.hidden_size**0.5)
    torch.testing.assert_close(embedded[inputs.ids == IMAGE.placeholder_id], expected.flatten(0, 1))


def test_what_a_clip_leaves_of_its_run_is_the_last_row_of_the_audio_s_table(model: Gemma3n) -> None:
    assert model.model.embed_audio is not None
    inputs = tiny_multimodal_inputs(CONFIG, "audio", "audio", frames=(33, 70))  # 3 and 5 soft tokens
    embedded = model.model.embed(model.soft_tokens(inputs))
    runs = embedded[inputs.ids == CLIP.placeholder_id].unflatten(0, (2, CLIP.per_item))
    filler = model.model.embed_audio.hard(torch.tensor([TINY_AUDIO.vocab_offset + TINY_AUDIO.vocab_size - 1]))
    for run, length in zip(runs, (3, 5), strict=True):
        torch.testing.assert_close(run[length:], filler.expand(CLIP.per_item - length, -1))
        assert ((run[:length] - filler).abs().amax(1) > 0.1).all()


def test_soft_tokens_kept_in_another_dtype_are_read(model: Gemma3n) -> None:
    inputs, features = tiny_multimodal_inputs(CONFIG, "text image"), image_features(1).to(torch.bfloat16)
    low, high = (model(dataclasses.replace(inputs, images=seen(f))).logits for f in (features, features.float()))
    assert torch.equal(low, high)


@pytest.mark.parametrize("grad", [False, True])
def test_a_text_only_step_never_waits_for_its_device(grad: bool) -> None:  # noqa: FBT001 - a parameter
    built = Gemma3n.build(CONFIG, device="meta").requires_grad_(grad)
    inputs = tiny_multimodal_inputs(CONFIG, "text text", "text")
    logits = built(inputs.to("meta")).logits  # on this device, nothing can be looked at: there are no values
    assert logits.shape == (*inputs.ids.shape, TINY_TEXT.vocab_size)
    unknown = dataclasses.replace(inputs.to("meta"), ids_below=None)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        built(unknown)


def test_what_is_known_of_the_ids_changes_nothing(model: Gemma3n) -> None:
    for rows in SEVEN_KINDS.values():
        inputs = tiny_multimodal_inputs(CONFIG, *rows)
        known = inputs.to("cpu")
        assert known.ids_below == inputs.ids.max() + 1
        assert torch.equal(model(known).logits, model(inputs).logits)
    hard = Inputs.of(torch.tensor([[5, IMAGE.end_id, CLIP.end_id, 7]]))  # no items, yet rows of their tables
    assert torch.equal(model(hard.to("cpu")).logits, model(hard).logits)
    text = model.model.language_model.embed_tokens(hard.ids)
    assert (model.model.embed(hard.to("cpu")) != text).any(2).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("given", "runs"), [(1, 2), (3, 2), (1, 0)])
def test_another_number_of_images_than_of_runs_is_refused(model: Gemma3n, given: int, runs: int) -> None:
    inputs = Inputs.of(torch.tensor([[2, *RUN * runs, 5]]))
    counts = (
        f"the batch has {counted(given, 'image')}, but its text has {counted(runs, 'run')} of 16 image placeholders"
    )
    refused(model, dataclasses.replace(inputs, images=pictures(given)), counts)


def test_placeholders_without_their_media_are_refused(model: Gemma3n) -> None:
    refused(model, Inputs.of(torch.tensor([[2, *RUN]])), "the batch has no images, but its text has 1 run of 16")
    inputs = dataclasses.replace(tiny_multimodal_inputs(CONFIG, "text audio"), audio=None)
    refused(model, inputs, "the batch has no audio clips, but its text has 1 run of 12 audio clip placeholders (id 89)")


def test_a_clip_for_an_image_s_run_is_refused(model: Gemma3n) -> None:
    inputs = Inputs.of(torch.tensor([[2, *RUN]]))
    audio = Audio.of([torch.zeros(20, TINY_AUDIO.input_feat_size)])
    refused(model, dataclasses.replace(inputs, audio=audio), "the batch has no images, but its text has 1 run")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2, *RUN[:9], 7, *RUN[9:]], "row 0 has a run of 8 image placeholders (id 81) from token 2 on"),
        ([2, *RUN[:-2]], "row 0 has a run of 15 image placeholders"),
        ([2, *RUN[1:-1], *RUN[1:-1]], "row 0 has a run of 32 image placeholders"),
    ],
    ids=["broken", "cut", "joined"],
)
def test_a_run_that_is_not_whole_is_refused(model: Gemma3n, ids: list[int], message: str) -> None:
    refused(model, dataclasses.replace(Inputs.of(torch.tensor([ids])), images=pictures(1)), message)


def test_runs_whose_lengths_only_add_up_are_refused(model: Gemma3n) -> None:
    rows = torch.tensor([[*RUN[:-2], 5, 5], [*RUN[:-1], IMAGE.placeholder_id]])  # 15 and 17
    message = "row 0 has a run of 15 image placeholders (id 81) from token 1 on, but an item has 16; keep runs whole"
    refused(model, dataclasses.replace(Inputs.of(rows), images=pictures(2)), message)


def test_media_in_a_text_only_model_are_refused() -> None:
    model = tiny_model(ModelConfig(text=TINY_TEXT))
    inputs = tiny_multimodal_inputs(CONFIG, "text image image")
    refused(model, inputs, "the batch has 2 images, but this model has no tower for them; load a checkpoint with all")


def test_media_that_the_model_has_no_tower_for_are_refused_though_it_has_the_other() -> None:
    model = tiny_model(ModelConfig(text=TINY_TEXT, vision=TINY_VISION))
    refused(model, tiny_multimodal_inputs(CONFIG, "image audio"), "the batch has 1 audio clip, but this model has no")


def test_a_clip_longer_than_its_run_is_refused_before_it_is_heard(model: Gemma3n) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "audio audio", frames=(20, 193))
    refused(model, inputs, "audio clip 1 has 193 real frames; a clip has 1 to 192 (12 soft tokens of 16)")


@pytest.mark.parametrize("trained", [False, True])
def test_padding_behind_a_clip_may_be_longer_than_a_run(trained: bool) -> None:  # noqa: FBT001 - a parameter
    model = tiny_model(CONFIG).requires_grad_(trained)
    inputs = tiny_multimodal_inputs(CONFIG, "text audio", frames=(50,))
    assert isinstance(inputs.audio, Audio)
    frames = torch.nn.functional.pad(inputs.audio.frames, (0, 0, 0, 300), value=torch.nan)
    padded = Audio(frames=frames, mask=torch.nn.functional.pad(inputs.audio.mask, (0, 300)))
    assert torch.equal(model(dataclasses.replace(inputs, audio=padded)).logits, model(inputs).logits)


def test_a_clip_without_real_frames_is_refused(model: Gemma3n) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "audio")
    audio = Audio(frames=torch.zeros(1, 5, TINY_AUDIO.input_feat_size), mask=torch.zeros(1, 5, dtype=torch.bool))
    refused(model, dataclasses.replace(inputs, audio=audio), "audio clip 0 has no real frames; a clip has 1 to 192")


@pytest.mark.parametrize("trained", [False, True])
def test_padding_between_real_frames_is_refused(trained: bool) -> None:  # noqa: FBT001 - a parameter
    inputs = tiny_multimodal_inputs(CONFIG, "audio", frames=(9,))
    assert isinstance(inputs.audio, Audio)
    inputs.audio.mask[0, 4] = False
    refused(tiny_model(CONFIG).requires_grad_(trained), inputs, "audio clip 0 has 8 real frames and padding between")


def test_another_number_of_mels_is_refused(model: Gemma3n) -> None:
    inputs = dataclasses.replace(tiny_multimodal_inputs(CONFIG, "audio"), audio=Audio.of([torch.zeros(20, 128)]))
    refused(model, inputs, "audio frames have 128 mels, but the tower takes 16 (input_feat_size); read the audio with")


def test_soft_tokens_of_another_model_are_refused(model: Gemma3n) -> None:
    inputs = tiny_multimodal_inputs(CONFIG, "image")
    channels = seen(torch.zeros(1, IMAGE.per_item, 7))
    message = "soft tokens of kind image have 7 channels, but this model's have 64; make them with this model's tower"
    refused(model, dataclasses.replace(inputs, images=channels), message)
    fewer = seen(torch.zeros(1, IMAGE.per_item - 1, TINY_VISION.hidden_size))
    message = "items of kind image have 15 soft tokens each, but the text has 16 places for them"
    refused(model, dataclasses.replace(inputs, images=fewer), message)
    inputs = tiny_multimodal_inputs(CONFIG, "audio")
    longer = seen(torch.zeros(1, CLIP.per_item + 1, TINY_AUDIO.hidden_size))
    message = "items of kind audio clip have 13 soft tokens each, but the text has 12 places"
    refused(model, dataclasses.replace(inputs, audio=longer), message)
