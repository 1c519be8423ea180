# SPDX-License-Identifier: Apache-2.0
"""A run is sliced and goes on: with the same rows, moments and counts, as a run of the smaller model."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.adapter.lora import base_of, load_adapter
from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.config import ModelConfig
from model.errors import SliceError
from model.slicing.adapter import slice_adapter
from model.slicing.module import slice_module
from model.slicing.optimizer import slice_optimizer
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from recipes.build import build_processor, build_rows
from recipes.cli import main
from recipes.run_identity import towers_of
from recipes.slice_run import slice_run
from tests.laws.drawn import assert_same_tensors
from tests.laws.drawn import weights as weights_of
from tests.recipes.conftest import SHORT
from tests.tiny import TINY_TEXT, tiny_model
from tests.trainer.parts import losses, write_jsonl
from trainer.data.collate import Collator
from trainer.data.config import LongRows
from trainer.data.loader import Loader
from trainer.locking import lock
from trainer.manifest import write_manifest
from trainer.optim import OptimConfig, build_optimizer
from trainer.schedule import Schedule, ScheduleConfig
from trainer.sinks import METRICS_FILE, read_records
from trainer.step import batch_loss_sum

TAKEN = "a run is going on in that directory"
SPEC = SliceSpec("short", (0, 1, 2, 6, 7, 8), (24,) * 6)
OPTIM = OptimConfig(learning_rate=0.01, weight_decay=0.1)
STOPPED = [
    "trainer.max_steps=4", "trainer.save_every=2", "optim.learning_rate=0.01", "optim.weight_decay=0.1",
    "data.packing=false",
]  # fmt: skip
SIZES = ["+slice@sizes.narrow=full", "sizes.narrow.name=narrow", "sizes.narrow.ffn_widths=[16]"]


def forget(run: Path, step: int) -> None:
    """Undo what a run did after an earlier checkpoint, as if it had been killed before it saved that."""
    shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")


@pytest.fixture
def stopped(train: Callable[..., int], tmp_path: Path) -> Callable[..., Path]:
    """A run of four steps that was killed after two."""

    def begin(*words: str) -> Path:
        assert train(*STOPPED, *words) == 0
        forget(tmp_path / "run", 4)
        return tmp_path / "run"

    return begin


@pytest.fixture
def go_on(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Train as before, but for what slicing has just told to say differently."""

    def run(*words: str) -> None:
        told = capsys.readouterr().out.splitlines()[-1].partition("by the command that began it, with ")[2]
        assert train(*STOPPED, *words, *shlex.split(told)) == 0

    return run


def sliced(run: Path, base: Path, *more: str) -> int:
    return main(["slice", f"run={run}", f"checkpoint={base}", *SHORT, f"output={run.parent / 'small'}", *more])


def read_small(run: Path, base: Path, *, adapter: bool, scratch: Path | None = None) -> Any:
    """Model or adapter of a run as it stands; cut by ``SPEC`` in memory if there is a place to cut an adapter in."""
    newest = (run / "weights").resolve()
    gemma = load(base if adapter else newest, dtype=torch.float32)
    if scratch is not None:
        gemma = slice_module(gemma, SubModel(SPEC))
    if not adapter:
        return gemma
    if scratch is not None:
        slice_adapter(newest, scratch, SubModel(SPEC), ModelConfig.read(base))
    return load_adapter(gemma, newest if scratch is None else scratch, trainable=True)


