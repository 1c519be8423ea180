# SPDX-License-Identifier: Apache-2.0
"""``matslice generate`` with images and sound, from its command line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.errors import InputError
from model.processor.chat import Message, Role
from model.processor.media import Picture, Recording
from recipes.cli import main
from recipes.generate import prepare, user_message
from tests.recipes.conftest import SHORT
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor

Ask = Callable[..., str]


@pytest.fixture
def ask(media_weights: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """What ``matslice generate`` answers."""

    def answer(*more: str, checkpoint: Path = media_weights) -> str:
        assert main(["generate", f"checkpoint={checkpoint}", "generation.max_new_tokens=12", *more]) == 0
        return capsys.readouterr().out

    return answer


class Terminal(io.StringIO):
    """A terminal at which nobody types."""

    def isatty(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:  # noqa: ARG002 - as of every file
        raise AssertionError("waits for someone to type")


def test_the_answer_depends_on_image_and_sound(ask: Ask, picture: Path, tone: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(picture_bytes(90))
    both = ask("prompt=who", f"image={picture}", f"audio={tone}")
    assert both == ask("prompt=who", f"image={picture}", f"audio=[{tone}]")
    answers = {both, ask("prompt=who"), ask("prompt=who", f"image={picture}"), ask("prompt=who", f"audio={tone}")}
    assert len(answers | {ask("prompt=who", f"image={other}", f"audio={tone}")}) == 5


def test_several_images_keep_their_order(ask: Ask, tmp_path: Path) -> None:
    for shade in (1, 90):
        (tmp_path / f"{shade}.png").write_bytes(picture_bytes(shade))
    first, second = tmp_path / "1.png", tmp_path / "90.png"
    assert ask("prompt=who", f"image=[{first},{second}]") != ask("prompt=who", f"image=[{second},{first}]")


def test_media_may_be_the_whole_prompt(ask: Ask, picture: Path, tone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    seen, heard = ask(f"image={picture}"), ask(f"audio={tone}")
    assert seen != heard
    assert seen == ask(f"image={picture}", "prompt=")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert seen == ask(f"image={picture}")


def test_a_text_is_piped_to_images(ask: Ask, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("who is it?\n"))
    assert ask(f"image={picture}") == ask(f"image={picture}", "prompt=who is it?")


def piped(content: bytes, *, errors: str = "strict") -> io.TextIOWrapper:
    """Standard input."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors=errors)


def test_closed_standard_input_says_nothing(
    ask: Ask, media_weights: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = ask(f"image={picture}", "prompt=")
    monkeypatch.setattr(sys, "stdin", None)  # what Python has where a shell says <&-
    assert ask(f"image={picture}") == seen
    assert main(["generate", f"checkpoint={media_weights}"]) == 2
    assert capsys.readouterr().err.startswith("error: prompt is empty; give prompt='…'")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_is_piped_must_be_text(
    errors: str, media_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"a\xff\xfe", errors=errors))
    assert main(["generate", f"checkpoint={media_weights}"]) == 2
    assert capsys.readouterr().err.startswith("error: prompt: standard input is no text in UTF-8 (")


def test_long_sound_is_cut_if_asked_to(ask: Ask, tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    long.write_bytes(sound_bytes(300, seconds=3.0))  # the tiny tower's runs have room for two seconds
    assert ask(f"audio={long}", "prompt=a", "long_audio=truncate") != ask(
        f"audio={long}", "prompt=a", "long_audio=chunk"
    )


def test_a_sub_model_sees_and_hears_as_if_it_were_cut_out(
    ask: Ask, media_weights: Path, picture: Path, tone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slice", f"checkpoint={media_weights}", *SHORT, f"output={tmp_path / 'small'}"]) == 0
    capsys.readouterr()
    words = ["prompt=who", f"image={picture}", f"audio={tone}"]
    assert ask(*words, *SHORT) == ask(*words, checkpoint=tmp_path / "small") != ask(*words)


def test_text_goes_without_the_towers(ask: Ask) -> None:
    assert ask("prompt=who", "modalities=[text]") == ask("prompt=who")


def test_media_come_before_the_text_or_where_it_says() -> None:
    processor = tiny_media_processor()
    picture, tone = Picture(picture_bytes(1)), Recording(sound_bytes(300))
    before = user_message(processor, "who", [picture], [tone])
    assert before == (Message(Role.user, (picture, tone, "who")),)
    inside = user_message(processor, "a<audio_soft_token>b", [picture], [tone])
    assert inside == (Message(Role.user, (picture, "a", tone, "b")),)
    assert user_message(processor, "who", [], []) == (Message(Role.user, "who"),)


def test_one_placeholder_does_not_do_for_two_images() -> None:
    pictures = [Picture(picture_bytes(shade)) for shade in (1, 2)]
    with pytest.raises(InputError, match="prompt: conversation: 2 images, but its text has 1 placeholder"):
        user_message(tiny_media_processor(), "a <image_soft_token> b", pictures, [])


def test_inputs_are_those_of_the_processor_alone() -> None:
    processor = tiny_media_processor()
    picture, tone = Picture(picture_bytes(1)), Recording(sound_bytes(300))
    messages = [Message(Role.system, "be kind"), Message(Role.user, ("a", tone, "b", picture, "c"))]
    found, expected = prepare(processor, messages), processor.inputs([messages], add_generation_prompt=True)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.images is not None
    assert found.audio is not None
    assert len(found.images) == len(found.audio) == 1
