# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be used, and the exact words in which each is refused; and the makings of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = ".jsonl, .ndjson, .json, .parquet, .csv, .tsv, .arrow or .txt"
TURNS = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a good one"}]
GOOD = {"messages": TURNS}
TALK = {"conversations": [{"from": "human", "value": "say a"}, {"from": "gpt", "value": "a"}]}
TASK = {"instruction": "say a", "input": "", "output": "a"}
ASKED = {"prompt": "say a", "completion": "a"}
PAIR = {"prompt": "say a", "chosen": "a", "rejected": "b"}
TABLE = pa.table({"text": ["some text"] * 500})


def lines(*rows: Any) -> bytes:
    """A file of JSON Lines; what is bytes is written as it is."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def turns(**fields: Any) -> dict[str, Any]:
    """A good conversation whose answer has more to say."""
    return {"messages": [TURNS[0], {**TURNS[1], **fields}]}


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row that lacks something."""
    return {name: value for name, value in row.items() if name not in names}


def parquet(path: Path) -> bytes:
    """A Parquet file as bytes."""
    pq.write_table(TABLE, path / "good.parquet", compression="none")
    return (path / "good.parquet").read_bytes()


def arrow_stream(path: Path, *, end: int | None = None) -> bytes:
    """An Arrow file as ``datasets`` writes it, in two batches."""
    with pa.OSFile(str(path / "good.arrow"), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=250)
    return (path / "good.arrow").read_bytes()[:end]