def continued_by_hand(run: Path, base: Path, chat: Path, *, adapter: bool) -> tuple[nn.Module, list[float]]:
    """Steps three and four: model and optimizer are sliced in memory, and stepped on the rows that are next."""
    (run / "weights").unlink()
    (run / "weights").symlink_to(run / "checkpoints" / "step_000002" / "weights")
    parent = read_small(run, base, adapter=adapter)
    model = read_small(run, base, adapter=adapter, scratch=run.parent / "cut").train()
    shapes = {name: tuple(own.shape) for name, own in parent.named_parameters() if own.requires_grad}
    state = torch.load(run / "checkpoints" / "step_000002" / "optimizer.pt", weights_only=True)
    optimizer = build_optimizer(model, OPTIM)
    optimizer.load_state_dict(slice_optimizer(state, shapes, SubModel(SPEC), TINY_TEXT))
    processor = build_processor(None, base, ModelConfig.read(base))
    rows = build_rows([str(chat)], processor, max_length_tokens=2048, long_rows=LongRows.refuse).rows
    loader = Loader(rows, batch_size=2, seed=0, collator=Collator(processor.tokenizer.pad_id, processor))
    schedule = Schedule(config=ScheduleConfig(warmup_steps=0), learning_rate=OPTIM.learning_rate, max_steps=4)
    found = []
    for step in (2, 3):
        batch = loader.batch(2 * step)
        loss = batch_loss_sum(model, batch, SliceSpec.full(base_of(model).config.text))
        (loss * (1 / batch.supervised_tokens)).backward()
        nn.utils.clip_grad_norm_([own for group in optimizer.param_groups for own in group["params"]], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item() / batch.supervised_tokens)
    return model, found


@pytest.mark.parametrize("kind", ["adapter=all_linear", "adapter=none"], ids=["adapter", "weights"])
def test_a_sliced_run_goes_on_as_if_model_and_optimizer_had_been_sliced_in_memory(
    kind: str, stopped: Callable[..., Path], go_on: Callable[..., None], weights: Path, chat: Path, tmp_path: Path
) -> None:
    run, small, adapter = stopped(kind), tmp_path / "small", kind != "adapter=none"
    before = losses(run)[:2]
    assert sliced(run, weights, "check=true") == 0
    go_on(kind)
    expected, expected_losses = continued_by_hand(run, weights, chat, adapter=adapter)
    found = read_small(small, small / "base", adapter=adapter)
    assert_same_tensors(weights_of(found), weights_of(expected))
    assert losses(small) == pytest.approx([*before, *expected_losses], rel=1e-12)
    begun = [record for record in read_records(small / METRICS_FILE) if record["kind"] == "start"]
    assert [record["step"] for record in begun] == [0, 2]
    assert json.loads((small / "checkpoints" / "step_000004" / "state.json").read_text())["position"] == 8


