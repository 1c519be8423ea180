# SPDX-License-Identifier: Apache-2.0
"""``matslice plan`` on the command line: figures, proposals, files, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.slicing.count import Layout, count_parameters
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import read_slices
from recipes.cli import main
from recipes.plan import PlanRecipe
from recipes.shape import ShapeConfig
from tests.tiny import TINY_TEXT, tiny_multimodal_config

Captured = pytest.CaptureFixture[str]
MAX_CPU_SECONDS = 2  # measured are 0.6


def planned(capsys: Captured, *words: str) -> dict[str, Any]:
    """What is told as JSON."""
    assert main(["plan", *words, "json=true"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Captured, *words: str) -> str:
    """The one line that a wrong command is answered with."""
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of which there is nothing but the config."""
    path = tmp_path / "tiny"
    path.mkdir()
    tiny_multimodal_config().write(path)
    return path


def test_a_slice_of_e4b_has_the_published_size(capsys: Captured) -> None:
    told = planned(capsys, "model=e4b", "slice=e2b")
    assert told["parameters"]["published"]["effective"] == 1_905_495_648
    assert told["parameters"]["used"]["total"] == 5_418_464_192
    assert told["context_tokens"] == 8192
    assert told["slice"] == {"name": "e2b", "skip_layers": [20, 21, 22, 23, 24], "ffn_widths": [8192]}
    assert {one["runtime"]: one["runs"] for one in told["runtimes"]}["llama.cpp"] is True


def test_a_person_is_told_in_words_and_tables(capsys: Captured) -> None:
    assert main(["plan", "model=e4b", "slice=e2b", "context=4096"]) == 0
    told = capsys.readouterr().out
    assert "e2b: layers 0-19, 25-34 of 35, 30 in all, at width 8192; text, vision, audio" in told
    for words in ("1,905,495,648", "1,884,521,568", "10.84 GB", "of 4,096 tokens", "GFLOP", "mistral.rs"):
        assert words in told
    assert "ffn_widths" not in told  # nothing is proposed


@pytest.mark.parametrize("key", ["model", "checkpoint"])
def test_a_directory_with_a_config_is_a_parent(capsys: Captured, directory: Path, key: str) -> None:
    told = planned(capsys, f"{key}={directory}")
    assert told["context_tokens"] == TINY_TEXT.max_position_embeddings  # it was made for no more
    assert told["modalities"] == ["text", "vision", "audio"]


