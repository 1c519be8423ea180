# SPDX-License-Identifier: Apache-2.0
"""Rows that refer to images and sound, in every way there is, and what is wrong with others."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import ConfigError, InputError
from model.processor.chat import Message, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from tests.tiny import tiny_multimodal_config
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, tiny_processor, write_jsonl
from trainer.data.config import DataConfig, LongRows
from trainer.data.example import Example
from trainer.data.faults import Fault
from trainer.data.inspection import Digests
from trainer.data.media import fingerprint_of_media
from trainer.data.sources import Source, read_conversations
from trainer.data.supervise import TokenRow, TokenRows, tokenize

PROCESSOR = tiny_media_processor()
IMAGE, AUDIO = {"type": "image"}, {"type": "audio"}
VISION, SOUND = PROCESSOR.config.vision, PROCESSOR.config.audio


def line(content: Any, **fields: Any) -> dict[str, Any]:
    """A conversation of a question and an answer."""
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}], **fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good image and good sound, and media that are not."""
    directory = tmp_path_factory.mktemp("media")
    header = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(header, format="PNG")  # some kilobytes that claim 144 million pixels
    broken = {
        "a.png": picture_bytes(1), "a.wav": sound_bytes(300), "stereo.wav": sound_bytes(300, channels=2),
        "empty.png": b"", "text.png": b"hello", "bomb.png": header.getvalue(), "empty.wav": b"", "text.wav": b"hello",
        "short.wav": sound_bytes(300, seconds=0.01), "long.wav": sound_bytes(300, seconds=2.5),
    }  # fmt: skip
    for name, content in broken.items():
        (directory / name).write_bytes(content)
    return directory


def read(folder: Path, *lines: Any, processor: Processor = PROCESSOR) -> TokenRows:
    """The rows of a file in ``folder``."""
    file = write_jsonl(folder / "chat.jsonl", lines)
    return tokenize(read_conversations([file]), processor, max_length_tokens=200, long_rows=LongRows.refuse)


ENCODED = {"bytes": base64.b64encode(picture_bytes(1)).decode()}
BROKEN_INTO_LINES = {"bytes": base64.encodebytes(picture_bytes(1)).decode()}


@pytest.mark.parametrize(
    "row",
    [
        line("<image_soft_token> what", images=["a.png"]),
        line("<image_soft_token> what", images="a.png"),
        line("<image_soft_token> what", images=[{"path": "a.png"}]),
        line("<image_soft_token> what", images=[{"bytes": None, "path": "a.png"}]),
        line("<image_soft_token> what", images=[ENCODED]),
        line("<image_soft_token> what", images=[BROKEN_INTO_LINES]),
        line("<image_soft_token> what", images=["a.png"], videos=[], image=None, caption="ignored"),
        line([IMAGE | {"path": "a.png", "text": None}, {"type": "text", "text": "what", "path": None}]),
        line([IMAGE, {"type": "text", "text": "what"}], images=["a.png"]),
        line([IMAGE | {"path": "a.png"}, {"type": "text", "text": "what"}]),
        line([IMAGE | {"image": "a.png"}, {"type": "text", "text": "what"}]),
        line([IMAGE | ENCODED, {"type": "text", "text": "what"}]),
        line([{"type": "text", "text": "<image_soft_token> what"}], images=["a.png"]),
    ],
)  # fmt: skip
def test_every_way_to_refer_to_an_image_gives_the_same_row(folder: Path, row: dict[str, Any]) -> None:
    asked = Message(Role.user, (Picture(folder / "a.png"), "what"))
    (expected,) = tokenize(
        [Example((asked, Message(Role.assistant, "yes")), "")], PROCESSOR, max_length_tokens=200,
        long_rows=LongRows.refuse,
    ).rows  # fmt: skip
    (found,) = read(folder, row).rows
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.supervised.tolist() == expected.supervised.tolist()
    assert [picture.digest() for picture in found.pictures] == [Picture(folder / "a.png").digest()]


