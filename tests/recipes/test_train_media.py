# SPDX-License-Identifier: Apache-2.0
"""Training and measuring on images and sound, as commands: what is trained, what is refused, what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.load import load
from model.gemma3n import Gemma3n
from model.processor.processor import Processor
from recipes.cli import main
from tests.daily import daily
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, write_jsonl
from trainer.metrics import Record
from trainer.sinks import METRICS_FILE, read_records

ANSWERS = ("abc", "hello", "you", "z")
IMAGE, AUDIO = {"type": "image"}, {"type": "audio"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and sound beside ``mixed.jsonl``, whose rows refer to them in every way there is."""
    directory = tmp_path_factory.mktemp("data")
    (directory / "media").mkdir()
    for i in range(4):
        (directory / f"media/{i}.png").write_bytes(picture_bytes(i))
        (directory / f"media/{i}.wav").write_bytes(sound_bytes(200 + 50 * i, seconds=0.2 + 0.1 * i))
    rows = [
        row("no media", ANSWERS[0]),
        row([IMAGE, {"type": "text", "text": "what"}], ANSWERS[1], images=["media/0.png"]),
        row("<image_soft_token> or <image_soft_token>", ANSWERS[2], images=["media/1.png", "media/2.png"]),
        row([{"type": "audio", "path": "media/0.wav"}], ANSWERS[3]),
        row("<audio_soft_token> and <image_soft_token>", ANSWERS[0], images="media/3.png", audio="media/1.wav"),
    ]
    write_jsonl(directory / "mixed.jsonl", rows)
    write_jsonl(directory / "text.jsonl", [row(f"say {answer}", answer) for answer in ANSWERS])
    return directory


def row(content: Any, answer: str, **fields: Any) -> dict[str, Any]:
    """One conversation of a question and an answer."""
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **fields}


@pytest.fixture
def train(media_weights: Path, folder: Path, tmp_path: Path) -> Callable[..., int]:
    """``matslice train`` for two steps of two micro-batches into ``tmp_path / "run"``; gives the exit status."""
    words = [
        "train", f"checkpoint={media_weights}", f"data.train=[{folder / 'mixed.jsonl'}]", "trainer=cpu",
        f"trainer.output={tmp_path / 'run'}", "trainer.max_steps=2", "trainer.batch_size=3", "trainer.log_every=1",
        "trainer.gradient_accumulation=2", "schedule.warmup_steps=0",
    ]  # fmt: skip
    return lambda *more: main([*words, *more])


def records(run: Path) -> list[Record]:
    """What a run told."""
    return list(read_records(run / METRICS_FILE))


def changed(before: Path, after: Path) -> set[str]:
    """The parts of a model, as ``model.PART``, in which any weight differs."""
    old, new = (dict(load(directory, dtype=torch.float32).named_parameters()) for directory in (before, after))
    return {name.split(".")[1] for name in old if not torch.equal(old[name], new[name])}


def test_training_every_weight_moves_towers_embedders_and_text(
    train: Callable[..., int], media_weights: Path, tmp_path: Path
) -> None:
    assert train("adapter=none") == 0
    found = changed(media_weights, tmp_path / "run" / "weights")
    assert found == {"language_model", "vision_tower", "audio_tower", "embed_vision", "embed_audio"}


def test_frozen_parts_stay_as_they_were(train: Callable[..., int], media_weights: Path, tmp_path: Path) -> None:
    assert train("adapter=none", "freeze=[vision,audio,text]") == 0
    assert changed(media_weights, tmp_path / "run" / "weights") == {"embed_vision", "embed_audio"}


def test_trained_weights_are_written_with_the_files_of_the_processor(train: Callable[..., int], tmp_path: Path) -> None:
    assert train("adapter=none", "freeze=[vision,audio,embedders]") == 0
    model = load(tmp_path / "run" / "weights", dtype=torch.float32)
    found = Processor.read(tmp_path / "run" / "weights", model.config)
    ours = tiny_media_processor()
    assert found.images == ours.images
    assert found.audio == ours.audio
    assert isinstance(model, Gemma3n)


def test_the_start_record_counts_rows_with_media_and_what_is_trained(
    train: Callable[..., int], folder: Path, tmp_path: Path
) -> None:
    assert train("adapter=none", "freeze=[audio]", f"data.validation=[{folder / 'mixed.jsonl'}]") == 0
    begun, *others = records(tmp_path / "run")
    assert (begun["train_rows"], begun["train_rows_with_images"], begun["train_rows_with_audio"]) == (5, 3, 2)
    assert begun["trainable_parameters/audio"] == 0
    parts = ("text", "vision", "audio", "embedders")
    assert sum(begun[f"trainable_parameters/{part}"] for part in parts) == begun["trainable_parameters"]
    assert all(begun[f"trainable_parameters/{part}"] > 0 for part in ("text", "vision", "embedders"))
    assert others[-1]["kind"] == "validation"
    assert others[-1]["examples"] == 5