def test_a_directory_here_is_a_parent_by_its_bare_name(
    capsys: Captured, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    directory.rename("mine")
    assert planned(capsys, "model=mine")["parameters"]["used"]["total"] < 1_000_000
    Path("mine").rename("e2b")  # also if a shape has that name
    assert planned(capsys, "model=e2b")["parameters"]["used"]["total"] < 1_000_000


def test_an_empty_directory_does_not_hide_a_shape(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e4b").mkdir()
    assert planned(capsys, "model=e4b")["parameters"]["used"]["total"] == 7_818_517_072


def test_a_budget_of_parameters_is_answered_with_a_file_for_conf(capsys: Captured) -> None:
    assert main(["plan", "model=e4b", "max_effective=3.0e9"]) == 0
    told = capsys.readouterr().out
    assert "2,973,858,288" in told
    pasted = SliceConfig(**yaml.safe_load(told[told.index("name: e2_97b") :]))
    e4b = ShapeConfig(**shape("e4b")).to_model_config()
    assert sum(SliceSpec.resolve(pasted, e4b.text).ffn_widths) == 8192 * 35 + 8192 * 15


def shape(name: str) -> dict[str, Any]:
    """The text fields of a file of conf/model."""
    fields = yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in fields.items() if key not in ("vision", "audio")}


def test_a_budget_of_bytes_counts_weights_towers_and_keys_and_values(capsys: Captured) -> None:
    words = ("model=e4b", "max_bytes=4e9", "context=8192", "dtype=int4")
    told = planned(capsys, *words)
    assert told["budget"]["bytes"] == told["weight_bytes"]["int4"] + told["cache_bytes"]["bf16"]
    assert 3.9e9 < told["budget"]["bytes"] <= 4e9
    text_only = planned(capsys, *words, "modalities=[text]")
    assert text_only["parameters"]["used"]["total"] == text_only["parameters"]["used"]["text"]
    assert len(text_only["slice"]["skip_layers"]) < len(told["slice"]["skip_layers"])
    small_cache = planned(capsys, *words, "cache_dtype=int8")
    assert small_cache["budget"]["bytes"] == small_cache["weight_bytes"]["int4"] + small_cache["cache_bytes"]["int8"]


def test_a_budget_proposes_part_of_the_slice_that_is_given(capsys: Captured) -> None:
    told = planned(capsys, "model=e4b", "slice=e2b", "max_effective=1.6e9")
    assert told["slice"]["skip_layers"] == [*range(20, 25), *range(30, 35)]
    assert told["slice"]["ffn_widths"] == [8192]


def test_what_is_saved_is_what_is_proposed(capsys: Captured, directory: Path, tmp_path: Path) -> None:
    yaml_file, csv_file = tmp_path / "new" / "mine.yaml", tmp_path / "mine.csv"
    told = planned(capsys, f"model={directory}", "max_bytes=400e3", f"save={yaml_file}", f"csv={csv_file}")
    saved = SliceConfig(**yaml.safe_load(yaml_file.read_text(encoding="utf-8")))
    assert saved == SliceConfig(**told["slice"] | {"name": "mine"})
    spec = SliceSpec.resolve(saved, TINY_TEXT)
    assert not spec.is_full(TINY_TEXT)
    (row,) = read_slices(csv_file).values()
    assert SliceSpec.resolve(row, TINY_TEXT).ffn_widths == spec.ffn_widths
    with csv_file.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file))[0] == "name"
    assert main(["plan", f"model={directory}", "--config-dir", str(place(yaml_file)), "slice=mine"]) == 0


def place(saved: Path) -> Path:
    """A directory of a user's own config files, with what was saved in it."""
    folder = saved.parent / "conf" / "slice"
    folder.mkdir(parents=True)
    saved.rename(folder / saved.name)
    return folder.parent


def test_the_command_in_a_saved_plan_cuts_what_was_planned(
    capsys: Captured, media_weights: Path, tmp_path: Path
) -> None:
    words = ["max_bytes=450e3", "modalities=[audio]", "skip_audio_layers=[1]"]
    saved = tmp_path / "my conf" / "slice" / "mine.yaml"
    told = planned(capsys, f"model={media_weights}", *words, f"save={saved}")
    (command,) = re.findall("^#   matslice (slice .*)$", saved.read_text(encoding="utf-8"), re.MULTILINE)
    output = tmp_path / "out"
    assert main([*shlex.split(command), f"output={output}"]) == 0
    config = ModelConfig.read(output)
    assert config.modalities == ("text", "audio")
    assert config.text.num_hidden_layers == 9 - len(told["slice"]["skip_layers"])
    used = count_parameters(model_shapes(config, Layout.used).items(), full(config), config.text)
    assert used == told["parameters"]["used"]["total"]
    assert f"# finds this as '{saved.parent.parent}'/slice/mine.yaml." in saved.read_text(encoding="utf-8")


