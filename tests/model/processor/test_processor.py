# SPDX-License-Identifier: Apache-2.0
"""Conversations become batches whose placeholders and media agree; directories keep their files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models

from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, InputError
from model.inputs import Audio, Images
from model.processor.audio import LongAudio
from model.processor.chat import IMAGE_MARKS, Message, Part, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Padding, Processor
from model.processor.published import read_audio_settings, read_image_settings, with_media_tokens, write_files
from model.processor.settings import AudioSettings, ImageSettings
from model.processor.tokenizer import (
    MEDIA_FILES,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Tokenizer,
)
from model.tower_config import MediaTokens
from tests.tiny_processor import AUDIO, CONFIG, RECORDINGS, VISION, file_bytes, noise, tiny_processor, vocabulary

PROCESSOR = tiny_processor()
CAT, DOG = Picture(noise("RGB")), Picture(noise("L", seed=1))
TALK, WORD = Recording(RECORDINGS[0]), Recording(RECORDINGS[-1])
TEXT_ONLY = dataclasses.replace(CONFIG, vision=None, audio=None)


def user(*parts: Part) -> Message:
    return Message(Role.user, parts)


CONVERSATIONS: dict[str, list[list[Message]]] = {
    "image+audio+text": [[user("See", CAT, "hear", TALK)], [user(WORD, DOG, "?")]],
    "image+text": [[user(CAT, "and", DOG, "differ?")], [user("This", DOG)]],
    "image+audio": [[user(CAT, TALK)], [user(WORD, WORD, DOG)]],
    "audio+text": [[user(TALK, "was that"), Message(Role.assistant, "yes"), user(WORD, "and that")]],
    "image only": [[user(CAT)], [user(DOG, CAT)]],
    "audio only": [[user(TALK)]],
    "text only": [[user("Hi")], [user("How are you?")]],
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("padding", Padding)
def test_media_are_in_the_order_of_their_placeholders(kind: str, padding: Padding) -> None:
    conversations = CONVERSATIONS[kind]
    inputs = PROCESSOR.inputs(conversations, padding=padding, add_generation_prompt=True)
    pictures = [picture for turns in conversations for turn in turns for picture in turn.pictures]
    recordings = [recording for turns in conversations for turn in turns for recording in turn.recordings]
    assert (inputs.ids == VISION.tokens.placeholder_id).sum() == 16 * len(pictures)
    assert (inputs.ids == AUDIO.tokens.placeholder_id).sum() == 188 * len(recordings)
    assert (inputs.images is None, inputs.audio is None) == (not pictures, not recordings)
    images, audio = inputs.images, inputs.audio
    for at, picture in enumerate(pictures):
        assert isinstance(images, Images)
        assert PROCESSOR.images is not None
        assert torch.equal(images.pixels[at], PROCESSOR.images(picture))
    for at, recording in enumerate(recordings):
        assert isinstance(audio, Audio)
        assert PROCESSOR.audio is not None
        assert torch.equal(audio.frames[at][audio.mask[at]], PROCESSOR.audio(recording))


def test_padding_stands_on_the_side_asked_for() -> None:
    conversations = CONVERSATIONS["image+text"]
    rows = [PROCESSOR.encode(messages) for messages in conversations]
    left, right = (PROCESSOR.inputs(conversations, padding=side) for side in (Padding.left, Padding.right))
    for at, row in enumerate(rows):
        assert left.ids[at, -len(row) :].tolist() == right.ids[at, : len(row)].tolist() == row
        assert left.ids[at][left.mask[at]].tolist() == right.ids[at][right.mask[at]].tolist() == row
    assert (left.ids[~left.mask] == PROCESSOR.tokenizer.pad_id).all()


def test_decoding_leaves_media_and_marks_out() -> None:
    ids = PROCESSOR.encode([user("Hi", CAT, "you"), Message(Role.assistant, "Yes.")])
    assert PROCESSOR.decode(ids).split() == ["user", "Hi", "you", "model", "Yes."]


def test_a_text_without_turns_takes_media_at_its_placeholders() -> None:
    rendered = PROCESSOR.render_text("See <image_soft_token> there", [CAT])
    assert rendered.text.startswith("<bos>See \n\n<start_of_image>")
    assert PROCESSOR.inputs_of([rendered]).images is not None
    with pytest.raises(InputError, match="1 image, but its text has no placeholders"):
        PROCESSOR.render_text("See", [CAT])


def test_a_long_recording_gets_a_run_for_every_clip() -> None:
    processor = Processor.create(Tokenizer(vocabulary(), {}), CONFIG, long_audio=LongAudio.chunk)
    long = Recording(np.zeros(16_000 * 61, np.float32), 16_000)
    inputs = processor.inputs([[user("Hear", long, TALK)]])
    assert inputs.audio is not None
    assert len(inputs.audio) == 4
    assert (inputs.ids == AUDIO.tokens.placeholder_id).sum() == 4 * 188
    with pytest.raises(InputError, match="at most 30 s"):
        PROCESSOR.render([user(long)])


def test_written_files_are_read_back_as_they_are(tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path / "a")
    again = Processor.read(tmp_path / "a", CONFIG)
    again.write(tmp_path / "b")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert again.images == PROCESSOR.images
    assert again.audio == PROCESSOR.audio


def test_the_older_flat_file_says_the_same(tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path)
    lengths = {"processor_class": "Gemma3nProcessor", "image_seq_length": 16, "audio_seq_length": 188}
    (tmp_path / PROCESSOR_FILE).write_text(json.dumps(lengths), encoding="utf-8")
    again = Processor.read(tmp_path, CONFIG)
    assert (again.images, again.audio) == (PROCESSOR.images, PROCESSOR.audio)


def test_a_flat_file_of_the_older_form_gives_our_defaults() -> None:
    fields = {
        "audio_seq_length": 188, "data_format": "channels_first", "default_to_square": False, "dither": 0.0,
        "do_center_crop": None, "do_convert_rgb": None, "do_normalize": False, "do_rescale": True, "do_resize": True,
        "feature_extractor_type": "Gemma3nAudioFeatureExtractor", "feature_size": 128, "fft_length": 1024,
        "fft_overdrive": True, "frame_length": 512, "hop_length": 160, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessorFast", "image_seq_length": 256, "image_std": [0.5, 0.5, 0.5],
        "input_scale_factor": 1.0, "max_frequency": 7600.0, "mel_floor": 1e-05, "min_frequency": 125.0,
        "padding_side": "right", "padding_value": 0.0, "per_bin_mean": None, "per_bin_stddev": None,
        "preemphasis": 0.97, "preemphasis_htk_flavor": True, "processor_class": "Gemma3nProcessor", "resample": 2,
        "rescale_factor": 0.00392156862745098, "return_attention_mask": False, "sampling_rate": 16000,
        "size": {"height": 768, "width": 768},
    }  # fmt: skip
    tokenizer = Tokenizer(vocabulary(), {PREPROCESSOR_FILE: json.dumps(fields).encode()})
    vision = dataclasses.replace(VISION, tokens=dataclasses.replace(VISION.tokens, per_item=256))
    assert read_image_settings(tokenizer, vision) == ImageSettings()
    assert read_audio_settings(tokenizer, AUDIO) == AudioSettings()


def edited(directory: Path, name: str, **changes: Any) -> None:
    """A file beside a tokenizer with other fields; None takes one out."""
    fields = json.loads((directory / name).read_text(encoding="utf-8")) | changes
    kept = {field: value for field, value in fields.items() if value is not None}
    (directory / name).write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize("name", [PROCESSOR_FILE, PREPROCESSOR_FILE])
@pytest.mark.parametrize("field", ["image_seq_length", "audio_seq_length"])
def test_runs_of_another_length_than_the_models_are_refused(name: str, field: str, tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path)
    edited(tmp_path, name, **{field: 999})
    with pytest.raises(ConfigError, match=rf"{name} beside .*: {field} is 999, but an item of the model has \d+ soft"):
        Processor.read(tmp_path, CONFIG)


def test_what_is_said_of_media_matters_only_to_a_model_that_takes_them(tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path)
    edited(tmp_path, PROCESSOR_FILE, feature_extractor={"dither": 1.0})
    with pytest.raises(ConfigError, match="dither"):
        Processor.read(tmp_path, CONFIG)
    assert Processor.read(tmp_path, dataclasses.replace(CONFIG, audio=None)).images == PROCESSOR.images
    (tmp_path / PROCESSOR_FILE).write_text("{", encoding="utf-8")
    assert Processor.read(tmp_path, TEXT_ONLY).encode([user("Hi")])


def test_a_text_only_model_is_written_without_the_files_of_media(tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path / "a")
    (tmp_path / "a/video_preprocessor_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a/added_tokens.json").write_text("{}", encoding="utf-8")
    Processor.read(tmp_path / "a", TEXT_ONLY).write(tmp_path / "text")
    Processor.read(tmp_path / "a", CONFIG).write(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {path.name for path in (tmp_path / "b").iterdir()} == names
    assert {path.name for path in (tmp_path / "text").iterdir()} == names - set(MEDIA_FILES)


def test_a_flat_file_without_kinds_is_read_if_it_is_of_gemmas_processor(tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path)
    (tmp_path / PROCESSOR_FILE).unlink()
    edited(tmp_path, PREPROCESSOR_FILE, feature_extractor_type=None, image_processor_type=None)
    assert Processor.read(tmp_path, CONFIG).audio == PROCESSOR.audio
    edited(tmp_path, PREPROCESSOR_FILE, processor_class=None)
    processor = Processor.read(tmp_path, CONFIG)
    message = f"{PREPROCESSOR_FILE} beside .* has no feature_extractor_type, nor {PROCESSOR_FILE} an object feature_ext"
    with pytest.raises(InputError, match=message):
        processor.render([user(TALK)])


def test_names_of_no_meaning_are_kept_beside_the_marks() -> None:
    tokenizer = Tokenizer(vocabulary(), {TOKENIZER_CONFIG_FILE: b'{"extra_special_tokens": ["<mask>"]}'})
    files = write_files(tokenizer, image=IMAGE_MARKS, audio=None, image_settings=None, audio_settings=None)
    written = json.loads(files[TOKENIZER_CONFIG_FILE])
    assert written["additional_special_tokens"] == ["<mask>"]
    assert written["extra_special_tokens"]["image_token"] == "<image_soft_token>"


def with_token(vocabulary: bytes, **token: Any) -> bytes:
    """A vocabulary to which another library added a token."""
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    parsed = json.loads(vocabulary)
    parsed["added_tokens"].append(kind | token)
    return json.dumps(parsed).encode()


def test_an_added_token_that_gets_another_id_here_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"says that '<mine>' has the id 330, but it is read as 3\d\d; .*unused"):
        Tokenizer(with_token(vocabulary(), id=330, content="<mine>"), {})


@pytest.mark.parametrize("word", ["mine", "<mine>"])
def test_a_word_among_the_ids_of_a_medium_is_refused(word: str) -> None:
    content = json.loads(vocabulary())
    content["model"]["vocab"][word] = 330
    tokenizer = Tokenizer(with_token(json.dumps(content).encode(), id=330, content=word), {})
    with pytest.raises(CheckpointError, match=rf"'{word}' has the id 330, but 328 to 335 are ids of audio"):
        Processor(tokenizer, None, None, CONFIG)


@pytest.mark.parametrize("word", ["<unused9>", "<other_mark>"])
def test_other_marks_may_stand_among_the_ids_of_a_medium(word: str) -> None:
    content = json.loads(vocabulary())
    content["model"]["vocab"][word] = 330
    content = with_token(json.dumps(content).encode(), id=330, content=word, normalized=False, special=True)
    assert Processor(Tokenizer(content, {}), None, None, CONFIG).tokenizer.token(330) == word


def test_a_mark_whose_id_an_added_token_has_is_refused() -> None:
    content = json.loads(vocabulary())
    for token in content["added_tokens"]:
        if token["id"] == 321:
            token["content"] = "<taken>"
    del content["model"]["vocab"]["<image_soft_token>"]
    with pytest.raises(CheckpointError, match="'<image_soft_token>' must have the id 321, which '<taken>' has"):
        with_media_tokens(json.dumps(content).encode(), CONFIG)


def test_a_vocabulary_without_ids_of_its_own_is_refused() -> None:
    unigram = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0, byte_fallback=False))
    with pytest.raises(CheckpointError, match="is of type Unigram, whose ids are places in a list"):
        with_media_tokens(unigram.to_str().encode(), CONFIG)


def test_a_directory_without_processor_files_works_for_text(tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(vocabulary())
    processor = Processor.read(tmp_path, CONFIG)
    assert processor.inputs([[user("Hi")]]).images is None
    for medium in (CAT, TALK):
        with pytest.raises(InputError, match=f"no {PREPROCESSOR_FILE} beside .*tokenizer.json says how to prepare it"):
            processor.inputs([[user(medium)]])


@pytest.mark.parametrize(("medium", "tower"), [(CAT, "vision"), (TALK, "audio")])
def test_media_in_a_model_without_towers_are_refused(medium: Part, tower: str) -> None:
    processor = Processor(Tokenizer(vocabulary(), {}), PROCESSOR.images, PROCESSOR.audio, TEXT_ONLY)
    with pytest.raises(InputError, match=f"the model has no {tower} tower"):
        processor.render([user(medium)])


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    content = json.loads(vocabulary())
    content["model"]["vocab"]["new"] = 423
    with pytest.raises(CheckpointError, match=r"has ids up to 423, but the model's end at 335 .*unused"):
        Processor(Tokenizer(json.dumps(content).encode(), {}), None, None, CONFIG)


def test_a_vocabulary_without_the_marks_is_refused() -> None:
    other = dataclasses.replace(VISION, tokens=MediaTokens(placeholder_id=326, begin_id=7, end_id=320, per_item=16))
    with pytest.raises(CheckpointError, match="names 326 as the placeholder of images, but the tokenizer has no token"):
        tiny_processor(dataclasses.replace(CONFIG, vision=other))


def test_a_mark_whose_id_is_taken_is_refused() -> None:
    other = dataclasses.replace(VISION, tokens=MediaTokens(placeholder_id=321, begin_id=6, end_id=320, per_item=16))
    with pytest.raises(CheckpointError, match="'<start_of_image>' must have the id 6, which '<end_of_turn>' has"):
        with_media_tokens(vocabulary(), dataclasses.replace(CONFIG, vision=other))


def test_sound_of_other_mels_than_the_tower_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"feature_size is 64, but the audio tower takes 128 mels"):
        Processor.create(Tokenizer(vocabulary(), {}), CONFIG, audio=AudioSettings(feature_size=64))


@pytest.mark.parametrize("name", [PROCESSOR_FILE, PREPROCESSOR_FILE])
@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "must hold a JSON object")])
def test_a_damaged_file_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    PROCESSOR.write(tmp_path)
    (tmp_path / PROCESSOR_FILE).unlink()
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{name} beside .*{message}"):
        Processor.read(tmp_path, CONFIG)


def test_checking_finds_bad_media_without_decoding(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    content = file_bytes(noise("RGB", (200, 200)))
    good.write_bytes(content[:9000] + bytes(9000) + content[18_000:])  # which decoding would refuse
    bad.write_bytes(b"")
    PROCESSOR.check([user(Picture(good), TALK)])
    with pytest.raises(InputError, match=r"bad.png': is empty"):
        PROCESSOR.check([user(Picture(good)), Message(Role.assistant, "A"), user(Picture(bad))])
    with pytest.raises(InputError, match="less than one frame"):
        PROCESSOR.check([user(Recording(np.zeros(5), 16_000))])


@pytest.mark.parametrize("towers", [{"vision": None}, {"audio": None}], ids=["audio", "vision"])
def test_a_model_of_one_medium_has_its_own_files(towers: dict[str, None], tmp_path: Path) -> None:
    config: ModelConfig = dataclasses.replace(CONFIG, **towers)
    Processor.create(Tokenizer(vocabulary(), {}), config, image=ImageSettings(height=64, width=64)).write(tmp_path)
    again = Processor.read(tmp_path, config)
    assert (again.images is None, again.audio is None) == (config.vision is None, config.audio is None)


def test_no_conversation_is_no_batch() -> None:
    with pytest.raises(InputError, match="no conversation"):
        PROCESSOR.inputs([])


def test_tokens_added_before_the_marks_keep_their_ids() -> None:
    content = json.loads(vocabulary())
    for token in content["added_tokens"]:
        content["model"]["vocab"].pop(token["content"])
    tokenizer = Tokenizer(with_media_tokens(json.dumps(content).encode(), CONFIG), {})
    assert [tokenizer.token(token["id"]) for token in content["added_tokens"]] == [
        token["content"] for token in content["added_tokens"]
    ]