def arrow_file(path: Path) -> bytes:
    """An Arrow file in Arrow's file format."""
    with pa.OSFile(str(path / "good.arrow"), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return (path / "good.arrow").read_bytes()


ROWS: list[tuple[str, Any, str]] = [  # format of the good row before it, the bad row, how its place is told
    # JSON
    (
        "messages",
        b"{oops",
        ("found no JSON (Expecting property name enclosed in double quotes at column 2); expected one object per line"),
    ),
    ("messages", b'{"messages": []} {}', "found no JSON (Extra data at column 18); expected one object per line"),
    (
        "messages",
        b'{"messages": [{"role"',
        ("found no JSON (Expecting ':' delimiter at column 22); expected one object per line"),
    ),
    ("messages", b"\0\0\0\0", "found a NUL byte at column 1; expected one object per line"),
    ("messages", b'{"messages": "caf\xe9"}', "found byte 0xe9 at column 18; expected UTF-8 text"),
    (
        "messages",
        b"[" * 100_000,
        "found lists or objects within each other a thousand deep; expected one object per line",
    ),
    (
        "messages",
        b'{"messages": ' + b"1" * 5000 + b"}",
        (
            "found no JSON that can be read (Exceeds the limit (4300 digits)"
            " for integer string conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the"
            " limit); expected one object per line"
        ),
    ),
    ("messages", "text", "row: found a string ('text'); expected an object with 'messages'"),
    ("messages", None, "row: found null; expected an object with 'messages'"),
    # Messages
    ("messages", {"text": "a", "id": 1}, "messages: found none (the row has 'text', 'id'); expected a list of turns"),
    ("messages", {}, "messages: found none (the row has no fields); expected a list of turns"),
    ("messages", {"messages": {}}, "messages: found an object; expected a list of turns"),
    ("messages", {"messages": []}, "messages: found an empty list; expected a list of turns"),
    (
        "messages",
        {"messages": ["a"]},
        "messages[0]: found a string ('a'); expected an object with 'role' and 'content'",
    ),
    (
        "messages",
        {"messages": [{"role": "tool", "content": "a"}]},
        "messages[0].role: found 'tool'; expected system, user, assistant, model",
    ),
    (
        "messages",
        {"messages": [{"content": "a"}]},
        "messages[0].role: found none; expected system, user, assistant, model",
    ),
    ("messages", turns(content=None), "messages[1].content: found null; expected a string or a list of items"),
    (
        "messages",
        turns(content=True),
        "messages[1].content: found a boolean ('True'); expected a string or a list of items",
    ),
    ("messages", turns(content=" \n"), "messages[1].content: found no text; expected some"),
    (
        "messages",
        {"messages": TURNS[:1]},
        "messages: found no assistant turn; expected at least one, it is what is learnt",
    ),
    (
        "messages",
        {"messages": TURNS[::-1]},
        (
            "messages: conversation: message 0 is by 'assistant' where 'user' should"
            " speak; one optional system message, then user and assistant in turn"
        ),
    ),
    (
        "messages",
        turns(content="a<end_of_turn>"),
        "messages: conversation: message 1 (assistant) contains '<end_of_turn>'; take it out",
    ),
    (
        "messages",
        turns(content="long " * 20),
        (
            "messages: found 122 tokens; expected at most 60"
            " (data.max_length_tokens; data.long_rows=skip leaves such rows out, truncate cuts off their ends)"
        ),
    ),
    # What is learnt
    ("messages", turns(train="yes"), "messages[1].train: found a string ('yes'); expected true or false"),
    ("messages", turns(train=True, spans=[[0, 1]]), "messages[1]: found 'train' and 'spans'; expected one of them"),
    ("messages", turns(spans=[]), "messages[1].spans: found an empty list; expected a list of [start, end]"),
    (
        "messages",
        turns(spans=[[0, 11]]),
        (
            "messages[1].spans[0]: found [0, 11]; expected [start, end] with 0 <= start <"
            " end <= 10, the characters of its text"
        ),
    ),
    (
        "messages",
        turns(spans=[[0, 4], [5, 5]]),
        (
            "messages[1].spans[1]: found [5, 5]; expected [start, end] with 0 <="
            " start < end <= 10, the characters of its text"
        ),
    ),
    (
        "messages",
        turns(spans=[[1]]),
        (
            "messages[1].spans[0]: found [1]; expected [start, end] with 0 <= start < end <="
            " 10, the characters of its text"
        ),
    ),
    (
        "messages",
        turns(train=False),
        "messages: found no token that is learnt; expected at least one (by data.supervise, or the row's own marks)",
    ),
    (
        "messages",
        turns(content="  a", spans=[[0, 1]]),
        "messages: found no token that is learnt; expected at least one (by data.supervise, or the row's own marks)",
    ),
    # Media
    (
        "messages",
        turns(content="<image_soft_token>") | {"images": ["none.png"]},
        "messages: image 'none.png': no such file; give a file",
    ),
    (
        "messages",
        GOOD | {"images": ["a.png"]},
        (
            "messages: conversation: 1 image, but its text has no placeholders; each"
            " image needs its own <image_soft_token>"
        ),
    ),
    (
        "messages",
        GOOD | {"image": "a.png"},
        (
            "image: found a string ('a.png'); expected media in images or audio beside"
            " 'messages', or as items of a turn's content, and none by another name"
        ),
    ),
    # ShareGPT
    (
        "sharegpt",
        {"conversations": [{"from": "observation", "value": "a"}]},
        ("conversations[0].from: found 'observation'; expected human, gpt, system, user, assistant, model, chatgpt"),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "content": "a"}]},
        "conversations[0].value: found none; expected a string or a list of items",
    ),
    ("sharegpt", TALK | {"system": 1}, "system: found a number ('1'); expected a string"),
    (
        "sharegpt",
        TALK | {"conversations": TALK["conversations"][:1]},
        "conversations: found no assistant turn; expected at least one, it is what is learnt",
    ),
    # Alpaca
    ("alpaca", without(TASK, "output"), "output: found none (the row has 'instruction', 'input'); expected a string"),
    ("alpaca", TASK | {"output": ""}, "output: found no text; expected some"),
    ("alpaca", TASK | {"input": ["a"]}, "input: found a list; expected a string"),
    (
        "alpaca",
        TASK | {"history": [["a", "b"]]},
        "history: found a list; expected none (several turns are written as 'messages')",
    ),
    # Prompt and completion
    (
        "prompt_completion",
        without(ASKED, "completion"),
        "completion: found none (the row has 'prompt'); expected a string or a list of turns",
    ),
    ("prompt_completion", ASKED | {"prompt": 3}, "prompt: found a number ('3'); expected a string or a list of turns"),
    (
        "prompt_completion",
        {"prompt": TURNS[:1], "completion": TURNS[:1]},
        "completion: found no assistant turn; expected at least one, it is what is learnt",
    ),
    # Text
    ("text", {"text": "  "}, "text: found no text; expected some"),
    ("text", {"text": ["a"]}, "text: found a list; expected a string"),
    (
        "text",
        {"text": "a", "images": ["a.png"]},
        "images: found a list; expected none beside 'text' (media belong in conversations)",
    ),
    ("text", {"text": "a <bos> b"}, "text: text contains '<bos>'; take it out"),
    # Preference pairs
    (
        "preference",
        without(PAIR, "rejected"),
        "rejected: found none (the row has 'prompt', 'chosen'); expected a string or a list of turns",
    ),
    ("preference", PAIR | {"rejected": "a"}, "rejected: found the same as in 'chosen'; expected another answer"),
    (
        "preference",
        without(PAIR, "prompt"),
        (
            "prompt: found none (the row has 'chosen', 'rejected'); expected one, or"
            " turns in 'chosen' and 'rejected' that begin with it"
        ),
    ),
    (
        "preference",
        {"chosen": TURNS, "rejected": [{"role": "user", "content": "x"}, TURNS[1]]},
        "chosen: found no first turn that 'rejected' has too; expected both to begin with the prompt",
    ),
    (
        "preference",
        PAIR | {"rejected": "b<end_of_turn>"},
        "prompt: rejected: conversation: message 1 (assistant) contains '<end_of_turn>'; take it out",
    ),
    (
        "preference",
        {"prompt": "a", "chosen": TURNS[:1], "rejected": "b"},
        "chosen: found a last turn by 'user'; expected the assistant's, it is the answer",
    ),
]
GOOD_ROWS = {
    "messages": GOOD,
    "sharegpt": TALK,
    "alpaca": TASK,
    "prompt_completion": ASKED,
    "text": {"text": "a text"},
    "preference": PAIR,
}
