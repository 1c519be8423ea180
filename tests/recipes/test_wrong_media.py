# SPDX-License-Identifier: Apache-2.0
"""What a user gets to read for wrong images and sound, before anything is done: where, what, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.cli import main
from tests.daily import daily_shares
from tests.recipes.broken_media import FAULTS, INSIDE, MediaPlaces, picture, sound
from tests.trainer.parts import sound_bytes

Words = Callable[[MediaPlaces], list[str]]
MARK = "<image_soft_token>"


def asked(*more: str, text_only: bool = False) -> Words:
    """``matslice generate`` that would work, but for ``more``."""
    return lambda at: [
        "generate", f"checkpoint={at.text_weights if text_only else at.weights}", "generation.max_new_tokens=1",
        "prompt=who", *more,
    ]  # fmt: skip


def asked_about(name: str, content: bytes, *more: str, text_only: bool = False) -> Words:
    """``matslice generate`` about a file."""
    key = "image" if name.endswith(".png") else "audio"
    return lambda at: asked(f"{key}={at.file(name, content)}", *more, text_only=text_only)(at)


def trained(*more: str, text_only: bool = False) -> Words:
    """``matslice train`` that would work, but for ``more``."""
    return lambda at: [
        "train", f"checkpoint={at.text_weights if text_only else at.weights}", "trainer=cpu",
        f"trainer.output={at.output}", "trainer.max_steps=1", "trainer.batch_size=1", "schedule.warmup_steps=0", *more,
    ]  # fmt: skip


def row_about(at: MediaPlaces, name: str, content: bytes) -> Path:
    """A data file with one row about a file beside it."""
    at.file(name, content)
    kind = "image" if name.endswith(".png") else "audio"
    return at.row([{"type": kind, "path": name}, {"type": "text", "text": "who"}])


def trained_on(name: str, content: bytes, *more: str, text_only: bool = False) -> Words:
    """``matslice train`` on a row about a file."""
    return lambda at: trained(f"data.train=[{row_about(at, name, content)}]", *more, text_only=text_only)(at)


def measured_on(name: str, content: bytes) -> Words:
    """``matslice evaluate`` on a row about a file."""
    return lambda at: [
        "evaluate", f"checkpoint={at.weights}", f"files=[{row_about(at, name, content)}]", f"output={at.output}",
    ]  # fmt: skip


def sliced(*more: str, text_only: bool = False) -> Words:
    """``matslice slice`` that would work, but for ``more``."""
    return lambda at: [
        "slice", f"checkpoint={at.text_weights if text_only else at.weights}", "slice=full", f"output={at.output}",
        *more,
    ]  # fmt: skip


ARGUMENTS: dict[str, tuple[Words, str]] = {
    "no such image": (asked("image=nowhere.png"), "image: image 'nowhere.png': no such file (relative names start at"),
    "image on the web": (asked("image=https://a.b/c.png"), "is an address; download it and give the file"),
    "a folder": (lambda at: asked(f"audio={at.empty('sounds')}")(at), "is a directory; give a file"),
    "second of two": (
        lambda at: asked(f"image=[{at.file('a.png', picture())},{at.room / 'b.png'}]")(at), "b.png': no such file",
    ),
    "no name among others": (
        asked("image=[a.png,,b.png]"), "image is ['a.png', '', 'b.png']; it must be a file or a list of files, as in ",
    ),
    "a number": (asked("image=[3]"), "image: image '3': no such file"),
    "no name": (asked("audio="), "audio is ''; it must be a file or a list of files"),
    "nothing to ask": (asked("prompt="), "prompt is empty; give prompt='…', text on standard input, image=FILE or"),
    "sound as an image": (
        lambda at: asked(f"image={at.file('a.wav', sound())}")(at), "damaged, or no image of a kind that is read",
    ),
    "more placeholders than images": (
        asked_about("a.png", picture(), f"prompt={MARK} or {MARK}"),
        f"prompt: conversation: 1 image, but its text has 2 placeholders; each image needs its own {MARK}",
    ),
    "placeholder without an image": (asked(f"prompt=this {MARK}?"), "no images, but its text has 1 placeholder"),
    "delimiter in the prompt": (asked("prompt=a <end_of_image> b"), "contains '<end_of_image>'; take it out"),
    "what to do with long sound": (asked("long_audio=split"), "long_audio is 'split'; allowed are refuse, truncate"),
    "image for a text-only model": (
        asked_about("a.png", picture(), text_only=True),
        "a.png': the model has no vision tower; leave it out, or take a checkpoint that has one (modalities)",
    ),
    "sound for a model without its tower": (
        asked_about("a.wav", sound(), "modalities=[text,vision]"), "audio: recording ",
    ),
    "unknown modality": (asked("modalities=[smell]"), "modalities[0] is 'smell'; allowed are text, vision, audio"),
    "modality that is not there": (
        asked("modalities=[text,audio]", text_only=True),
        "modalities: audio asked for, but this model has text; leave out what it has no tower for",
    ),
    "too long with its image": (
        asked_about("a.png", picture(), "generation.max_new_tokens=490"), "the model has 512 positions",
    ),
    "unknown modality to slice": (sliced("modalities=[smell]"), "modalities[0] is 'smell'; allowed are text, vision"),
    "modality to slice that is not there": (
        sliced("modalities=[text,vision]", text_only=True), "modalities: vision asked for, but this model has text",
    ),
    "one modality": (sliced("modalities=text"), "modalities is a single value; it must be a list, as in modalities=["),
    "unknown modality to train": (
        lambda at: trained(f"data.train=[{at.chat}]", "modalities=[smell]")(at), "modalities[0] is 'smell'; allowed",
    ),
    "tower that is not there to adapt": (
        lambda at: trained(f"data.train=[{at.chat}]", "adapter=vision", text_only=True)(at),
        "adapter: target set 'vision' matches no module",
    ),
}  # fmt: skip

CHECKPOINTS: dict[str, tuple[Words, str]] = {
    "tower of the first release, asked": (
        lambda at: asked_about("a.png", picture(), f"checkpoint={at.of_the_first_release()}")(at),
        "the vision tower is of the older layout (timm 1.0.16, June 2025), whose weights Google replaced in July 2025",
    ),
    "tower of the first release, sliced": (
        lambda at: sliced(f"checkpoint={at.of_the_first_release()}")(at), "download the model's current weights again",
    ),
    "tower of the first release, trained": (
        lambda at: trained(f"checkpoint={at.of_the_first_release()}", f"data.train=[{at.chat}]")(at),
        "the vision tower is of the older layout",
    ),
    "no processor files, image": (
        lambda at: asked_about("a.png", picture(), f"checkpoint={at.without_processor()}")(at),
        "a.png': no preprocessor_config.json beside ",
    ),
    "no processor files, sound": (
        lambda at: asked_about("a.wav", sound(), f"checkpoint={at.without_processor()}")(at),
        "says how to prepare it; copy the one that came with the weights",
    ),
}  # fmt: skip

ROWS: dict[str, tuple[Words, str]] = {
    "more images than placeholders": (
        lambda at: trained(f"data.train=[{at.row('who', images=[str(at.file('a.png', picture()))])}]")(at),
        "rows.jsonl:1: messages: conversation: 1 image, but its text has no placeholders",
    ),
    "image in a row for a text-only model": (
        trained_on("a.png", picture(), text_only=True), "a.png': the model has no vision tower; leave it out",
    ),
    "sound in a row without its tower": (
        trained_on("a.wav", sound(), "modalities=[text,vision]"), "a.wav': the model has no audio tower; leave it out",
    ),
    "no such image in a row": (
        lambda at: trained(f"data.train=[{at.row([{'type': 'image', 'path': 'b.png'}])}]")(at), "b.png': no such file",
    ),
    "no reference": (
        lambda at: trained(f"data.train=[{at.row([{'type': 'image', 'path': 3}])}]")(at),
        "rows.jsonl:1: messages[0].content[0]: found a number ('3'); expected a path,",
    ),
}  # fmt: skip

WRONG = {
    **ARGUMENTS,
    **CHECKPOINTS,
    **ROWS,
    **{f"{what}, asked": (asked_about(name, make()), told) for what, (name, make, told) in (FAULTS | INSIDE).items()},
    **{f"{what}, trained": (trained_on(name, make()), told) for what, (name, make, told) in FAULTS.items()},
    **{f"{what}, measured": (measured_on(name, make()), told) for what, (name, make, told) in FAULTS.items()},
}


@pytest.fixture
def places(media_weights: Path, weights: Path, adapter: Path, chat: Path, tmp_path: Path) -> MediaPlaces:
    return MediaPlaces(media_weights, adapter, chat, tmp_path, weights)


@pytest.mark.parametrize("what", daily_shares(WRONG, one_in=2))
def test_wrong_media_are_answered_with_what_would_be_right(
    what: str, places: MediaPlaces, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places.room)
    command, told = WRONG[what]
    status = main(command(places))
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.startswith("error: ")
    assert status == 2
    assert shown.out == ""
    assert not places.output.exists()


@pytest.mark.parametrize(
    ("command", "key"), [(asked_about, "long_audio"), (measured_on, "long_audio"), (trained_on, "data.long_audio")]
)
def test_what_to_do_with_long_sound_is_said_by_its_key(
    command: Callable[..., Words], key: str, places: MediaPlaces, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("a.wav", sound_bytes(440, seconds=3.0))(places)) == 2
    assert f"say {key}=truncate (its beginning is used) or {key}=chunk (several clips)" in capsys.readouterr().err


def test_a_tokenizer_without_marks_of_media_will_do_for_text(
    places: MediaPlaces, capsys: pytest.CaptureFixture[str]
) -> None:
    words = trained("checkpoint=null", "model=tiny", f"tokenizer={places.text_weights}", f"data.train=[{places.chat}]")
    assert main([*words(places), "adapter=none"]) == 2
    assert "or leave the tower out, as in modalities=[text]" in capsys.readouterr().err
    assert main([*words(places), "adapter=none", "modalities=[text]"]) == 0


@pytest.mark.parametrize("what", FAULTS | INSIDE)
def test_the_argument_is_named(what: str, places: MediaPlaces, capsys: pytest.CaptureFixture[str]) -> None:
    name, make, _ = (FAULTS | INSIDE)[what]
    main(asked_about(name, make())(places))
    key, kind = ("image", "image") if name.endswith(".png") else ("audio", "recording")
    assert capsys.readouterr().err.startswith(f"error: {key}: {kind} '")


@pytest.mark.parametrize("what", FAULTS)
def test_the_row_is_named(what: str, places: MediaPlaces, capsys: pytest.CaptureFixture[str]) -> None:
    name, make, _ = FAULTS[what]
    main(trained_on(name, make())(places))
    assert f"{places.room / 'rows.jsonl'}:1: messages: " in capsys.readouterr().err


@pytest.mark.parametrize("what", INSIDE)
def test_what_only_decoding_shows_ends_a_run_with_the_name_of_its_row(
    what: str, places: MediaPlaces, capsys: pytest.CaptureFixture[str]
) -> None:
    name, make, told = INSIDE[what]
    assert main(trained_on(name, make())(places)) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert f"{places.room / 'rows.jsonl'}:1" in shown.err
    assert not (places.output / "weights").exists()


def test_sound_in_stereo_is_no_fault(places: MediaPlaces) -> None:
    assert main(asked_about("a.wav", sound_bytes(440, channels=2))(places)) == 0