def test_a_plan_that_is_not_saved_says_where_its_file_must_lie(capsys: Captured) -> None:
    words = ["model=e4b", "max_bytes=5e9", "dtype=int4", "modalities=[text]", "vocabulary_tokens=65536"]
    assert main(["plan", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    name = next(line for line in lines if line.startswith("name: ")).removeprefix("name: ")
    told = "modalities=[text] vocabulary.corpus=[FILE] vocabulary.max_tokens=65536"
    assert (
        f"#   matslice slice --config-dir DIR checkpoint=weights/parent slice={name} {told} output=weights/{name}"
        in lines
    )
    assert f"# finds this as DIR/slice/{name}.yaml, in a directory DIR of yours." in lines


def test_files_are_written_though_nobody_reads_what_is_said(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ["plan", "model=e4b", "slice=e2b", f"save={tmp_path / 'a.yaml'}", f"csv={tmp_path / 'a.csv'}"]
    done = subprocess.run([sys.executable, "-m", "recipes.cli", *words], stdout=writing, check=False)
    os.close(writing)
    assert done.returncode != 0  # it was not heard
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.yaml"]


def test_a_slice_that_is_nowhere_is_told_where_it_must_lie(capsys: Captured) -> None:
    told = "(a file of yours is found as DIR/slice/mine.yaml, given --config-dir DIR)"
    assert told in refused(capsys, "model=e4b", "slice=mine")


def full(config: ModelConfig) -> SubModel:
    """All of a model."""
    return SubModel(SliceSpec.full(config.text))


def test_a_runtime_gets_the_nearest_sub_model_that_it_runs(capsys: Captured) -> None:
    words = ("model=e4b", "max_effective=3.0e9")
    told = planned(capsys, *words, "runtime=llama.cpp")
    assert {one["runtime"]: one["runs"] for one in told["runtimes"]}["llama.cpp"] is True
    assert len(told["slice"]["ffn_widths"]) == 1
    assert told["slice"]["name"] == "e2_97b_llama_cpp"
    assert told["asked"] == planned(capsys, *words)["slice"]
    runs_already = planned(capsys, *words, "runtime=vllm")
    assert runs_already["slice"] == runs_already["asked"]
    assert main(["plan", *words, "runtime=llama.cpp"]) == 0
    assert "the nearest to e2_97b that the runtime runs" in capsys.readouterr().out


def test_other_axes_are_planned_too(capsys: Captured) -> None:
    whole, cut = (
        planned(capsys, "model=e4b", *words)
        for words in ((), ("vocabulary_tokens=65536", "skip_audio_layers=[10,11]"))
    )  # fmt: skip
    fewer_rows = (262_144 - 65_536) * (2048 + 35 * 256)
    assert whole["parameters"]["used"]["text"] - cut["parameters"]["used"]["text"] == fewer_rows
    assert whole["parameters"]["used"]["effective"] == cut["parameters"]["used"]["effective"]
    assert whole["flops_per_token"]["head"] - cut["flops_per_token"]["head"] == 2 * 2048 * (262_144 - 65_536)
    towers = [told["parameters"]["used"]["total"] - told["parameters"]["used"]["text"] for told in (whole, cut)]
    assert 0.1 < (towers[0] - towers[1]) / 681_348_640 < 2 / 12


def test_what_was_never_trained_is_said(capsys: Captured) -> None:
    told = planned(capsys, "model=e4b", "max_effective=3.0e9", "runtime=llama.cpp")
    assert any("20-24" in note and "trained" in note for note in told["notes"])
    (same,) = planned(capsys, "model=e4b", "max_effective=3.0e9")["notes"]
    assert "e2_98b_layer and e2_98b_block have the same effective size" in same
    assert planned(capsys, "model=e4b", "max_effective=1.91e9")["notes"] == []  # proposed is Google's E2B itself
    assert main(["plan", "model=e4b", "slice.ffn_widths=[4096]"]) == 0
    assert "note: width 4096" in capsys.readouterr().out


def test_tokens_that_cannot_be_counted_are_said_to_be_before_those_that_must_stay(
    capsys: Captured, directory: Path, media_weights: Path
) -> None:
    for parent in ("e4b", str(directory)):
        (note,) = planned(capsys, f"model={parent}", "vocabulary_tokens=20")["notes"]
        assert note.startswith("vocabulary_tokens=20 is before special and byte tokens")
    assert planned(capsys, f"model={media_weights}", "vocabulary_tokens=20")["notes"] == []


REFUSED: dict[str, tuple[list[str], str]] = {
    "no parent": ([], "the parent is one model or one checkpoint, but neither is given; say model=e2b|e4b|tiny"),
    "two parents": (["model=e4b", "checkpoint=x"], "but both are given"),
    "unknown shape": (["model=e5b"], "there is no conf/model/e5b.yaml; allowed are e2b, e4b, tiny; did you mean"),
    "no such directory": (["model=no/such/place"], "no directory 'no/such/place'"),
    "too few parameters": (
        ["model=e4b", "max_effective=1e9"],
        "the smallest keeps layers 0-19, each at width 8192, and has 1,278,719,808 effective parameters",
    ),
    "too few bytes": (["model=e4b", "max_bytes=4e9"], "has 8,367,033,664 bytes (8,283,147,584 of weights as bf16"),
    "negative budget": (["model=e4b", "max_effective=-1"], "max_effective is -1.0; it must be a positive number"),
    "endless budget": (["model=e4b", "max_bytes=inf"], "max_bytes is inf; it must be a positive number"),
    "budget in words": (["model=e4b", "max_bytes=4GB"], "max_bytes is '4GB'; it must be a number"),
    "context too long": (["model=e4b", "context=32769"], "context is 32769 tokens; it must be 1 to 32768"),
    "no context": (["model=e4b", "context=0"], "context is 0 tokens"),
    "unknown storage": (["model=e4b", "dtype=int3"], "dtype is 'int3'; allowed are fp32, bf16, int8, int4"),
    "unknown runtime": (["model=e4b", "runtime=onnx"], "runtime 'onnx' is not known; choose one of transformers"),
    "runtime that runs nothing": (
        ["model=e4b", "runtime=litert", "modalities=[text]"], "runtime LiteRT: it runs no sub-model of this parent",
    ),
    "runtime that needs a tower": (
        ["model=e4b", "slice=e2b", "runtime=ollama", "modalities=[text]"],
        "of it: has no tower for vision, one is always converted; keep it; or leave runtime out",
    ),
    "trimmed for a runtime that needs all": (
        ["model=e4b", "runtime=llama.cpp", "vocabulary_tokens=65536"], "runtime llama.cpp: it runs no such sub-model",
    ),
    "too few tokens": (["model=e4b", "vocabulary_tokens=2"], "vocabulary_tokens is 2; it must be 5 (those that"),
    "more tokens than there are": (["model=e4b", "vocabulary_tokens=300000"], " to 262144"),
    "no such layer of the audio tower": (["model=e4b", "skip_audio_layers=[12]"], "has layers 0 to 11"),
    "layers of no audio tower": (
        ["model=e4b", "skip_audio_layers=[1]", "modalities=[vision]"], "the sub-model has no audio tower",
    ),
    "slice of another parent": (["model=e4b", "slice=tiny_mix_wide"], "15 ffn_widths for 35 kept layers"),
    "producer skipped": (["model=e4b", "slice.skip_layers=[19]"], "layer 19 is skipped"),
    "no such tower": (["model=tiny", "model.audio=null", "modalities=[audio]"], "audio"),
    "file that is there": (["model=e4b", "save=pyproject.toml"], "save: 'pyproject.toml' is already there"),
    "directory as a file": (["model=e4b", "csv=conf"], "csv: 'conf' is a directory; give a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_is_refused_in_a_line(capsys: Captured, case: str) -> None:
    words, told = REFUSED[case]
    assert told in refused(capsys, *words)


def test_help_says_what_every_key_means(capsys: Captured) -> None:
    assert main(["plan", "--help"]) == 0
    told = capsys.readouterr().out
    keys = [known.name for known in dataclasses.fields(PlanRecipe) if known.name != "slice"]
    assert [key for key in keys if not re.search(rf"^{key}: \w.*\w", told, re.MULTILINE)] == []


def test_a_refused_plan_leaves_no_file(capsys: Captured, tmp_path: Path) -> None:
    refused(capsys, "model=e4b", "max_effective=1", f"save={tmp_path / 'a.yaml'}", f"csv={tmp_path / 'a.csv'}")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_waits_for_no_torch_and_takes_no_two_seconds() -> None:
    code = (
        "import sys; from recipes.cli import main;"
        " main(['plan', 'model=e4b', 'max_bytes=4e9', 'dtype=int4', 'runtime=vllm']); sys.exit('torch' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_CPU_SECONDS
