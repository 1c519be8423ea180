# SPDX-License-Identifier: Apache-2.0
"""Every faulty line is reported with its place, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError, InputError
from model.processor.chat import Message, Role
from tests.trainer.parts import write_jsonl
from trainer.data.config import DataConfig
from trainer.data.sources import Source, fingerprint, read_conversations

USER, ASSISTANT = {"role": "user", "content": "say a"}, {"role": "assistant", "content": "a"}
GOOD: dict[str, Any] = {"messages": [USER, ASSISTANT]}


def test_conversations_are_read_with_their_places(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", GOOD | {"id": 7}])
    read = read_conversations([path])
    assert [example.where for example in read] == [f"{path}:1", f"{path}:3"]
    assert read[0].messages == (Message(Role.user, "say a"), Message(Role.assistant, "a"))


def test_gemmas_own_word_for_the_assistant_is_understood(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [USER, {"role": "model", "content": "a"}]}])
    assert read_conversations([path])[0].messages[1].role is Role.assistant


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r":2: found no JSON \(Expecting property name .* at column 2\); expected one object per line"),
        ([USER], r":2: row: found a list; expected an object with 'messages'"),
        ({"text": "x", "id": 1}, r":2: messages: found none \(the row has 'text', 'id'\); expected a list of turns"),
        ({"messages": []}, r":2: messages: found an empty list; expected a list of turns"),
        ({"messages": "hello"}, r":2: messages: found a string \('hello'\); expected a list of turns"),
        ({"messages": [USER, "a"]}, r":2: messages\[1\]: found a string \('a'\); expected an object with 'role'"),
        ({"messages": [{"role": "bot", "content": "x"}]},
         r":2: messages\[0\]\.role: found 'bot'; expected system, user, assistant, model"),
        ({"messages": [{"content": "x"}]}, r":2: messages\[0\]\.role: found none"),
        ({"messages": [USER, {"role": "assistant"}]}, r":2: messages\[1\]\.content: found none; expected a string"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]},
         r":2: messages\[1\]\.content: found a number \('3'\); expected a string"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, r":2: messages\[1\]\.content: found no text"),
        ('{"messages": [{"role": "user", "content": "hi \\ud83d"}]}',
         r":2: messages\[0\]\.content: found half of a surrogate pair \(\\ud83d\) at character 4"),
        ({"messages": [USER]}, r":2: messages: found no assistant turn; expected at least one"),
    ],
)  # fmt: skip
def test_a_faulty_line_is_reported(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_conversations([write_jsonl(tmp_path / "a.jsonl", [GOOD, line])])


def test_bytes_that_are_no_text_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"messages": "\xff"}\n')
    with pytest.raises(InputError, match=r":1: found byte 0xff at column 15; expected UTF-8 text"):
        read_conversations([path])


def test_twenty_faults_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, *["{"] * 25])
    with pytest.raises(InputError) as raised:
        read_conversations([path])
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("data: 25 of 26 rows cannot be used")
    assert len(lines) == 22
    assert lines[-1] == "… and 5 more"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: no file '.*nowhere\.jsonl'"):
        read_conversations([tmp_path / "nowhere.jsonl"])


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no rows"):
        read_conversations([write_jsonl(tmp_path / "a.jsonl", [""])])


def test_the_fingerprint_is_one_of_the_content_and_its_order(tmp_path: Path) -> None:
    first, second = write_jsonl(tmp_path / "a.jsonl", [GOOD]), write_jsonl(tmp_path / "b.jsonl", [GOOD, GOOD])
    same = write_jsonl(tmp_path / "c.jsonl", [GOOD])
    first, second, same = (Source(str(path)) for path in (first, second, same))
    assert fingerprint([first, second]) == fingerprint([same, second]) != fingerprint([second, first])


def test_data_without_a_training_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        DataConfig(train=[])