def test_media_of_both_kinds_go_to_their_places_in_order(folder: Path) -> None:
    (folder / "b.png").write_bytes(picture_bytes(2))
    items = [IMAGE, AUDIO, {"type": "image", "path": "b.png"}, {"type": "text", "text": "and <image_soft_token>"}]
    (found,) = read(folder, line(items, images=["a.png", "a.png"], audio="stereo.wav")).rows
    assert found.pictures == (Picture(folder / "a.png"), Picture(folder / "b.png"), Picture(folder / "a.png"))
    assert found.recordings == (Recording(folder / "stereo.wav"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (line("what", images=["a.png"]), "1 image, but its text has no placeholder"),
        (line("<image_soft_token>", images=["a.png", "a.png"]), "2 images, but its text has 1 placeholder"),
        (line([IMAGE, IMAGE], images=["a.png"]), "1 image, but its text has 2 placeholders"),
        (line("<audio_soft_token>"), "no recordings, but its text has 1 placeholder"),
        (line(["what"]), r"messages\[0\]\.content\[0\]: found a string \('what'\); expected an object with 'type'"),
        (line([{"type": "video"}]), r"content\[0\]\.type: found 'video'; expected text, image, audio"),
        (line([{"type": "text"}]), r"content\[0\]\.text: found none; expected a string"),
        (line([{"type": "text", "text": " "}]), r"messages\[0\]\.content: found no text; expected some"),
        (line([]), r"messages\[0\]\.content: found no text; expected some"),
        (line([IMAGE | {"path": 3}]), r"content\[0\]: found a number \('3'\); expected a path"),
        (line("<image_soft_token>", images=[7]), r"images\[0\]: found a number \('7'\); expected a path"),
        (line("<image_soft_token>", images={"url": "x"}), r"images: found an object without 'path' and 'bytes'"),
        (line("<image_soft_token>", images=[""]), r"images\[0\]: found an empty path"),
        (line("<audio_soft_token>", audio={"bytes": "§"}), r"audio\.bytes: found no Base64"),
        (line([{"type": ["image"]}]), r"content\[0\]\.type: found a list; expected text, image, audio"),
        (line([{"type": {"a": 1}}]), r"content\[0\]\.type: found an object; expected text, image, audio"),
        (line([{"type": None}]), r"content\[0\]\.type: found null; expected text, image, audio"),
        (line("what", image="a.png"), r"image: found a string \('a\.png'\); expected media in images or audio beside"),
        (line("what", audios=["a.wav"]), r"audios: found a list; expected media in images or audio beside"),
        (line("what", Images=["a.png"]), r"Images: found a list; expected media in images or audio beside"),
        (line("what", video="a.mp4"), r"video: found a string"),
        ({"messages": [{"role": "user", "content": "a", "images": ["a.png"]}, {"role": "assistant", "content": "b"}]},
         r"messages\[0\]\.images: found a list; expected media in images or audio beside 'messages'"),
        (line([{"type": "text", "text": "hi", "path": "a.png"}]), r"\[0\]\.path: found a string .*but type, text"),
        (line([IMAGE | {"url": "a.png"}], images=["a.png"]), r"content\[0\]\.url: .*but type, image, path, bytes"),
        (line([IMAGE | {"image": "a.png", "path": "none.png"}]), r"content\[0\]: found 'image' and 'path'; expected"),
        (line([IMAGE | ENCODED | {"path": "none.png"}]), r"content\[0\]: found 'path' and 'bytes'; expected"),
        (line("<image_soft_token>", images=[ENCODED | {"path": "a"}]), r"images\[0\]: found 'path' and 'bytes'"),
        (line("<image_soft_token>", images=[{"path": "a.png", "x": 1}]), r"images\[0\]\.x: found a number \('1'\)"),
        (line("<image_soft_token>", images=["none.png"]), r"image '.*none\.png': no such file"),
        (line("<image_soft_token>", images=["http://a/b.png"]), r"image 'http://a/b\.png': is an address"),
        (line("<image_soft_token>", images=["empty.png"]), r"image '.*empty\.png': is empty \(0 bytes\)"),
        (line("<image_soft_token>", images=["text.png"]), r"image '.*text\.png': damaged, or no image"),
        (line("<image_soft_token>", images=["bomb.png"]), r"image '.*bomb\.png': is 12000 x 12000 pixels; at most"),
        (line("<audio_soft_token>", audio=["empty.wav"]), r"recording '.*empty\.wav': is empty \(0 bytes\)"),
        (line("<audio_soft_token>", audio=["text.wav"]), r"recording '.*text\.wav': damaged, or no sound"),
        (line("<audio_soft_token>", audio=["short.wav"]), r"recording '.*short\.wav': lasts 0\.010 s, less than one"),
        (line("<audio_soft_token>", audio=["long.wav"]), r"recording '.*long\.wav': lasts 2\.50 s, but a clip has"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_with_its_place(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"1 of 2 rows cannot be used(?s:.*)chat\.jsonl:2: .*{message}"):
        read(folder, line("fine"), row)


WORDS = ("messages", "role", "content", "type", "text", "image", "images", "audio", "path", "bytes", "user", "a.png")
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(WORDS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"type": st.one_of(st.sampled_from(["text", "image", "audio"]), VALUES)},
        optional=dict.fromkeys(("text", "image", "audio", "path", "bytes"), VALUES),
    )
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.one_of(st.sampled_from(["user", "assistant"]), VALUES),
            "content": st.one_of(VALUES, ITEMS),
        }
    ),
    max_size=3,
)
ROWS = st.fixed_dictionaries(
    {"messages": st.one_of(TURNS, VALUES)}, optional=dict.fromkeys(("images", "audio", "image"), VALUES)
)


@given(row=ROWS)
def test_whatever_a_row_holds_it_is_read_or_its_place_is_said(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]
) -> None:
    file, told = write_jsonl(tmp_path_factory.getbasetemp() / "drawn.jsonl", [row]), "drawn.jsonl:1: "
    try:
        read_conversations([file])
    except InputError as error:
        told = str(error)
    assert "drawn.jsonl:1: " in told


