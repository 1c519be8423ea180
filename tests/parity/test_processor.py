# SPDX-License-Identifier: Apache-2.0
"""Pixels, log-mel frames, rendered chats and token ids, against transformers' processor on the same directory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2.sandbox
import numpy as np
import pytest
import soxr
import torch
from PIL import Image
from transformers import AutoProcessor, Gemma3nAudioFeatureExtractor, Gemma3nProcessor, SiglipImageProcessor

from model.inputs import Audio, Images
from model.processor.audio import AudioProcessor
from model.processor.chat import Message, Part, Role
from model.processor.image import ImageProcessor
from model.processor.media import Picture, Recording
from model.processor.processor import Padding, Processor
from model.processor.settings import AudioSettings, ImageSettings
from tests.releases import differs_before_oracle
from tests.tiny_processor import CONFIG, RECORDINGS, noise, photographs, tiny_processor

pytestmark = pytest.mark.parity

NUM_CONVERSATIONS = 240
# The template published with Gemma 3n says the same as this one, which is written here from its description: a text
# is trimmed, a medium is its placeholder, the system text is glued to the first user's.
PUBLISHED_TEMPLATE = """\
{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
    {%- set content = messages[0]['content'] -%}
    {%- set opening = (content if content is string else content[0]['text']) + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}
    {{- opening if loop.first else '' -}}
    {%- if turn['content'] is string -%}{{ turn['content'] | trim }}{%- else -%}
        {%- for item in turn['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- elif item['type'] == 'image' -%}{{ '<image_soft_token>' }}
            {%- elif item['type'] == 'audio' -%}{{ '<audio_soft_token>' }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
FRAGMENTS = (
    "", " ", "\n", "\n\nHello", "What is it?", " spaces  within ", "\ttab\t", "line\r\nbreak\n\n\n", "user\nmodel\n",
    "héron 🦩", "日本語", "\u200fשלום", "a\u0301\u200d", "\u00a0no-break\u00a0", "\u2028", "<b>&amp;</b>", "0" * 40,
    "{{ x }} {% y %}",
)  # fmt: skip
PICTURES = tuple(Picture(noise("RGB", size, seed)) for seed, size in enumerate([(8, 8), (31, 5), (1, 1)]))
CLIPS = tuple(Recording(path) for path in RECORDINGS[-3:])


@pytest.fixture(scope="module", params=[False, True], ids=["byte_level", "like_gemma"])
def ours(request: pytest.FixtureRequest) -> Processor:
    return tiny_processor(like_gemma=request.param)


@pytest.fixture(scope="module")
def reference(ours: Processor, tmp_path_factory: pytest.TempPathFactory) -> Gemma3nProcessor:
    directory = tmp_path_factory.mktemp("processor")
    ours.write(directory)
    CONFIG.write(directory)
    return AutoProcessor.from_pretrained(directory)


def conversations() -> Iterator[list[Message]]:
    """Random ones, always the same: texts alone or in parts, media anywhere, with and without a system text."""
    rng = random.Random(3)
    for _ in range(NUM_CONVERSATIONS):
        messages = [Message(Role.system, text_of(rng))] if rng.random() < 0.3 else []
        for turn in range(rng.randint(1, 5)):
            role = Role.assistant if turn % 2 else Role.user
            parts = tuple(part_of(rng, role) for _ in range(rng.randint(1, 5)))
            messages.append(Message(role, text_of(rng) if rng.random() < 0.3 else parts))
        yield messages


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 4)))


def part_of(rng: random.Random, role: Role) -> Part:
    chosen = rng.random()
    if role is Role.assistant or chosen < 0.5:
        return text_of(rng)
    return rng.choice(PICTURES) if chosen < 0.8 else rng.choice(CLIPS)


def published(messages: list[Message]) -> list[dict[str, Any]]:
    """The conversation in the form that transformers takes."""
    return [
        {"role": str(message.role), "content": message.content if isinstance(message.content, str) else
         [item_of(part) for part in message.content]}
        for message in messages
    ]  # fmt: skip


def item_of(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Picture):
        return {"type": "image", "image": part.source}
    return {"type": "audio", "audio": sixteen_khz(part)}


def sixteen_khz(recording: Recording) -> np.ndarray:
    """The samples as the feature extractor takes them; resampling is no part of it."""
    wave = recording.decode()
    return soxr.resample(wave.samples, wave.sample_rate_hz, 16_000, quality="HQ")


def encoded_by(reference: Gemma3nProcessor, batch: list[list[Message]], *, add_generation_prompt: bool) -> Any:
    """What the reference makes of conversations: ids, pixels, frames."""
    return reference.apply_chat_template(
        [published(messages) for messages in batch], tokenize=True, add_generation_prompt=add_generation_prompt,
        return_dict=True, return_tensors="pt", processor_kwargs={"padding": True},
    )  # fmt: skip


def may_continue(messages: list[Message]) -> bool:
    return messages[-1].role is Role.user


def test_our_template_and_the_published_one_render_alike(reference: Gemma3nProcessor) -> None:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(PUBLISHED_TEMPLATE)
    for messages in conversations():
        prompt = may_continue(messages)
        given = published(messages)
        theirs = reference.apply_chat_template(given, tokenize=False, add_generation_prompt=prompt)
        assert theirs == template.render(messages=given, bos_token="<bos>", add_generation_prompt=prompt)


def test_rendered_conversations_are_equal(ours: Processor, reference: Gemma3nProcessor) -> None:
    for messages in conversations():
        prompt = may_continue(messages)
        theirs = reference.apply_chat_template(published(messages), tokenize=False, add_generation_prompt=prompt)
        expanded = theirs.replace("<image_soft_token>", reference.full_image_sequence)
        expanded = expanded.replace("<audio_soft_token>", reference.full_audio_sequence)
        assert ours.render(messages, add_generation_prompt=prompt).text == expanded


def test_token_ids_and_media_are_equal(ours: Processor, reference: Gemma3nProcessor) -> None:
    seen = {"images": 0, "audio": 0}
    for messages in conversations():
        prompt = may_continue(messages)
        theirs = encoded_by(reference, [messages], add_generation_prompt=prompt)
        inputs = ours.inputs([messages], add_generation_prompt=prompt)
        images, audio = inputs.images, inputs.audio
        assert inputs.ids.tolist() == theirs["input_ids"].tolist()
        assert ("pixel_values" in theirs, "input_features" in theirs) == (images is not None, audio is not None)
        if isinstance(images, Images):
            seen["images"] += len(images)
            assert (images.pixels - theirs["pixel_values"]).abs().max() <= 1 / 255
        if isinstance(audio, Audio):
            seen["audio"] += len(audio)
            assert len(theirs["input_features"]) == len(audio)
    assert min(seen.values()) > 100


@pytest.mark.parametrize("padding", Padding)
def test_batches_are_padded_alike(ours: Processor, reference: Gemma3nProcessor, padding: Padding) -> None:
    batch = [messages for messages in conversations() if may_continue(messages)][:4]
    reference.tokenizer.padding_side = padding.value
    theirs = encoded_by(reference, batch, add_generation_prompt=True)
    inputs = ours.inputs(batch, padding=padding, add_generation_prompt=True)
    assert inputs.ids.tolist() == theirs["input_ids"].tolist()
    assert inputs.mask.tolist() == theirs["attention_mask"].bool().tolist()


def test_decoded_text_is_equal(ours: Processor, reference: Gemma3nProcessor) -> None:
    for messages in conversations():
        ids = ours.encode(messages)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_texts_without_turns_are_equal(ours: Processor, reference: Gemma3nProcessor) -> None:
    image = PICTURES[0].source
    encode: Any = reference  # whose options are not in its signature
    for text in ("<image_soft_token> a  picture\n", "\n\n<image_soft_token>\n", "<image_soft_token>"):
        theirs = encode(text=f"<bos>{text}", images=[image], add_special_tokens=False)["input_ids"][0]
        assert ours.inputs_of([ours.render_text(text, [PICTURES[0]])]).ids[0].tolist() == list(theirs)


def test_what_transformers_saves_is_read_alike(ours: Processor, reference: Gemma3nProcessor, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    again = Processor.read(tmp_path, CONFIG)
    assert (again.images, again.audio) == (ours.images, ours.audio)
    for messages in list(conversations())[:20]:
        assert again.encode(messages) == ours.encode(messages)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_log_mel_frames_of_real_recordings_agree(path: Path) -> None:
    extractor = Gemma3nAudioFeatureExtractor()
    theirs = extractor(sixteen_khz(Recording(path)), return_tensors="pt")
    ours = AudioProcessor()(Recording(path))
    assert theirs["input_features_mask"].all()  # alone, a clip has no padded frame
    assert ours.shape == theirs["input_features"][0].shape
    assert (ours - theirs["input_features"][0]).abs().max() <= 1e-6


@pytest.mark.parametrize("samples", [513, 639, 641, 672, 673, 7777, 479_999, 480_000])
def test_log_mel_frames_of_every_length_agree(samples: int) -> None:
    wave = (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)
    theirs = torch.from_numpy(Gemma3nAudioFeatureExtractor()(wave)["input_features"][0])
    ours = AudioProcessor()(Recording(wave, 16_000))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"fft_overdrive": False},
        {"preemphasis_htk_flavor": False},
        {"preemphasis": 0.0},
        {"feature_size": 40, "min_frequency": 0.0, "max_frequency": 8000.0},
        {"input_scale_factor": 0.5, "mel_floor": 1e-3},
        {"frame_length_ms": 25.0, "hop_length_ms": 12.5},
        {"per_bin_mean": [0.5] * 128, "per_bin_stddev": [2.0] * 128},
    ],
    ids="+".join,
)
def test_other_settings_mean_the_same(changes: dict[str, Any]) -> None:
    theirs = Gemma3nAudioFeatureExtractor(**changes)
    settings = AudioSettings.parse(json.loads(theirs.to_json_string()) | changes)
    wave = sixteen_khz(Recording(RECORDINGS[0]))
    frames = torch.from_numpy(theirs(wave)["input_features"][0])
    ours = AudioProcessor(settings)(Recording(wave, 16_000))
    assert ours.shape == frames.shape
    assert (ours - frames).abs().max() <= 1e-6


