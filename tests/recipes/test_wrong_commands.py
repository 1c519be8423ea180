# SPDX-License-Identifier: Apache-2.0
"""What a user gets to read for a wrong command, config, checkpoint or data file: one line, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.cli import main
from tests.daily import daily_shares
from tests.recipes.broken import ASSISTANT, USER, Places, turns

Words = Callable[[Places], list[str]]
DEEP = "model.layers.3.mlp.up_proj.weight"  # as a text-only file spells it; errors use the published name
PUBLISHED = "model.language_model.layers.3.mlp.up_proj.weight"


def words(*fixed: str) -> Words:
    """A command that needs nothing on disk."""
    return lambda _: list(fixed)


def sliced(*more: str) -> Words:
    """``matslice slice`` that would work, but for ``more``."""
    return lambda at: ["slice", f"checkpoint={at.weights}", "slice=full", f"output={at.output}", *more]


def trained(*more: str) -> Words:
    """``matslice train`` that would work, but for ``more``."""
    return lambda at: [
        "train", f"checkpoint={at.weights}", f"data.train=[{at.chat}]", "trainer=cpu", f"trainer.output={at.output}",
        "trainer.max_steps=1", "trainer.batch_size=1", "schedule.warmup_steps=0", *more,
    ]  # fmt: skip


def from_weights(broken: Callable[[Places], Path]) -> Words:
    """``matslice slice`` of a checkpoint that is not as it should be."""
    return lambda at: ["slice", f"checkpoint={broken(at)}", "slice=full", f"output={at.output}"]


def from_data(broken: Callable[[Places], Path], *more: str) -> Words:
    """``matslice train`` on a file that is not as it should be."""
    return lambda at: trained(f"data.train=[{broken(at)}]", *more)(at)


def asked(*more: str) -> Words:
    """``matslice generate`` that would work, but for ``more``."""
    return lambda at: ["generate", f"checkpoint={at.weights}", "generation.max_new_tokens=1", *more]


def measured(*more: str) -> Words:
    """``matslice evaluate`` that would work, but for ``more``."""
    return lambda at: ["evaluate", f"checkpoint={at.weights}", f"files=[{at.chat}]", *more]


COMMANDS: dict[str, tuple[Words, str]] = {
    "a value for what has values of its own": (
        trained("trainer.early_stopping=3"),
        "trainer.early_stopping is 3; it has values of its own, as in trainer.early_stopping.patience=…",
    ),
    "unknown recipe": (words("tarin"), "there is no recipe 'tarin'; there are train, estimate, plan, slice"),
    "recipe of nearly that name": (words("generat"), "did you mean 'generate'?"),
    "misspelt key": (sliced("ouput=x"), "ouput: there is no such key; allowed are checkpoint, output, slice"),
    "misspelt key, guess": (sliced("ouput=x"), "did you mean 'output'?"),
    "misspelt key in a group": (
        sliced("slice.skip_layer=[1]"),
        "'slice' has name, skip_layers, ffn_widths, csv, row; did you mean 'skip_layers'?",
    ),
    "misspelt key in a dictionary of a group": (
        trained("sizes.full.ffn_width=[1]"),
        "sizes.full.ffn_width: there is no such key; 'sizes.full' has name, skip_layers, ffn_widths",
    ),
    "misspelt entry of a dictionary": (
        trained("sizes.ful.ffn_widths=[1]"), "sizes.ful: there is no such key; 'sizes' has full; did you mean 'full'?",
    ),
    "group of another recipe": (sliced("optim=adamw"), "optim: there is no such key; allowed are checkpoint"),
    "adapter for adapter_path": (
        lambda at: ["merge", f"checkpoint={at.weights}", f"adapter={at.adapter}", f"output={at.output}"],
        "did you mean 'adapter_path'?",
    ),
    "added key": (sliced("+foo=1"), "foo: there is no such key; allowed are checkpoint, output, slice"),
    "added key in a group": (trained("+trainer.maxsteps=5"), "trainer.maxsteps: there is no such key; 'trainer' has"),
    "forced key in a group": (trained("++optim.lr=5"), "optim.lr: there is no such key; 'optim' has learning_rate"),
    "added key in a dictionary": (trained("+sizes.full.width=5"), "sizes.full.width: there is no such key"),
    "no group": (trained("optim=null"), "optim=null: choose a file, or leave it out; allowed are adafactor, adamw, "),
    "no adapter": (trained("adapter=null"), "did you mean adapter=none?"),
    "no sizes": (trained("sizes=null"), "allowed are e4b, full, tiny"),
    "value of no adapter": (
        trained("adapter=none", "adapter.rank=3"), "no adapter is chosen that has a rank; choose adapter=all_linear|",
    ),
    "value of no shape": (trained("model.vocab_size=100"), "choose model=e2b|e4b|tiny"),
    "unknown slice": (
        sliced("slice=e2c"), "slice=e2c: there is no conf/slice/e2c.yaml; allowed are custom, e1_96b_layer",
    ),
    "unknown experiment": (trained("experiment=none"), "allowed are "),
    "a new size as a dictionary": (trained("+sizes.x={name: x}"), "+slice@sizes.x=full sizes.x.name=x"),
    "text for a number": (trained("trainer.max_steps=many"), "trainer.max_steps is 'many'; it must be a whole number"),
    "text for a share": (trained("optim.learning_rate=fast"), "optim.learning_rate is 'fast'; it must be a number"),
    "text for yes or no": (sliced("check=perhaps"), "check is 'perhaps'; it must be true or false"),
    "number for a list": (sliced("slice.ffn_widths=24"), "slice.ffn_widths is a single value; it must be a list"),
    "text in a list": (sliced("slice.ffn_widths=[wide]"), "slice.ffn_widths[0] is 'wide'; it must be a whole number"),
    "list for a text": (sliced("slice.name=[a]"), "slice.name is a list; it must be a text"),
    "no value at all": (sliced("slice.skip_layers=["), "'slice.skip_layers=[' is not understood"),
    "fp16": (trained("trainer.precision=fp16"), "trainer.precision is 'fp16'; allowed are fp32, bf16"),
    "unknown adapter target": (
        trained("adapter.targets=[attn]"), "adapter.targets[0] is 'attn'; allowed are attention, ffn, all_linear",
    ),
    "no adapter target": (trained("adapter.targets=[]"), "adapter: no targets; choose some of attention, ffn"),
    "unknown policy": (trained("elastic.policy=sandwhich"), "did you mean 'sandwich'?"),
    "what must be given": (
        words("train"), "train: must be given: data.train=… trainer.output=…",
    ),
    "which slice": (words("slice", "checkpoint=x", "output=y"), "slice: must be given: slice=e1_96b_layer|"),
    "a row that is not there": (
        words("slice", "checkpoint=x", "output=y", "slice.row=Main modell"), "did you mean 'Main model'?",
    ),
    "a table that is not there": (
        words("slice", "checkpoint=x", "output=y", "slice.csv=a b(1).csv", "slice.row=x"), "a b(1).csv: the table of",
    ),
    "a row and widths": (sliced("slice.row='Main model'", "slice.ffn_widths=[8]"), "leave out ffn_widths, or row"),
    "neither weights nor shape": (trained("checkpoint=null"), "neither checkpoint nor model is given"),
    "shape without tokenizer": (trained("checkpoint=null", "model=tiny"), "give tokenizer=DIRECTORY"),
    "weights of another shape": (trained("model=tiny"), "hidden_size is 32, not "),
    "negative steps": (trained("trainer.max_steps=-1"), "trainer.max_steps is -1; it must be at least 1"),
    "warm-up longer than the run": (trained("schedule.warmup_steps=5"), "but the run has 1 steps (trainer.max_steps)"),
    "bf16 without adapter": (trained("adapter=none", "trainer.precision=bf16"), "set trainer.precision=fp32"),
    "elastic with no weight": (
        trained("elastic=sample", "+elastic.probabilities.big=1"), "give each of them a weight, or none",
    ),
    "run that is there": (
        lambda at: trained(f"trainer.output={at.room / 'run'}")(at), "go on with it by 'matslice train resume=",
    ),
    "target that is there": (lambda at: sliced(f"output={at.full()}")(at), "already there; choose another name"),
    "merge without adapter": (sliced("merge=true"), "merge=true needs an adapter to merge; give adapter_path="),
    "a layer that others read": (
        sliced("slice.skip_layers=[2]"), "layer 2 is skipped, but layer 5 (full_attention) reads its keys and values",
    ),
    "a layer that is not there": (sliced("slice.skip_layers=[9]"), "[9], but the parent has layers 0 to 8"),
    "wider than the parent": (sliced("slice.ffn_widths=[64]"), "layer 0 asks for width 64; its parent has 1 to 48"),
    "too few widths": (sliced("slice.ffn_widths=[24,24]"), "2 ffn_widths for 9 kept layers; give one per kept layer"),
    "slice of a larger model": (sliced("slice=e2b"), "skip_layers has [20, 21, 22, 23, 24], but the parent has layers"),
    "empty prompt": (asked("prompt= "), "prompt is empty; give prompt='…', text on standard input"),
    "negative temperature": (asked("prompt=hi", "generation.temperature=-1"), "temperature is -1"),
    "text past the positions": (asked("prompt=hi", "generation.max_new_tokens=512"), "the model has 512 positions"),
}  # fmt: skip

OUTPUTS: dict[str, tuple[Words, str]] = {
    "no name for a run": (trained("trainer.output="), "trainer.output is empty, or the working directory"),
    "no name for a slice": (sliced("output="), "output is empty, or the working directory"),
    "run in a file": (lambda at: trained(f"trainer.output={at.chat}")(at), "is a file; give a directory"),
    "run below a file": (lambda at: trained(f"trainer.output={at.chat}/a/b")(at), "being a file; choose another place"),
    "slice in a file": (lambda at: sliced(f"output={at.chat}")(at), "already there; choose another name"),
    "slice below a file": (lambda at: sliced(f"output={at.chat}/a")(at), "being a file; choose another place"),
    "merge below a file": (
        lambda at: [
            "merge", f"checkpoint={at.weights}", f"adapter_path={at.adapter}", f"output={at.chat}/a",
        ],
        "being a file; choose another place",
    ),
    "rows into a directory": (lambda at: measured(f"output={at.empty('rows')}")(at), "is a directory; give a file"),
    "rows over others": (lambda at: measured(f"output={at.chat}")(at), "already there; choose another name"),
    "rows below a file": (lambda at: measured(f"output={at.chat}/a")(at), "being a file; choose another place"),
    "where nobody can write": (sliced("output=/proc/nothing/here"), "/proc: 0.00 GB are to be written, but"),
}  # fmt: skip

CHECKPOINTS: dict[str, tuple[Words, str]] = {
    "no such directory": (sliced("checkpoint=nowhere"), "checkpoint: no directory 'nowhere'"),
    "neither here nor on the hub": (
        sliced("checkpoint=google/gemma-nowhere"), "and the hub gave no model of that name",
    ),
    "a file": (from_weights(lambda at: at.weights / "config.json"), "checkpoint: no directory"),
    "empty directory": (from_weights(lambda at: at.empty("none")), "no config.json there"),
    "an adapter": (from_weights(lambda at: at.adapter), "is an adapter, not a model; give its base model here"),
    "another model": (from_weights(lambda at: at.config(model_type="gemma3_text")), "model_type is 'gemma3_text'"),
    "no weights": (from_weights(lambda at: at.without("model.safetensors")), "no model.safetensors or"),
    "cut short": (from_weights(Places.cut_short), "cut short or not a safetensors file"),
    "missing tensor": (from_weights(lambda at: at.tensors(lambda t: t.pop(DEEP))), f"1 missing ('{PUBLISHED}')"),
    "extra tensor": (
        from_weights(lambda at: at.tensors(lambda t: t.update({"model.new": t[DEEP].clone()}))),
        "1 extra ('model.new')",
    ),
    "misshapen tensor": (
        from_weights(lambda at: at.tensors(lambda t: t.update({DEEP: t[DEEP][:-1].clone()}))),
        f"1 misshapen ('{PUBLISHED}' has shape (47, 32) instead of (48, 32))",
    ),
    "adapter that is not there": (
        sliced("adapter_path=nowhere"), "nowhere: no adapter_config.json there; give the directory of a LoRA adapter",
    ),
    "adapter of another model": (
        lambda at: ["generate", f"checkpoint={at.weights}", "prompt=hi", f"adapter_path={at.adapter_of_another()}"],
        "does not fit this model",
    ),
    "no tokenizer": (
        lambda at: ["generate", f"checkpoint={at.without('tokenizer.json')}", "prompt=hi"], "no tokenizer.json there",
    ),
}  # fmt: skip

DATA: dict[str, tuple[Words, str]] = {
    "no such file": (trained("data.train=[nowhere.jsonl]"), "data: no file 'nowhere.jsonl'"),
    "no file at all": (trained("data.train=[]"), "data.train is empty"),
    "empty file": (from_data(lambda at: at.data()), "has no rows"),
    "not JSON": (from_data(lambda at: at.data(turns(USER, ASSISTANT), '{"messages": [')), "jsonl:2: found no JSON"),
    "no known format": (from_data(lambda at: at.data({"texts": ""})), "rows of no known format"),
    "roles out of order": (
        from_data(lambda at: at.data(turns(USER, USER, ASSISTANT))), "is by 'user' where 'assistant' should speak",
    ),
    "nothing to learn": (
        from_data(lambda at: at.data(turns(USER))), "messages: found no assistant turn; expected at least one",
    ),
    "too long a row": (
        from_data(lambda at: at.data(turns(USER, ASSISTANT)), "data.max_length_tokens=4"),
        "expected at most 4 (data.max_length_tokens; data.long_rows=skip leaves such rows out,",
    ),
    "too long a row to be measured": (
        measured("max_length_tokens=4"), "expected at most 4 (a larger max_length_tokens measures such rows too",
    ),
    "nothing to measure on": (measured("files=[]"), "files is empty; name at least one JSON Lines file"),
    "no examples": (measured("max_examples=0"), "max_examples is 0; it must be at least 1"),
    "batches of none": (measured("batch_size=-2"), "batch_size is -2; it must be at least 1"),
    "rows of one token": (measured("max_length_tokens=1"), "max_length_tokens is 1; it must be at least 2"),
    "held-out file that is not there": (
        lambda at: ["evaluate", f"checkpoint={at.weights}", "files=[nowhere.jsonl]"], "data: no file 'nowhere.jsonl'",
    ),
}  # fmt: skip

WRONG = {**COMMANDS, **OUTPUTS, **CHECKPOINTS, **DATA}


@pytest.fixture
def places(weights: Path, adapter: Path, chat: Path, tmp_path: Path) -> Places:
    (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    return Places(weights, adapter, chat, tmp_path)


@pytest.mark.parametrize("what", daily_shares(WRONG, one_in=2))
def test_a_wrong_command_is_answered_with_what_would_be_right(
    what: str, places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places.room)
    command, told = WRONG[what]
    status = main(command(places))
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.startswith("error: ")
    assert status == 2
    assert shown.out == ""
    assert not places.output.exists() or [path.name for path in places.output.iterdir()] == ["precious.txt"]


def test_an_error_has_no_traceback(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    main(sliced("slice.ffn_widths=[64]")(places))
    assert len(capsys.readouterr().err.splitlines()) == 1
