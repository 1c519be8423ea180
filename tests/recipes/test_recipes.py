# SPDX-License-Identifier: Apache-2.0
"""Every recipe does what it says, on a tiny model, from its command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.adapter.lora import load_adapter
from model.adapter.targets import DECODER
from model.checkpoint.load import load
from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save, save_tensors
from model.checkpoint.tensors import read_tensor
from model.inputs import Inputs
from model.tower_config import Modality
from recipes.cli import main
from tests.recipes.conftest import SHORT
from tests.tiny import tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config
from tests.trainer.parts import losses

ROOT = Path(__file__).parents[2]


def logits(directory: Path, *, adapter: Path | None = None) -> torch.Tensor:
    gemma = load(directory, dtype=torch.float32)
    asked = gemma if adapter is None else load_adapter(gemma, adapter)
    inputs: Inputs = tiny_inputs(tiny_config(vocab_size_per_layer_input=40, vocab_size=40))
    with torch.no_grad():
        return asked(inputs).logits


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_train_leaves_an_adapter_that_evaluate_can_use(
    train: Callable[..., int], weights: Path, chat: Path, tmp_path: Path
) -> None:
    assert train("optim.learning_rate=0.01", "trainer.max_steps=12", "adapter=all_linear") == 0
    words = ["evaluate", f"checkpoint={weights}", f"files=[{chat}]"]
    assert main([*words, f"output={tmp_path / 'before.jsonl'}"]) == 0
    assert main([*words, f"output={tmp_path / 'after.jsonl'}", f"adapter_path={tmp_path / 'run' / 'weights'}"]) == 0
    before, after = rows(tmp_path / "before.jsonl")[0], rows(tmp_path / "after.jsonl")[0]
    assert before["size"] == after["size"] == "full"
    assert isinstance(before["loss"], float)
    assert isinstance(after["loss"], float)
    assert after["loss"] < before["loss"]


def test_train_leaves_a_whole_model_with_its_tokenizer(train: Callable[..., int], chat: Path, tmp_path: Path) -> None:
    assert train("adapter=none") == 0
    trained = tmp_path / "run" / "weights"
    assert main(["evaluate", f"checkpoint={trained}", f"files=[{chat}]"]) == 0


def test_train_begins_from_nothing_in_a_shape_of_conf(weights: Path, chat: Path, tmp_path: Path) -> None:
    status = main([
        "train", "model=tiny", f"tokenizer={weights}", "adapter=none", "trainer=cpu", f"data.train=[{chat}]",
        f"trainer.output={tmp_path / 'run'}", "trainer.max_steps=1", "trainer.batch_size=1", "sizes=tiny",
        "elastic=sandwich", "schedule.warmup_steps=0", "modalities=[text]",
    ])  # fmt: skip
    assert status == 0
    assert Checkpoint.open(tmp_path / "run" / "weights").config.text.num_hidden_layers == 15


def test_a_resumed_run_repeats_the_losses(train: Callable[..., int], tmp_path: Path) -> None:
    whole, stopped = (f"trainer.output={tmp_path / name}" for name in ("whole", "stopped"))
    assert train(whole, "trainer.max_steps=4", "trainer.save_every=2") == 0
    assert train(stopped, "trainer.max_steps=4", "trainer.save_every=2") == 0
    for newest in (tmp_path / "stopped" / "checkpoints").glob("step_000004"):
        newest.rename(tmp_path / "lost")
    assert train(stopped, "trainer.max_steps=4", "trainer.save_every=2", "trainer.resume=true") == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4


def test_elastic_training_measures_every_size(train: Callable[..., int], chat: Path, tmp_path: Path) -> None:
    added = ["+slice@sizes.narrow=full", "sizes.narrow.name=narrow", "sizes.narrow.ffn_widths=[24]"]
    assert train(*added, "elastic=sandwich", f"data.validation=[{chat}]") == 0
    measured = [row["spec"] for row in rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "validation"]
    assert measured == ["full", "narrow"] * 2  # before and after


def test_slice_writes_what_its_parent_computes(weights: Path, tmp_path: Path) -> None:
    assert main(["slice", f"checkpoint={weights}", *SHORT, f"output={tmp_path / 'small'}", "check=true"]) == 0
    assert Checkpoint.open(tmp_path / "small").config.text.intermediate_size == (24,) * 6


def test_slice_cuts_the_adapter_alongside(weights: Path, adapter: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    words = ["slice", f"checkpoint={weights}", f"adapter_path={adapter}", *SHORT]
    assert main([*words, f"output={small}", "check=true"]) == 0
    assert main([*words, f"output={tmp_path / 'merged'}", "merge=true", "check=true"]) == 0
    # The two add the same update, one to the output and one to the weight: float32 sums in another order.
    torch.testing.assert_close(logits(small, adapter=small / "adapter"), logits(tmp_path / "merged"), rtol=0, atol=1e-3)


def test_a_bfloat16_slice_with_its_adapter_merged_passes_its_check(adapter: Path, tmp_path: Path) -> None:
    save(tiny_model().bfloat16(), tmp_path / "stored")
    words = ["slice", f"checkpoint={tmp_path / 'stored'}", f"adapter_path={adapter}", "merge=true", "check=true"]
    assert main([*words, *SHORT, f"output={tmp_path / 'small'}"]) == 0


@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_slice_that_fails_its_check_is_not_kept(
    merge: str, weights: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.slice_check.TOLERANCE", -1.0)
    words = ["slice", f"checkpoint={weights}", f"adapter_path={adapter}", f"merge={merge}", "check=true"]
    assert main([*words, *SHORT, f"output={tmp_path / 'small'}"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_evaluate_says_how_far_it_is_and_how_each_size_does(
    weights: Path, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"checkpoint={weights}", f"files=[{chat}]", "+slice@sizes.half=full", "sizes.half.name=half"]
    assert main([*words, "max_examples=3", "batch_size=2"]) == 0
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("2 of 3 conversations: loss of full ")
    assert last.startswith("3 of 3 conversations: loss of full ")
    assert ", half " in last


def test_merge_gives_the_model_that_the_adapter_made(weights: Path, adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", f"checkpoint={weights}", f"adapter_path={adapter}", f"output={merged}"]) == 0
    # As above: the update is added to the weight and no longer to the output.
    torch.testing.assert_close(logits(merged), logits(weights, adapter=adapter), rtol=0, atol=1e-3)
    assert (merged / "tokenizer.json").is_file()


def test_merging_and_slicing_carry_towers_and_a_stored_head_along(adapter: Path, tmp_path: Path) -> None:
    gemma = tiny_model(tiny_multimodal_config())
    tensors = {name: parameter.detach() for name, parameter in gemma.named_parameters()}
    carried = {name: tensor for name, tensor in tensors.items() if not name.startswith(DECODER)}
    carried[TIED_HEAD] = tensors[TOKEN_TABLE].clone()
    save_tensors((tensors | carried).items(), gemma.config, tmp_path / "whole")
    words = ["slice", f"checkpoint={tmp_path / 'whole'}", f"adapter_path={adapter}", "merge=true", "check=true"]
    assert main([*words, *SHORT, f"output={tmp_path / 'small'}"]) == 0
    merged = Checkpoint.open(tmp_path / "small")
    assert merged.config.modalities == tuple(Modality)
    assert (tmp_path / "small" / "slice.json").is_file()
    for name, tensor in carried.items():
        assert torch.equal(read_tensor(merged, name), tensor)


def test_generate_prints_the_answer_and_nothing_else(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", f"checkpoint={weights}", "prompt=say hello", "generation.max_new_tokens=5"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert first.endswith("\n")


def test_generate_reads_standard_input(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", f"checkpoint={weights}", "generation.max_new_tokens=5"]
    assert main([*words, "prompt=say hello"]) == 0
    written = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("say hello\n"))
    assert main(words) == 0
    assert capsys.readouterr().out == written


def test_generate_asks_a_sub_model_as_if_it_were_cut_out(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slice", f"checkpoint={weights}", *SHORT, f"output={tmp_path / 'small'}"]) == 0
    capsys.readouterr()
    words = ["generate", "prompt=say hello", "generation.max_new_tokens=9"]
    assert main([*words, f"checkpoint={weights}", *SHORT]) == 0
    inside = capsys.readouterr().out
    assert main([*words, f"checkpoint={tmp_path / 'small'}"]) == 0
    assert capsys.readouterr().out == inside


def test_a_recipe_runs_as_a_module_and_leaves_nothing_of_hydra_behind(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.slice", f"checkpoint={weights}", *SHORT, "output=small"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
