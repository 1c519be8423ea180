# SPDX-License-Identifier: Apache-2.0
"""What lm-evaluation-harness says about a model of ours is checked before weights are read; it need not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.adapter.lora import AdapterConfig, attach, load_adapter, merge, save_adapter
from model.errors import ConfigError, MatsliceError
from recipes import harness
from recipes.cli import main
from recipes.harness import HarnessArguments, open_model
from tests.tiny import TINY_TEXT, tiny_model
from tests.trainer.harness.parts import SHORT, TEXT, asked, harness_model, write_checkpoint
from trainer.harness import library

SAID = {"skip_layers": [3, 4, 5], "ffn_widths": [48, 16, 24, 16, 32, 48]}
PAIRS = asked(("The value", " is returned."), ("If", " not"))


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tiny_model(TEXT), tmp_path_factory.mktemp("weights") / "worded")


def test_a_sub_model_answers_as_that_part_of_the_model(worded: Path) -> None:
    opened = open_model({"checkpoint": str(worded), "batch_size": "2", "device": "cpu", "max_batch_size": 64, **SAID})
    assert opened.loglikelihood(PAIRS) == harness_model(tiny_model(TEXT), SHORT).loglikelihood(PAIRS)
    assert opened.get_model_info()["ffn_widths"] == SAID["ffn_widths"]
    assert (opened.max_length, opened.batch_size) == (TINY_TEXT.max_position_embeddings, 2)
    assert opened.asking.stop_ids == {1, 6}  # of generation_config.json


def test_a_sub_model_can_be_named(worded: Path, tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text("name: half\nffn_widths: [24]\n")
    opened = open_model({"checkpoint": str(worded), "spec": str(tmp_path / "half.yaml"), "max_length": 100})
    assert opened.get_model_info()["spec"] == "half"
    assert opened.max_length == 100
    assert open_model({"checkpoint": str(worded)}).get_model_info()["spec"] == "full"


def test_an_adapter_is_folded_in_unless_it_is_to_stay_beside_the_weights(worded: Path, tmp_path: Path) -> None:
    adapted = attach(tiny_model(TEXT), AdapterConfig(rank=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    save_adapter(adapted, tmp_path / "lora")
    said = {"checkpoint": str(worded), "adapter_path": str(tmp_path / "lora"), "device": "cpu", "batch_size": 3, **SAID}
    folded, beside = open_model(said), open_model({**said, "merge": False})
    told = [one.get_model_info()["merge"] for one in (folded, beside, open_model({"checkpoint": str(worded)}))]
    assert told == [True, False, False]
    found = folded.loglikelihood(PAIRS)
    assert found == harness_model(merge(load_adapter(tiny_model(TEXT), tmp_path / "lora")), SHORT).loglikelihood(PAIRS)
    assert [score for score, _ in beside.loglikelihood(PAIRS)] == pytest.approx([score for score, _ in found], rel=1e-4)
    assert found != harness_model(tiny_model(TEXT), SHORT).loglikelihood(PAIRS)


def test_one_number_is_a_list_of_one() -> None:
    assert HarnessArguments.of({"checkpoint": "x", "ffn_widths": 24, "skip_layers": (3, 4)}).slice.ffn_widths == [24]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"pretrained": "x"}, "model_args: there is no 'pretrained'; there are checkpoint, spec, row"),
        ({"checkpoint": None}, "model_args: checkpoint is missing"),
        ({"checkpoint": "gone"}, "checkpoint: no directory 'gone'"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; it must be a whole number, at least 1; there is no automatic"),
        ({"ffn_widths": "wide"}, "ffn_widths is 'wide'; it must be a list of whole numbers"),
        ({"spec": "e2b", "ffn_widths": [24]}, "spec and skip_layers or ffn_widths each say which sub-model"),
        ({"spec": "no_such"}, "slices: there is no 'no_such'"),
        ({"ffn_widths": [64]}, "64"),
        ({"row": "no such row"}, "no such row"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be fp32 or bf16"),
        ({"device": "tpu"}, "device is 'tpu'; it must be auto, cpu or cuda"),
        ({"max_length": 513}, "max_length is 513, but the model has 512 positions"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'; it must be true or false"),
        ({"merge": "no"}, "merge is 'no'; it must be true or false"),
        ({"adapter_path": "gone"}, "gone"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_opened_is_refused_before_weights_are_read(
    worded: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], message: str
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(harness, "load", read)
    with pytest.raises(MatsliceError, match=message):
        open_model({"checkpoint": str(worded), **said})


def test_several_processes_are_refused(worded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2; matslice is asked in one process"):
        open_model({"checkpoint": str(worded)})


def test_without_the_harness_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "LIBRARY", "lm_eval_that_is_not_there")
    assert main(["lm_eval", "--model", "matslice"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: lm_eval: lm-evaluation-harness is not installed; install it (pip install")


def test_an_older_harness_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", "json")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.9.1")
    with pytest.raises(
        ConfigError, match=r"lm-evaluation-harness 0\.4\.9\.1 is installed, 0\.4\.13 or later is needed"
    ):
        library.check_installed()


def test_the_list_of_recipes_tells_of_the_harness(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "matslice lm_eval" in capsys.readouterr().out
