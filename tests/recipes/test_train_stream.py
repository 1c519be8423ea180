# SPDX-License-Identifier: Apache-2.0
"""``matslice train data.streaming=true``: rows are read while training, and a run goes on inside a stream."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.cli import main
from tests.trainer.parts import losses, write_jsonl
from trainer.sinks import METRICS_FILE, read_records

WORDS = ("abc", "you", "no", "so", "yes", "ab", "ba", "say", "hello", "z")
ROWS = [{"prompt": f"say {word}", "completion": word} for word in WORDS]
STREAM = ("data.streaming=true", "data.stream_block_rows=4", "data.max_length_tokens=60", "schedule=constant")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", ROWS)


def checkpoints(run: Path, *, keep: int) -> None:
    """Leave a run as it was after so many steps."""
    for path in sorted((run / "checkpoints").iterdir()):
        if int(path.name.removeprefix("step_")) > keep:
            shutil.rmtree(path)
    (run / "weights").unlink()
    (run / "weights").symlink_to(f"checkpoints/step_{keep:06d}/weights")


def test_a_streamed_run_goes_on_from_where_it_was(
    train: Callable[..., int], tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"data.train=[{lines}]", *STREAM, "data.held_out=2", "data.validation=[]", "trainer.batch_size=1")
    words = (*words, "trainer.max_steps=6", "trainer.save_every=1", "trainer.keep_checkpoints=9")
    assert train(*words) == 0
    told = capsys.readouterr().err
    assert (
        "data: the first 4 rows of a stream were checked; of the others, one that cannot be used ends the run" in told
    )
    assert "the first 4 rows (0 too long), validation 2 (0 too long); others are read while training;" in told
    begun = next(read_records(tmp_path / "run" / METRICS_FILE))
    assert (begun["train_rows"], begun["validation_rows"], begun["steps_per_epoch"]) == (4, 2, None)
    epochs = [record["epoch"] for record in read_records(tmp_path / "run" / METRICS_FILE) if record["kind"] == "train"]
    assert epochs[0] == 0
    assert epochs[-1] >= 1
    shutil.copytree(tmp_path / "run", tmp_path / "whole", symlinks=True)
    checkpoints(tmp_path / "run", keep=3)
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    one, other = ((tmp_path / name / "weights" / "adapter_model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_a_bad_row_deep_in_a_stream_ends_the_run_which_may_go_on_without_it(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"prompt": "x"}, "{", *ROWS])
    words = (f"data.train=[{path}]", *STREAM, "data.packing=false", "data.validation=[]", "trainer.save_every=1")
    assert train(*words, "trainer.max_steps=8") == 2
    told = capsys.readouterr().err
    assert "data: 2 of 6 rows cannot be used; leave them out with data.on_bad_row=skip" in told
    assert f"\n{path}:11: completion: found none" in told
    assert f"\n{path}:12: found no JSON" in told
    run = tmp_path / "run"
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["step_000003", "step_000004"]
    assert main(["train", f"resume={run}", "data.on_bad_row=skip"]) == 0
    assert "data: block 3 of the stream has 4 rows, and leaves out 2 that cannot be used" in capsys.readouterr().err
    assert train(*words, "trainer.max_steps=8", "data.on_bad_row=skip", f"trainer.output={tmp_path / 'skipping'}") == 0
    assert losses(run) == losses(tmp_path / "skipping")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.epochs=2", "trainer.epochs is 2.0, but with data.streaming=true it is not known how many rows"),
        ("data.held_out=0.2", "data.held_out is 0.2, but with data.streaming=true it is not known how many rows"),
        ("data.held_out=10", "data.held_out is 10, but 'data.train' has not more rows than are held out of it"),
        ("data.token_cache=cache", "data.token_cache is set, but it keeps rows that are all known before training"),
        ("data.soft_token_cache=cache", "data.soft_token_cache is set, but it keeps"),
        ("data.stream_block_rows=0", "data.stream_block_rows is 0; it must be at least 1"),
    ],
)
def test_what_needs_all_rows_is_refused(
    train: Callable[..., int], tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    assert train(f"data.train=[{lines}]", *STREAM, "data.validation=[]", word) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stream_of_other_rows_is_not_gone_on_with(
    train: Callable[..., int], tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"data.train=[{lines}]", *STREAM, "data.validation=[]") == 0
    capsys.readouterr()
    run, content = tmp_path / "run", lines.read_text()
    lines.write_text(content + json.dumps(ROWS[0]) + "\n")
    assert main(["train", f"resume={run}"]) == 2
    assert "data.train: was " in capsys.readouterr().err
    lines.write_text(content)
    assert main(["train", f"resume={run}", "trainer.keep_checkpoints=1"]) == 0
    capsys.readouterr()
    assert main(["train", f"resume={run}", "data.streaming=false"]) == 2
    assert "data.streaming: was true, now false; a run that goes on cannot change it" in capsys.readouterr().err.lower()


def test_a_preview_of_a_stream_says_that_it_has_not_read_all(
    weights: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_jsonl(tmp_path / "b.jsonl", [*ROWS[:3], "{", "{"])  # the second of them is not read
    words = ["data", "preview", f"data.train=[{lines},{other}]", f"checkpoint={weights}", *STREAM[:-1]]
    assert main([*words, "data.held_out=2"]) == 0
    told = capsys.readouterr().out
    assert "the first 4 rows of each source were read (data.streaming), the 2 that are held out (data.held_out)" in told
    assert "8 rows" in told
    assert "1 row cannot be used" in told
    assert "of an epoch" not in told
    assert main([*words, "json=true", "rows=0"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert (report["all_read"], report["rows"], report["rows_trained_on"]) == (False, 8, 7)


@pytest.mark.slow
def test_rows_with_images_may_come_later_in_a_stream(
    train: Callable[..., int], media_weights: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {"prompt": "what? <image_soft_token>", "completion": "abc", "images": [str(picture)]}
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS[:4], shown, *ROWS[4:7]])
    words = (f"checkpoint={media_weights}", f"data.train=[{path}]", *STREAM, "data.validation=[]", "adapter=vision")
    assert train(*words, "trainer.max_steps=4", "data.packing=false", "trainer.save_every=1") == 0
    assert "none of the first rows of data.train" in capsys.readouterr().err
    found = losses(tmp_path / "run")
    checkpoints(tmp_path / "run", keep=3)
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert losses(tmp_path / "run") == found
