# SPDX-License-Identifier: Apache-2.0
"""Whatever rows meet in a batch: labels, placeholders, media and lengths belong together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.inputs import Audio, Images
from model.processor.chat import Message, Part, Role
from model.processor.media import Picture, Recording
from tests.trainer.parts import CHARACTERS, picture_bytes, rows, sound_bytes, spelling, tiny_media_processor
from trainer.data.batch import IGNORED
from trainer.data.collate import Collator
from trainer.data.config import LongRows
from trainer.data.example import Example
from trainer.data.loader import Loader
from trainer.data.supervise import ids_of_media, tokenize

PROCESSOR = tiny_media_processor()
COLLATOR = Collator(0, PROCESSOR)
PICTURES = [Picture(picture_bytes(shade, side=4 + shade)) for shade in range(3)]
RECORDINGS = [Recording(sound_bytes(300, seconds=0.05 + 0.4 * i, channels=1 + i % 2)) for i in range(4)]

texts = st.text(CHARACTERS, max_size=12)
parts = st.one_of(texts, st.sampled_from(PICTURES), st.sampled_from(RECORDINGS))
contents = st.one_of(texts, st.lists(parts, min_size=1, max_size=4).map(tuple))


conversations = st.lists(contents, min_size=2, max_size=6)


def conversation(turns: Sequence[str | tuple[Part, ...]]) -> Example:
    """One to three exchanges, media anywhere, the assistant's turns included."""
    roles = (Role.user, Role.assistant) * len(turns)
    messages = [Message(role, turn) for role, turn in zip(roles, turns[: len(turns) // 2 * 2], strict=False)]
    return Example(tuple(messages), "drawn:1")


@given(turns=st.lists(conversations, min_size=1, max_size=4), length=st.integers(40, 90))
def test_labels_placeholders_media_and_lengths_of_a_batch_agree(
    turns: list[list[str | tuple[Part, ...]]], length: int
) -> None:
    drawn = [conversation(each) for each in turns]
    vision, audio = PROCESSOR.config.vision, PROCESSOR.config.audio
    assert vision is not None
    assert audio is not None
    short = rows(spelling(1), PROCESSOR)  # so that some row is always left
    found = [*tokenize(drawn, PROCESSOR, max_length_tokens=400, long_rows=LongRows.skip).rows, *short]
    shortened = tokenize([*drawn, *spelling(1)], PROCESSOR, max_length_tokens=length, long_rows=LongRows.truncate)
    for chosen in (found, shortened.rows):
        batch = COLLATOR(chosen)
        ids, mask, labels = batch.inputs.ids, batch.inputs.mask, batch.labels
        assert ids.shape == mask.shape == labels.shape
        assert mask.sum(dim=1).tolist() == [len(row.ids) - 1 for row in chosen]
        assert (labels != IGNORED).sum(dim=1).tolist() == [int(row.supervised[1:].sum()) for row in chosen]
        assert batch.supervised_tokens > 0
        assert not (labels != IGNORED)[~mask].any()
        assert not torch.isin(labels, ids_of_media(PROCESSOR.config)).any()
        for tower, given_media, kind, name in (
            (vision, batch.inputs.images, Images, "pictures"), (audio, batch.inputs.audio, Audio, "recordings"),
        ):  # fmt: skip
            count = sum(len(getattr(row, name)) for row in chosen)
            assert (0 if given_media is None else len(given_media)) == count == len(getattr(batch, name))
            assert given_media is None or isinstance(given_media, kind)
            for token in (tower.tokens.begin_id, tower.tokens.end_id):
                assert int((ids == token).sum()) == count
            assert int((ids == tower.tokens.placeholder_id).sum()) == count * tower.tokens.per_item
    assert len(shortened.rows) + shortened.num_skipped == len(drawn) + 1


def test_media_stand_in_the_order_of_their_rows_and_places() -> None:
    one, two, three = PICTURES
    answer = Message(Role.assistant, "a")
    conversations = [(("x", two, one), "p:1"), (("no media",), "p:2"), ((three, "y"), "p:3")]
    given_rows = rows(
        [Example((Message(Role.user, content), answer), where) for content, where in conversations], PROCESSOR
    )
    batch = COLLATOR(given_rows)
    assert isinstance(batch.inputs.images, Images)
    assert PROCESSOR.images is not None
    expected = torch.stack([PROCESSOR.images(picture) for picture in (two, one, three)])
    assert torch.equal(batch.inputs.images.pixels, expected)
    assert batch.inputs.audio is None
    assert batch.pictures == (two, one, three)


def test_a_batch_is_the_same_however_often_and_in_whichever_order_it_is_asked_for() -> None:
    drawn = [Example((Message(Role.user, (picture, "x")), Message(Role.assistant, "a")), "") for picture in PICTURES]
    loader = Loader(rows(drawn, PROCESSOR), batch_size=2, seed=1, collator=COLLATOR)
    first = [loader.batch(position) for position in (0, 2, 4)]
    again = [loader.batch(position) for position in (4, 2, 0)][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.inputs.ids, other.inputs.ids)
        assert isinstance(one.inputs.images, Images)
        assert isinstance(other.inputs.images, Images)
        assert torch.equal(one.inputs.images.pixels, other.inputs.images.pixels)
