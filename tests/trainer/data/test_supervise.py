# SPDX-License-Identifier: Apache-2.0
"""What the assistant wrote is learnt, and nothing else."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from model.errors import InputError
from model.processor.chat import Message, Role, render
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from tests.tiny import tiny_config
from tests.trainer.parts import CHARACTERS, SPECIAL, conversation, tiny_processor, tiny_tokenizer
from trainer.data.config import LongRows
from trainer.data.example import Example
from trainer.data.supervise import TokenRow, supervise, tokenize


def learnt(row: TokenRow, tokenizer: Tokenizer) -> str:
    """The supervised tokens as text, special ones included."""
    backend = tokenizers.Tokenizer.from_str(tokenizer._content.decode())
    return "".join(str(backend.id_to_token(int(token))) for token in row.ids[row.supervised])


def test_the_assistants_words_and_the_ends_of_its_turns_are_learnt() -> None:
    tokenizer = tiny_tokenizer()
    example = conversation("say a", "a!", "say bc", "bc")
    assert (
        learnt(supervise(render(example.messages), tokenizer, where=""), tokenizer) == "a!<end_of_turn>bc<end_of_turn>"
    )


def test_a_row_holds_the_whole_conversation() -> None:
    tokenizer, example = tiny_tokenizer(), conversation("say a", "a")
    row = supervise(render(example.messages), tokenizer, where="")
    assert row.ids.tolist() == tokenizer.encode(render(example.messages).text)


def test_a_token_that_reaches_into_the_prompt_is_not_learnt() -> None:
    pieces = [*SPECIAL, *CHARACTERS, "\na"]  # a newline of the prompt and the answer's first letter
    backend = tokenizers.Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("\n", "a")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    backend.add_special_tokens(SPECIAL)
    tokenizer = Tokenizer(backend.to_str().encode(), {})
    row = supervise(render(conversation("say", "ab").messages), tokenizer, where="")
    assert learnt(row, tokenizer) == "b<end_of_turn>"


def test_examples_and_rows_stay_in_step_when_long_ones_are_skipped() -> None:
    examples = [conversation("a", "b", where="x:1"), conversation("a" * 50, "b", where="x:2"), conversation("c", "d")]
    kept = tokenize(examples, tiny_processor(), max_length_tokens=30, long_rows=LongRows.skip)
    assert [row.where for row in kept.rows] == [example.where for example in kept.examples] == ["x:1", "here:1"]
    assert kept.num_skipped == 1


def test_a_long_row_is_refused_with_its_place_and_length() -> None:
    with pytest.raises(InputError, match=r"x:2: messages: found \d+ tokens; expected at most 30 .*long_rows=skip"):
        tokenize([conversation("a" * 50, "b", where="x:2")], tiny_processor(), max_length_tokens=30,
                 long_rows=LongRows.refuse)  # fmt: skip


def test_nothing_left_after_skipping_is_an_error() -> None:
    with pytest.raises(InputError, match=r"none of 1 rows is left, 1 of them being longer than 5 tokens"):
        tokenize([conversation("a", "b")], tiny_processor(), max_length_tokens=5, long_rows=LongRows.skip)


def test_turns_in_a_wrong_order_are_reported_with_their_place() -> None:
    twice = Example((Message(Role.user, "a"), Message(Role.user, "b"), Message(Role.assistant, "c")), "x:9")
    with pytest.raises(InputError, match=r"1 of 1 rows cannot be used.*\nx:9: messages: "):
        tokenize([twice], tiny_processor(), max_length_tokens=99, long_rows=LongRows.refuse)


def test_a_row_with_nothing_to_learn_is_refused() -> None:
    pieces = [*SPECIAL, *CHARACTERS]
    backend = tokenizers.Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    # Nothing is split: everything between two special tokens is one token, and reaches into the prompt.
    tokens = SPECIAL[:-1]
    backend.add_special_tokens(tokens)
    tokenizer = Tokenizer(backend.to_str().encode(), {})
    processor = Processor(tokenizer, None, None, tiny_config())
    with pytest.raises(InputError, match="found no token of the assistant's; expected at least one"):
        tokenize([conversation("a", "b")], processor, max_length_tokens=99, long_rows=LongRows.refuse)