def image_cases() -> dict[str, Image.Image]:
    cases = {path.stem: Image.open(path) for path in photographs()}
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")
    cases |= {mode: noise(mode, (123, 77)) for mode in modes}
    return cases | {
        f"{w}x{h}": noise("RGB", (w, h)) for w, h in ((1, 1), (768, 768), (1, 3000), (2500, 3), (1999, 901))
    }


TRANSPARENT = {"LA", "RGBA"}
OTHERWISE = differs_before_oracle("makes other pictures of transparent ones")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[OTHERWISE] if case in TRANSPARENT else []) for case in image_cases()]
)
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_agree(case: str, resample: int) -> None:
    image = image_cases()[case]
    size = {"height": 768, "width": 768}
    theirs = SiglipImageProcessor(size=size, resample=resample, do_normalize=False)
    ours = ImageProcessor(ImageSettings(resample=resample))(Picture(image))
    pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == pixels.shape
    assert (ours - pixels).abs().max() <= 1 / 255


def test_normalised_pixels_agree() -> None:
    image = image_cases()["china"]
    theirs = SiglipImageProcessor(size={"height": 64, "width": 48}, resample=2, image_mean=[0.1, 0.2, 0.3])
    settings = ImageSettings.parse(json.loads(theirs.to_json_string()))
    assert settings.do_normalize
    pixels = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert (ImageProcessor(settings)(Picture(image)) - pixels).abs().max() <= 2 / 255  # values are twice as far apart
