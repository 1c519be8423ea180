# SPDX-License-Identifier: Apache-2.0
"""What is learnt is what was asked for, by who speaks, by turn and by character, as the decoded tokens say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from model.processor.audio import LongAudio
from model.processor.chat import Role
from model.processor.media import Recording
from model.processor.processor import Processor
from model.processor.settings import AudioSettings
from tests.tiny import tiny_multimodal_config
from tests.trainer.parts import (
    picture_bytes,
    sound_bytes,
    tiny_media_processor,
    tiny_media_tokenizer,
    write_jsonl,
)
from trainer.data.config import LongRows, SuperviseConfig, Turns
from trainer.data.example import Example, Mark
from trainer.data.sources import Source
from trainer.data.supervise import tokenize

PROCESSOR = tiny_media_processor()
BACKEND = tokenizers.Tokenizer.from_str(tiny_media_tokenizer()._content.decode())
END = "<end_of_turn>"
SYSTEM, ASKED, ANSWERED = (
    {"role": role, "content": text} for role, text in (("system", "be kind"), ("user", " one? "), ("assistant", "two."))
)
AGAIN, LAST = {"role": "user", "content": "three?"}, {"role": "assistant", "content": "four. five."}
TALK = [SYSTEM, ASKED, ANSWERED, AGAIN, LAST]


def learnt(
    directory: Path, row: dict[str, Any], *, roles: tuple[Role, ...] = (Role.assistant,), turns: Turns = Turns.all,
    processor: Processor = PROCESSOR,
) -> list[str]:  # fmt: skip
    """The stretches of tokens that are learnt of a row, as text, special tokens included."""
    path = write_jsonl(directory / "row.jsonl", [row])
    supervise = SuperviseConfig(roles=list(roles), turns=turns)
    (found,) = tokenize(
        Source(str(path)).examples(roles=roles), processor, max_length_tokens=400, long_rows=LongRows.refuse,
        supervise=supervise,
    ).rows  # fmt: skip
    stretches, before = [], False
    for token, is_learnt in zip(found.ids.tolist(), found.supervised.tolist(), strict=True):
        if is_learnt:
            stretches = [*stretches, ""] if not before else stretches
            stretches[-1] += str(BACKEND.id_to_token(token))
        before = is_learnt
    return stretches


@pytest.mark.parametrize(("roles", "turns", "expected"), [
    (("assistant",), "all", [f"two.{END}", f"four. five.{END}"]),
    (("assistant",), "last", [f"four. five.{END}"]),
    (("user",), "all", [f"one?{END}", f"three?{END}"]),
    (("user",), "last", [f"three?{END}"]),
    (("system",), "all", ["be kind"]),
    (("system", "assistant"), "all", ["be kind", f"two.{END}", f"four. five.{END}"]),
    (("user", "assistant"), "last", [f"four. five.{END}"]),
    (("system", "user", "assistant"), "all", ["be kind", f"one?{END}", f"two.{END}", f"three?{END}",
                                              f"four. five.{END}"]),
])  # fmt: skip
def test_those_who_are_named_are_learnt_from(
    tmp_path: Path, roles: tuple[str, ...], turns: str, expected: list[str]
) -> None:
    assert learnt(tmp_path, {"messages": TALK}, roles=tuple(map(Role, roles)), turns=Turns(turns)) == expected


@pytest.mark.parametrize(("marks", "expected"), [
    ({2: {"train": False}}, [f"four. five.{END}"]),
    ({1: {"train": True}}, [f"one?{END}", f"two.{END}", f"four. five.{END}"]),
    ({0: {"train": True}, 4: {"train": False}}, ["be kind", f"two.{END}"]),
    ({4: {"spans": [[0, 5]]}}, [f"two.{END}", "four."]),
    ({4: {"spans": [[6, 11]]}}, [f"two.{END}", f"five.{END}"]),
    ({4: {"spans": [[0, 2], [6, 8]]}}, [f"two.{END}", "fo", "fi"]),
    ({4: {"spans": [[6, 8], [0, 7]]}}, [f"two.{END}", "four. fi"]),
    ({1: {"spans": [[0, 3]]}}, ["on", f"two.{END}", f"four. five.{END}"]),  # a space is written before it
    ({1: {"spans": [[3, 6]]}}, [f"e?{END}", f"two.{END}", f"four. five.{END}"]),
    ({0: {"spans": [[3, 7]]}}, ["kind", f"two.{END}", f"four. five.{END}"]),
])  # fmt: skip
def test_what_a_turn_says_itself_goes_first(tmp_path: Path, marks: dict[int, Any], expected: list[str]) -> None:
    turns = [turn | marks.get(index, {}) for index, turn in enumerate(TALK)]
    assert learnt(tmp_path, {"messages": turns}) == expected
    in_sharegpt = [{("from" if k == "role" else "value" if k == "content" else k): v for k, v in turn.items()}
                   for turn in turns]  # fmt: skip
    assert learnt(tmp_path, {"conversations": in_sharegpt}) == expected


def test_of_a_prompt_and_its_completion_the_completion_alone_is_learnt(tmp_path: Path) -> None:
    row = {"prompt": TALK[:4], "completion": "four."}
    assert learnt(tmp_path, row) == [f"four.{END}"]
    assert learnt(tmp_path, row, roles=(Role.user, Role.assistant)) == [f"four.{END}"]
    row = {"prompt": [ASKED | {"train": True}], "completion": [ANSWERED | {"spans": [[0, 2]]}]}
    assert learnt(tmp_path, row) == [f"one?{END}", "tw"]


@pytest.mark.parametrize("content", [
    "see <image_soft_token> and <audio_soft_token> now",
    [{"type": "text", "text": "see <image_soft_token> and "}, {"type": "audio"}, {"type": "text", "text": " now"}],
])  # fmt: skip
def test_spans_are_counted_in_the_text_as_it_is_written_also_around_media(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    media = {"images": ["a.png"], "audio": ["a.wav"]}
    written = content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
    for word, expected in (("see", "see"), ("and", "and"), ("ow", f"ow{END}"), ("nd", "nd")):
        start = written.index(word)
        turn = {"role": "user", "content": content, "spans": [[start, start + len(word)]]}
        assert learnt(tmp_path, {"messages": [turn, ANSWERED], **media}) == [expected, f"two.{END}"]
    turn = {"role": "user", "content": content, "spans": [[0, len(written)]]}
    assert "".join(learnt(tmp_path, {"messages": [turn, ANSWERED], **media})) == f"seeandnow{END}two.{END}"


def test_a_span_behind_a_recording_that_became_several_clips_is_found(tmp_path: Path) -> None:
    processor = Processor.create(
        tiny_media_tokenizer(), tiny_multimodal_config(), audio=AudioSettings(feature_size=16),
        long_audio=LongAudio.chunk,
    )  # fmt: skip
    (tmp_path / "long.wav").write_bytes(sound_bytes(300, seconds=5))
    turn = {"role": "user", "content": "<audio_soft_token> what is it", "spans": [[19, 23], [27, 29]]}
    row = {"messages": [turn, ANSWERED], "audio": "long.wav"}
    assert learnt(tmp_path, row, processor=processor) == ["what", f"it{END}", f"two.{END}"]
    path = write_jsonl(tmp_path / "row.jsonl", [row])
    (found,) = tokenize(Source(str(path)).examples(), processor, max_length_tokens=400, long_rows=LongRows.refuse).rows
    assert len(found.recordings) > 1
    assert found.wholes == (Recording(tmp_path / "long.wav"),)


@given(text=st.text("abc .", min_size=1, max_size=12).filter(str.strip), data=st.data())
def test_the_characters_of_a_span_are_learnt_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    begin, stop = len(text) - len(text.lstrip()), len(text.rstrip())
    expected = text[max(start, begin) : min(end, stop)] + (END if start < stop <= end else "")
    row = {"messages": [ASKED, ANSWERED | {"content": text, "spans": [[start, end]]}]}
    if not expected:
        with pytest.raises(InputError, match="found no token that is learnt"):
            learnt(tmp_path_factory.getbasetemp(), row)
    else:
        assert learnt(tmp_path_factory.getbasetemp(), row) == [expected]


def test_a_conversation_without_any_of_those_who_are_learnt_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"messages: found no turn by system; expected at least one \(data.supervise"):
        learnt(tmp_path, {"messages": TALK[1:]}, roles=(Role.system,))
    assert learnt(tmp_path, {"messages": TALK[1:2]}, roles=(Role.user,)) == [f"one?{END}"]


def test_an_example_that_says_nothing_of_its_turns_is_learnt_as_ever(tmp_path: Path) -> None:
    (example,) = Source(str(write_jsonl(tmp_path / "a.jsonl", [{"messages": TALK}]))).examples()
    assert isinstance(example, Example)
    assert example.marks == ()
    (marked,) = Source(
        str(write_jsonl(tmp_path / "b.jsonl", [{"messages": [*TALK[:4], LAST | {"train": True}]}]))
    ).examples()
    assert isinstance(marked, Example)
    assert marked.marks == (*[Mark()] * 4, Mark(train=True))