def test_media_are_refused_where_the_model_has_no_tower_for_them(folder: Path) -> None:
    row = line("<image_soft_token>", images=["a.png"])
    with pytest.raises(InputError, match=r"chat\.jsonl:1: messages: .*a\.png.*no vision tower"):
        read(folder, row, processor=tiny_processor())
    without = Processor(PROCESSOR.tokenizer, PROCESSOR.images, PROCESSOR.audio, tiny_multimodal_config().only([]))
    with pytest.raises(InputError, match=r"no vision tower"):
        read(folder, row, processor=without)


def test_samples_that_are_no_numbers_are_found_when_they_are_decoded(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full(4000, np.nan, dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    (tmp_path / "nan.wav").write_bytes(file.getvalue())
    (row,) = read(tmp_path, line("<audio_soft_token>", audio="nan.wav")).rows
    assert PROCESSOR.audio is not None
    with pytest.raises(InputError, match=r"nan\.wav': sample 0 is nan"):
        PROCESSOR.audio(row.recordings[0])


def example(*turns: Any) -> Example:
    """User and assistant in turn."""
    roles = (Role.user, Role.assistant) * len(turns)
    return Example(tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False)), "here:1")


def truncated(given: Example, length: int) -> tuple[TokenRow | None, int, int]:
    """The row, beside one that is short enough, and how many were skipped and truncated."""
    found = tokenize([given, example("a", "b")], PROCESSOR, max_length_tokens=length, long_rows=LongRows.truncate)
    return (found.rows[0] if len(found.rows) == 2 else None), found.num_skipped, found.num_truncated


def media_places(row: TokenRow) -> list[int]:
    """Where placeholders and delimiters stand."""
    assert VISION is not None
    assert SOUND is not None
    known = {*VISION.tokens.ids, *SOUND.tokens.ids}
    return [place for place, token in enumerate(row.ids.tolist()) if token in known]


def test_soft_tokens_and_their_delimiters_are_never_learnt_whoever_shows_them() -> None:
    picture, sound = Picture(picture_bytes(1)), Recording(sound_bytes(300))
    given = example((picture, "what"), ("this: ", picture, sound), "and", "that")
    (row,) = tokenize([given], PROCESSOR, max_length_tokens=300, long_rows=LongRows.refuse).rows
    assert VISION is not None
    assert SOUND is not None
    assert len(media_places(row)) == 2 * (VISION.tokens.per_item + 2) + SOUND.tokens.per_item + 2
    assert not row.supervised[media_places(row)].any()
    assert row.supervised.any()


def test_a_long_row_loses_its_end_but_no_part_of_a_medium() -> None:
    picture = Picture(picture_bytes(1))
    given = example((picture, "what"), "x" * 40, "and now " + "y" * 40, "z")
    (whole,) = tokenize([given], PROCESSOR, max_length_tokens=400, long_rows=LongRows.refuse).rows
    row, skipped, cut = truncated(given, 80)
    assert row is not None
    assert (skipped, cut) == (0, 1)
    assert row.ids.tolist() == whole.ids[:80].tolist()
    assert row.supervised.tolist() == whole.supervised[:80].tolist()
    assert row.pictures == whole.pictures


@pytest.mark.parametrize("turns", [
    pytest.param(("what", "x" * 40, (Picture(picture_bytes(1)), "and this"), "z"), id="the run would be cut"),
    pytest.param(("what " + "y" * 90, "x"), id="nothing to learn is left"),
])  # fmt: skip
def test_a_row_that_cannot_be_shortened_is_left_out_and_counted(turns: tuple[Any, ...]) -> None:
    assert truncated(example(*turns), 80) == (None, 1, 0)


def test_a_row_ends_right_behind_a_run_or_is_left_out() -> None:
    given = example("a", "b", (Picture(picture_bytes(1)), "c" * 30), "d")
    (whole,) = tokenize([given], PROCESSOR, max_length_tokens=400, long_rows=LongRows.refuse).rows
    last = media_places(whole)[-1]
    kept, _, _ = truncated(given, last + 1)
    assert kept is not None
    assert media_places(kept) == media_places(whole)
    assert truncated(given, last)[0] is None


def test_the_fingerprint_of_media_is_one_of_their_content(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    a, copy, other = Picture(folder / "a.png"), Picture(folder / "copy.png"), Picture(folder / "text.png")
    digests: Digests = {picture: picture.digest() for picture in (a, copy, other)}
    found = [fingerprint_of_media(media, digests) for media in ([a, other], [copy, other], [other, a])]
    assert found[0] == found[1] != found[2]


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.workers is -1"):
        DataConfig(train=["a"], workers=-1)


def test_an_empty_cell_of_a_table_is_no_medium(folder: Path) -> None:
    path = folder / "rows.csv"
    path.write_text("prompt,completion,images\nhi,ho,\n<image_soft_token> what,cat,a.png\n<image_soft_token>,cat,\n")
    *found, wrong = Source(str(path)).examples()
    assert [one.shows_media for one in found if isinstance(one, Example)] == [False, True]
    assert isinstance(wrong, Fault)