def test_the_base_of_a_sliced_run_is_the_slice_of_its_base(
    stopped: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    assert sliced(stopped(), weights) == 0
    assert main(["slice", f"checkpoint={weights}", *SHORT, f"output={tmp_path / 'alone'}"]) == 0
    assert (
        Checkpoint.open(tmp_path / "small" / "base").fingerprint() == Checkpoint.open(tmp_path / "alone").fingerprint()
    )


def test_what_is_unusual_about_a_sub_model_is_also_said_of_a_run(
    weights: Path, stopped: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped()
    assert sliced(run, weights, "slice.ffn_widths=[16]") == 0
    assert "note: width 16 of layers 0-2, 6-8 was never trained" in capsys.readouterr().err


def test_a_run_from_no_checkpoint_is_sliced_with_its_own_weights_for_a_base(
    train: Callable[..., int], go_on: Callable[..., None], weights: Path, tmp_path: Path
) -> None:
    run, shape = tmp_path / "run", ["modalities=[text]", "adapter=none"]
    begun = ["checkpoint=null", "model=tiny", f"tokenizer={weights}", *STOPPED, *shape]
    assert train(*begun) == 0
    forget(run, 4)
    slice_words = ["slice.skip_layers=[10]", "slice.ffn_widths=[32]"]
    assert sliced(run, run / "checkpoints" / "step_000002" / "weights", *slice_words) == 0
    go_on(*shape)
    assert len(losses(tmp_path / "small")) == 4
    assert all(map(math.isfinite, losses(tmp_path / "small")))


def test_sizes_that_lie_in_the_slice_are_trained_on_and_others_give_way_to_it(
    stopped: Callable[..., Path], go_on: Callable[..., None], weights: Path, tmp_path: Path
) -> None:
    inside = [*SIZES, "~sizes.full", "elastic=sample", "sizes.narrow.skip_layers=[3,4,5]"]
    more = ["+slice@sizes.narrower=full", "sizes.narrower.name=narrower", "sizes.narrower.ffn_widths=[8]",
            "sizes.narrower.skip_layers=[3,4,5]"]  # fmt: skip
    run = stopped(*inside, *more)
    assert sliced(run, weights) == 0
    go_on(*inside, *more)
    identity = json.loads((tmp_path / "small" / "run.json").read_text())["run"]
    assert [spec["name"] for spec in identity["specs"]] == ["narrow", "narrower"]
    assert all(spec["kept_layers"] == list(range(6)) for spec in identity["specs"])
    for directory in (run, tmp_path / "small"):
        shutil.rmtree(directory)
    whole = [*SIZES, "sizes.narrow.skip_layers=[3,4,5]", "elastic=sandwich"]  # narrow lies in the slice, full does not
    assert sliced(stopped(*whole), weights) == 0
    go_on(*whole)
    identity = json.loads((tmp_path / "small" / "run.json").read_text())["run"]
    assert [spec["name"] for spec in identity["specs"]] == ["full"]
    assert identity["elastic"] == {"policy": "off", "probabilities": {}}


@pytest.mark.parametrize(
    ("frozen", "kept", "left"),
    [
        ("audio,vision,embedders", ["modalities=[text,vision]"], ["embedders", "vision"]),
        ("vision", ["modalities=[text,audio]", "skip_audio_layers=[1]"], []),  # an untrained tower is frozen, or not
    ],
)
def test_towers_that_no_row_needs_can_be_left_out_of_a_run(
    frozen: str, kept: list[str], left: list[str], stopped: Callable[..., Path], go_on: Callable[..., None],
    media_weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    words = [f"checkpoint={media_weights}", "adapter=none", f"freeze=[{frozen}]"]
    assert sliced(stopped(*words), media_weights, *kept, "check=true") == 0
    go_on(*words)
    identity = json.loads((tmp_path / "small" / "run.json").read_text())["run"]
    assert [f"modalities=[{','.join(['text', *towers_of(identity)])}]"] == kept[:1]
    assert identity["freeze"] == left
    assert len(losses(tmp_path / "small")) == 4


def test_a_sliced_run_is_sliced_again(
    stopped: Callable[..., Path], go_on: Callable[..., None], weights: Path, tmp_path: Path
) -> None:
    assert sliced(stopped(), weights) == 0
    words = ["slice", f"run={tmp_path / 'small'}", f"checkpoint={tmp_path / 'small' / 'base'}", "slice=full"]
    assert main([*words, "slice.name=thin", "slice.ffn_widths=[8]", f"output={tmp_path / 'smaller'}"]) == 0
    go_on()
    assert Checkpoint.open(tmp_path / "smaller" / "base").config.text.intermediate_size == (8,) * 6
    assert len(losses(tmp_path / "smaller")) == 4


def test_a_run_keeps_its_tokens(weights: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(weights)
    sub = SubModel(SPEC, vocabulary=Vocabulary.of([5], source.config))
    with pytest.raises(SliceError, match="slice 'short': drops tokens, but the rows of a run"):
        slice_run(tmp_path / "run", source, sub, tmp_path / "small")


Break = Callable[[Path, Path], list[str]]


def without_checkpoints(run: Path, base: Path) -> list[str]:
    forget(run, 2)
    return []


def without_identity(run: Path, base: Path) -> list[str]:
    (run / "run.json").unlink()
    return []


def of_another_maker(run: Path, base: Path) -> list[str]:
    (run / "run.json").write_text('{"run": {"trainer": {}}, "told": {}}')
    return []


def at_its_end(run: Path, base: Path) -> list[str]:
    state = run / "checkpoints" / "step_000002" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 4}))
    write_manifest(state.parent)
    return []


def with_a_cut_optimizer(run: Path, base: Path) -> list[str]:
    path = run / "checkpoints" / "step_000002" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:2000])
    return []


def with_another_optimizer(run: Path, base: Path) -> list[str]:
    torch.save(torch.optim.AdamW(tiny_model().parameters()).state_dict(), run / "checkpoints/step_000002/optimizer.pt")
    write_manifest(run / "checkpoints/step_000002")
    return []


def without_anything_trained(run: Path, base: Path) -> list[str]:
    (run / "metrics.jsonl").unlink()  # else this says that rows need what is trained
    return ["modalities=[text]"]


def with_fewer_tokens(run: Path, base: Path) -> list[str]:
    (run.parent / "tokens.txt").write_text("a\n")
    return [f"vocabulary.tokens={run.parent / 'tokens.txt'}"]


