# SPDX-License-Identifier: Apache-2.0
"""A training run says what it is made of, on the screen and in its directory, and is the same however launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.trainer.parts import tiny_tokenizer, write_jsonl
from tests.trainer.test_processes import ROOT, free_port
from trainer.metrics import Record
from trainer.sinks import METRICS_FILE, read_records


def conversation(text: str) -> dict[str, Any]:
    """The assistant repeats a word."""
    return {"messages": [{"role": "user", "content": f"say {text}"}, {"role": "assistant", "content": text}]}


def test_rows_left_out_for_their_length_are_counted(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [conversation(word) for word in ("abc", "you", "z" * 100, "no", "so")]
    file = write_jsonl(tmp_path / "chat.jsonl", rows)
    words = [f"data.train=[{file}]", f"data.validation=[{file}]", "data.max_length_tokens=60"]
    assert train(*words) != 0
    assert train(*words, "data.long_rows=skip", "data.max_validation_examples=2") == 0
    begun, *others = read_records(tmp_path / "run" / METRICS_FILE)
    assert begun["kind"] == "start"
    assert begun["train_rows"] == 4
    assert begun["train_rows_skipped"] == begun["validation_rows_skipped"] == 1
    assert begun["validation_rows"] == others[-1]["examples"] == 2
    assert begun["train_packs"] == 2  # of two rows each, in steps of two packs
    assert 0.5 < begun["train_packs_filled"] < 1
    assert begun["steps_per_epoch"] == 1
    assert begun["attention"] == "documents"
    assert 0 < begun["trainable_parameters"] < begun["total_parameters"]
    assert begun["specs"] == ["full"]
    told = capsys.readouterr().err
    assert "step 0: 4 rows (1 too long), validation 2 (1 too long); 2 packs, " in told
    assert "warning" not in told


def test_a_step_that_takes_the_same_rows_several_times_is_told(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.gradient_accumulation=3", "trainer.max_steps=1") == 0  # 12 short rows are a pack
    told = capsys.readouterr().err
    assert "warning: a step takes 6 packs (of 12 rows), but there are 1, so it has all of them 6.0 times" in told
    assert "lower trainer.batch_size or trainer.gradient_accumulation, or set data.packing=false" in told


def test_the_directory_of_a_run_says_how_it_was_made(train: Callable[..., int], tmp_path: Path) -> None:
    assert train("trainer.seed=7") == 0
    path = tmp_path / "run" / "config.yaml"
    assert OmegaConf.load(path).trainer.seed == 7
    command, versions, *_ = path.read_text(encoding="utf-8").splitlines()
    assert command.startswith("# ")
    assert "torch" in versions
    assert (tmp_path / "run" / "weights").resolve().is_dir()


def test_another_run_names_the_data_files(
    train: Callable[..., int], tmp_path: Path, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    other = write_jsonl(tmp_path / "other.jsonl", [conversation("you")])
    assert train(f"data.train=[{other}]", "trainer.resume=true") != 0
    told = capsys.readouterr().err
    assert f"({chat})" in told
    assert f"({other})" in told


def demo_base(output: Path, launcher: Sequence[str], *, batch_size: int) -> list[Record]:
    """Two steps of the demo's base on made-up conversations, as a command; the training records."""
    words = ["abc", "hello", "you", "z", "some more words", "no", "so", "well then", "ok"]
    data = output.parent / "data"
    if not data.exists():
        data.mkdir()
        tiny_tokenizer().write(data / "tokenizer")
        write_jsonl(data / "train.jsonl", [conversation(word) for word in words])
    subprocess.run(
        [sys.executable, *launcher, "-m", "recipes.train", "experiment=demo_base", "modalities=[text]",
         "trainer.max_steps=2", "schedule.warmup_steps=0", "trainer.log_every=1", f"trainer.batch_size={batch_size}",
         f"trainer.output={output}", f"tokenizer={data / 'tokenizer'}", f"data.train=[{data / 'train.jsonl'}]",
         f"data.validation=[{data / 'train.jsonl'}]"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=280,
    )  # fmt: skip
    return [record for record in read_records(output / METRICS_FILE) if record["kind"] != "start"]


@pytest.mark.slow
def test_two_processes_of_the_recipe_have_the_losses_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--main_process_port", str(free_port())]  # fmt: skip
    one = demo_base(tmp_path / "one", [], batch_size=4)
    two = demo_base(tmp_path / "two", launcher, batch_size=2)
    assert [record["kind"] for record in one] == [record["kind"] for record in two]
    difference = max(abs(alone["loss"] - together["loss"]) for alone, together in zip(one, two, strict=True))
    print(json.dumps({"largest difference of losses": difference, "losses": [record["loss"] for record in one]}))
    assert difference <= 1e-5  # float32 sums in another order
    for alone, together in zip(one, two, strict=True):
        if alone["kind"] == "train":
            assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-5)
