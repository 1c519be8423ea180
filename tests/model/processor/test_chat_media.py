# SPDX-License-Identifier: Apache-2.0
"""Media in conversations: where their runs stand, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from model.errors import InputError
from model.processor.chat import (
    AUDIO_MARKS,
    IMAGE_MARKS,
    MediaMarks,
    Message,
    Part,
    Rendered,
    Role,
    place_media,
    render,
    render_text,
)
from model.processor.media import Picture, Recording
from tests.tiny_processor import ROOT

IMAGE, AUDIO = MediaMarks("<i>", "<boi>", "<eoi>", 3), MediaMarks("<a>", "<boa>", "<eoa>", 2)
CAT, DOG, BIRD = (Picture(name) for name in ("cat.png", "dog.png", "bird.png"))
SONG, TALK = Recording("song.wav"), Recording("talk.wav")


def user(*parts: Part) -> Message:
    return Message(Role.user, parts)


def written(*messages: Message) -> Rendered:
    return render(messages, image=IMAGE, audio=AUDIO)


def test_a_medium_is_a_run_between_empty_lines() -> None:
    assert written(user(" What is ", CAT, "and", SONG)).text == (
        "<bos><start_of_turn>user\nWhat is\n\n<boi><i><i><i><eoi>\n\nand\n\n<boa><a><a><eoa>\n\n<end_of_turn>\n"
    )


def test_published_runs_have_their_published_lengths() -> None:
    rendered = render([user(CAT, SONG)], image=IMAGE_MARKS, audio=AUDIO_MARKS)
    assert rendered.text.count("<image_soft_token>") == 256
    assert rendered.text.count("<audio_soft_token>") == 188


def test_media_are_listed_in_the_order_of_their_runs() -> None:
    rendered = written(user(CAT, TALK, DOG), Message(Role.assistant, "Both."), user(SONG, "and", BIRD))
    assert rendered.pictures == (CAT, DOG, BIRD)
    assert rendered.recordings == (TALK, SONG)
    image, audio = IMAGE.run, AUDIO.run
    assert [rendered.text[start:end] for start, end in rendered.runs] == [image, audio, image, audio, image]


def test_the_assistant_spans_are_its_words_between_media() -> None:
    rendered = written(
        user(CAT), Message(Role.assistant, ("A", DOG, "too")), user(TALK), Message(Role.assistant, "Hm.")
    )
    said = [rendered.text[start:end] for start, end in rendered.assistant]
    assert said == [f"A\n\n{IMAGE.run}\n\ntoo<end_of_turn>", "Hm.<end_of_turn>"]


def test_the_words_of_a_message_leave_its_media_out() -> None:
    message = user(" What? ", CAT, "Why?")
    assert message.text == "What?Why?"
    assert (message.pictures, message.recordings) == ((CAT,), ())
    assert Message(Role.user, " plain ").parts == (" plain ",)


def test_a_text_without_turns_stays_as_it_is() -> None:
    rendered = render_text((" Look: ", CAT, " a "), image=IMAGE)
    assert rendered.text == "<bos> Look: \n\n<boi><i><i><i><eoi>\n\n a "
    assert rendered.pictures == (CAT,)


def test_media_beside_the_text_go_where_its_placeholders_stand() -> None:
    messages = [
        Message(Role.system, "Look."),
        Message(Role.user, "One <image_soft_token>, two <image_soft_token>, <audio_soft_token>"),
        Message(Role.assistant, "Yes."),
        user("<image_soft_token>", "again"),
    ]
    placed = place_media(messages, [CAT, DOG, BIRD], [SONG])
    assert placed[1].content == ("One ", CAT, ", two ", DOG, ", ", SONG)
    assert placed[3].content == (BIRD, "again")
    assert placed[::2] == tuple(messages[::2])


def test_media_in_their_place_stay_there() -> None:
    assert place_media([user(CAT, "<image_soft_token>")], [DOG]) == (user(CAT, DOG),)


@pytest.mark.parametrize(
    ("text", "pictures", "recordings", "message"),
    [
        ("<image_soft_token> <image_soft_token>", [CAT] * 3, [],
         "3 images, but its text has 2 placeholders; each image needs its own <image_soft_token>"),
        ("none", [CAT], [], "1 image, but its text has no placeholders"),
        ("<image_soft_token>", [], [], "no images, but its text has 1 placeholder;"),
        ("<audio_soft_token>", [], [SONG, TALK], "2 recordings, but its text has 1 placeholder;"),
    ],
)  # fmt: skip
def test_more_or_fewer_media_than_placeholders_are_refused(
    text: str, pictures: list[Picture], recordings: list[Recording], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_media([Message(Role.user, text)], pictures, recordings)


@pytest.mark.parametrize(
    "mark", ["<image_soft_token>", "<start_of_image>", "<end_of_image>", "<audio_soft_token>", "<start_of_audio>",
             "<end_of_audio>", "<i>", "<eoa>"],
)  # fmt: skip
def test_a_medium_mark_inside_a_text_is_refused(mark: str) -> None:
    with pytest.raises(InputError, match=rf"message 0 \(user\) contains '{mark}'; take it out"):
        written(Message(Role.user, f"Hi {mark}"))


def test_two_texts_cannot_make_a_mark_together() -> None:
    with pytest.raises(InputError, match="contains '<end_of_turn>'"):
        written(user("Hi <end_of", "_turn>"))


def test_media_are_refused_where_the_model_has_no_tower() -> None:
    with pytest.raises(InputError, match=r"message 0 \(user\) has image 'cat.png', but the model has no vision tower"):
        render([user(CAT)])
    with pytest.raises(InputError, match="has recording in memory, but the model has no audio tower"):
        render([user(Recording(np.zeros(9), 8000))], image=IMAGE)


def test_the_system_text_holds_no_media_and_is_one() -> None:
    with pytest.raises(InputError, match="media belong in a user message"):
        written(Message(Role.system, (CAT,)), user("Hi"))
    with pytest.raises(InputError, match="has 2 parts; give its text as one"):
        written(Message(Role.system, ("a", "b")), user("Hi"))
    assert written(Message(Role.system, (" a ",)), user("Hi")).text.startswith("<bos><start_of_turn>user\n a \n\nHi")


def test_what_is_no_message_is_refused_in_words() -> None:
    # In a process of its own: under pytest the annotations are checked, and nothing wrong gets further than that.
    program = """
from model.errors import InputError
from model.processor.chat import Message, Role
from model.processor.media import Picture
for role, content in ((Role.user, None), (Role.user, ("a", 3)), ("tool", "a"), (None, "a")):
    try: Message(role, content)
    except InputError as error: print(error)
assert Message("user", ["a", Picture("b")]) == Message(Role.user, ("a", Picture("b")))
assert Message("model", "a").role is Role.assistant
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [
        "message: its content has a NoneType; it must be a text, or texts, pictures and recordings in their order",
        "message: its content has a int; it must be a text, or texts, pictures and recordings in their order",
        "message: its role is 'tool'; allowed are system, user, assistant, model",
        "message: its role is None; allowed are system, user, assistant, model",
    ]