def of_another_base(run: Path, base: Path) -> list[str]:
    save(tiny_model(ModelConfig.read(base), seed=5), run.parent / "other")
    return [f"checkpoint={run.parent / 'other'}"]


def of_another_config(run: Path, base: Path) -> list[str]:
    shutil.copytree(base, run.parent / "other")
    path = run.parent / "other" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["sliding_window"] = 4
    path.write_text(json.dumps(config))
    return [f"checkpoint={path.parent}"]


WRONG: dict[str, tuple[Break, str]] = {
    "no checkpoints": (without_checkpoints, "has no checkpoint, so there is nothing to slice; train as far as one"),
    "no run": (without_identity, "is not the directory of a run (no run.json)"),
    "another maker's run": (of_another_maker, "run.json: not written by matslice train"),
    "a finished run": (at_its_end, "is at its end (4 steps), so nothing would go on; slice what it trained"),
    "a damaged optimizer": (with_a_cut_optimizer, "step_000002: optimizer.pt has 2000 bytes, not "),
    "an optimizer of something else": (with_another_optimizer, "but the model trains"),
    "rows that need the tower": (
        lambda *_: ["modalities=[text]"],
        "leaves out vision, but 2 rows of the run have images; keep vision",
    ),
    "another base": (of_another_base, "other' (fingerprint "),
    "another config": (of_another_config, "config.json (model.sliding_window was 8, now 4); put that back"),
    "nothing trained": (without_anything_trained, "keeps no parameter that is trained"),
    "fewer tokens": (with_fewer_tokens, "both run and vocabulary are given, but the rows of a run"),
    "an adapter beside": (lambda run, _: [f"adapter_path={run}"], "both run and adapter_path are given"),
    "output in the run": (lambda run, _: [f"output={run / 'small'}"], "lies in it"),
}


@pytest.fixture(scope="module")
def seeing(media_weights: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped run that trains an adapter of the vision tower alone."""
    directory = tmp_path_factory.mktemp("seeing")
    turns = [{"role": "user", "content": "what? <image_soft_token>"}, {"role": "assistant", "content": "abc"}]
    rows = write_jsonl(directory / "seen.jsonl", [{"messages": turns, "images": [str(picture)]}] * 2)
    words = ["train", f"checkpoint={media_weights}", f"data.train=[{rows}]", "trainer=cpu", "adapter=vision",
             f"trainer.output={directory / 'run'}", "trainer.batch_size=1", "schedule.warmup_steps=0"]  # fmt: skip
    assert main([*words, *STOPPED]) == 0
    forget(directory / "run", 4)
    return directory / "run"


@pytest.mark.parametrize("name", WRONG)
def test_a_run_that_cannot_be_sliced_is_refused_before_anything_is_written(
    name: str, seeing: Path, media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    prepare, expected = WRONG[name]
    run = tmp_path / "run"
    shutil.copytree(seeing, run, symlinks=True)
    words = prepare(run, media_weights)
    monkeypatch.setattr("recipes.slice_run.whole_directory", None)  # nothing begins to be written
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert sliced(run, media_weights, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_going_on_is_not_sliced_and_one_that_is_sliced_does_not_go_on(
    stopped: Callable[..., Path], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = stopped()
    with lock(run, TAKEN):
        assert sliced(run, weights) == 2
    assert f"run: '{run}' is still going on; stop it" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    monkeypatch.setattr("recipes.slice_run.torch.save", lambda *_: lock(run, TAKEN))
    assert sliced(run, weights) == 2
    assert TAKEN in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_sliced_run_replaces_another_run_only_if_told_to(
    stopped: Callable[..., Path], go_on: Callable[..., None], weights: Path, tmp_path: Path
) -> None:
    run, small = stopped(), tmp_path / "small"
    assert sliced(run, weights) == 0
    assert sliced(run, weights) == 2
    (small / "metrics.jsonl").unlink()
    assert sliced(run, weights, "overwrite=true") == 0
    assert (small / "metrics.jsonl").is_file()
    with lock(small, TAKEN):
        assert sliced(run, weights, "overwrite=true") == 2
    (small / "run.json").unlink()
    assert sliced(run, weights, "overwrite=true") == 2