def test_a_model_is_measured_on_images_and_sound(
    media_weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    words = [f"checkpoint={media_weights}", f"files=[{folder / 'mixed.jsonl'}]", f"output={output}", "device=cpu"]
    assert main(["evaluate", *words, "batch_size=2"]) == 0
    (measured,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert measured["examples"] == 5
    assert "full" in capsys.readouterr().out


def test_an_adapter_beside_frozen_towers_in_bfloat16_learns_the_same_from_kept_soft_tokens(
    train: Callable[..., int], tmp_path: Path
) -> None:
    told = []
    for name in ("first", "second"):
        words = [f"trainer.output={tmp_path / name}", f"data.soft_token_cache={tmp_path / 'cache'}"]
        assert train("adapter=multimodal", "trainer.precision=bf16", *words) == 0
        told.append([record["loss"] for record in records(tmp_path / name) if record["kind"] == "train"])
    assert told[0] == told[1]
    assert len(list((tmp_path / "cache").rglob("*.soft_tokens"))) == 6  # the media of all rows, each once


def test_without_its_towers_a_checkpoint_is_trained_on_text_and_saved_as_such(
    train: Callable[..., int], folder: Path, tmp_path: Path
) -> None:
    assert train("adapter=none", "modalities=[text]", f"data.train=[{folder / 'text.jsonl'}]") == 0
    assert load(tmp_path / "run" / "weights", dtype=torch.float32).config.modalities == ("text",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modalities=[text]"], r"mixed\.jsonl:2: .*no vision tower.*(?s:.*)mixed\.jsonl:4: .*no audio tower"),
        (["modalities=[text,vision]"], r"2 of 5 rows cannot be used(?s:.*)mixed\.jsonl:4: .*no audio tower"),
        (["adapter=vision", "data.soft_token_cache=kept"], "soft_token_cache is set, but a tower is trained"),
        (["adapter=none", "data.soft_token_cache=kept", "freeze=[vision]"], r"trained \('model\.audio_tower"),
        (["adapter=none", "freeze=[text,vision,audio,embedders]"], "every part of the model is frozen"),
        (["adapter=text", "freeze=[vision]"], "freeze: an adapter's base is frozen anyway"),
        (["adapter=none", "freeze=[video]"], "freeze.*video"),
        (["adapter=vision", "modalities=[text,audio]"], "vision"),
        (
            ["adapter=vision", "data.train=[{folder}/text.jsonl]"],
            r"adapter\.targets=\[vision.*\] has what takes in images to be trained, but no row of data\.train \(.*text",
        ),
        (
            ["adapter=none", "freeze=[text]", "data.train=[{folder}/text.jsonl]"],
            r"freeze=\[text\] leaves what takes in images.*what takes in sound.*Nothing is learnt",
        ),
        (["adapter=text", "data.soft_token_cache={folder}/text.jsonl"], r"data\.soft_token_cache: '.*is no directory"),
        (["data.workers=-1"], r"data\.workers is -1; it must be 0 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_weights_are_read(
    train: Callable[..., int],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert train(*(word.replace("{folder}", str(folder)) for word in words)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_towers_that_no_row_teaches_are_named_and_the_rest_is_trained(
    train: Callable[..., int], media_weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("adapter=none", "freeze=[embedders]", f"data.train=[{folder / 'text.jsonl'}]") == 0
    told = capsys.readouterr().err
    assert "warning: freeze=[embedders] leaves what takes in images to be trained, but no row of data.train" in told
    assert "warning: freeze=[embedders] leaves what takes in sound to be trained" in told
    assert changed(media_weights, tmp_path / "run" / "weights") == {"language_model"}
    assert train("adapter=none", f"trainer.output={tmp_path / 'mixed'}") == 0
    assert "warning: freeze" not in capsys.readouterr().err


def inside_out(content: bytes) -> bytes:
    """A PNG file with its middle set to zero: its header and its end are as they were."""
    middle = len(content) // 2
    return content[:middle] + bytes(20) + content[middle + 20 :]


@pytest.mark.parametrize("content", [b"no image", inside_out(picture_bytes(1, side=60))], ids=["no image", "inside"])
def test_a_damaged_image_is_named_with_its_row_before_weights_are_read(
    train: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    good = row("<image_soft_token>", "a", images=[str(folder / "media/0.png")])
    bad = row("<image_soft_token>", "a", images=["bad.png"])
    file = write_jsonl(tmp_path / "bad.jsonl", [good, bad])
    for words in ([f"data.train=[{file}]"], [f"data.validation=[{file}]"]):
        assert train(*words) == 2
        told = capsys.readouterr().err
        assert " rows cannot be used" in told
        assert "bad.jsonl:2: messages: image" in told
        assert not (tmp_path / "run").exists()


def test_damage_that_was_not_looked_for_is_named_by_the_step_that_meets_it(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(inside_out(picture_bytes(1, side=60)))
    file = write_jsonl(tmp_path / "bad.jsonl", [row("<image_soft_token>", "a", images=["bad.png"])])
    assert train(f"data.train=[{file}]", "data.check_media=head") == 2
    assert re.search(r"bad\.jsonl:1: image '.*bad\.png': damaged", capsys.readouterr().err)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(("how", "clips", "cut"), daily([("truncate", 2, 1), ("chunk", 4, 0)], ("chunk", 4, 0)))
def test_what_became_of_long_sound_is_counted(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, clips: int, cut: int
) -> None:
    (tmp_path / "long.wav").write_bytes(sound_bytes(300, seconds=4.0))
    (tmp_path / "short.wav").write_bytes(sound_bytes(300, seconds=0.3))
    rows = [row("<audio_soft_token> what", "a", audio=f"{name}.wav") for name in ("long", "short")]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    words = [f"data.train=[{file}]", f"data.validation=[{file}]", "data.max_validation_examples=1"]
    assert train(*words) == 2
    remedy = f"data.long_audio={how}"
    assert remedy in capsys.readouterr().err
    assert train(*words, remedy) == 0
    begun, *_ = records(tmp_path / "run")
    names = ("recordings", "recordings_truncated", "clips")
    assert [begun[f"train_{name}"] for name in names] == [2, cut, clips]
    assert [begun[f"validation_{name}"] for name in names] == [1, cut, clips - 1]


def test_a_run_is_not_resumed_on_other_media(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    file = write_jsonl(tmp_path / "one.jsonl", [row("<image_soft_token>", "a", images=["a.png"])])
    assert train(f"data.train=[{file}]", "trainer.max_steps=1") == 0
    (tmp_path / "a.png").write_bytes(picture_bytes(2))
    assert train(f"data.train=[{file}]", "trainer.max_steps=1", "trainer.resume=true") == 2
    assert "data.media: was" in capsys.readouterr().err


def test_sound_that_is_too_long_is_cut_into_clips_where_that_is_asked_for(
    media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.wav").write_bytes(sound_bytes(300, seconds=4.0))
    file = write_jsonl(tmp_path / "long.jsonl", [row("<audio_soft_token> what", "a", audio="long.wav")])
    words = ["evaluate", f"checkpoint={media_weights}", f"files=[{file}]", "device=cpu"]
    assert main(words) == 2
    assert "long_audio=chunk" in capsys.readouterr().err
    for how, clips in (("truncate", 1), ("chunk", 3)):
        kept = tmp_path / how
        assert main([*words, f"long_audio={how}", f"soft_token_cache={kept}"]) == 0
        assert len(list(kept.rglob("*.soft_tokens"))) == clips


def test_an_adapter_on_every_part_resumes_bit_for_bit(train: Callable[..., int], tmp_path: Path) -> None:
    told = {}
    words = ["adapter=multimodal", "adapter.targets=[text,vision,audio,embedders]", "trainer.save_every=1"]
    for name in ("whole", "stopped"):
        assert train(*words, f"trainer.output={tmp_path / name}") == 0
        if name == "stopped":
            (tmp_path / name / "checkpoints" / "step_000002").rename(tmp_path / "lost")
            assert train(*words, f"trainer.output={tmp_path / name}", "trainer.resume=true") == 0
        told[name] = [record["loss"] for record in records(tmp_path / name) if record["kind"] == "train"]
    assert told["stopped"] == told["whole"]
    assert len(told["whole"]) == 2


def test_a_trained_adapter_on_the_towers_is_measured_with_them(
    train: Callable[..., int], media_weights: Path, folder: Path, tmp_path: Path
) -> None:
    losses = []
    assert train("adapter=vision", "optim.learning_rate=1e-1") == 0
    for more in ([], [f"adapter_path={tmp_path / 'run' / 'weights'}"]):
        output = tmp_path / f"{len(losses)}.jsonl"
        words = [f"checkpoint={media_weights}", f"files=[{folder / 'mixed.jsonl'}]", f"output={output}", "device=cpu"]
        # The same directory for both: what the tower made without the adapter is not taken for what it makes with it.
        assert main(["evaluate", *words, f"soft_token_cache={tmp_path / 'cache'}", *more]) == 0
        losses.append(json.loads(output.read_text(encoding="utf-8"))["loss"])
    assert losses[0] != losses[1]
