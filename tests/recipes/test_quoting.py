# SPDX-License-Identifier: Apache-2.0
"""Words of a command line arrive to the letter: prompts, places of any name, rows of tables."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipes.cli import RECIPES, main, schema_of
from recipes.evaluate import EvaluateRecipe
from recipes.plan import PlanRecipe
from recipes.quoting import FILES, places, quote_free_text
from recipes.schema import kinds_of
from recipes.slice import SliceRecipe
from recipes.train import TrainRecipe
from recipes.verify import VerifyRecipe


@given(text=st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_prompt_arrives_to_the_letter(text: str) -> None:
    override = OverridesParser.create().parse_override(quote_free_text(f"prompt={text}"))
    value = OmegaConf.create({"prompt": override.value()})["prompt"]
    assert value == text


@pytest.mark.parametrize("text", ["a, b", "${x}", '\\"', "\\", "\\${x}", "'", "a=b", "[1", "null?", "# no", "x\\\\"])
def test_a_prompt_may_look_like_hydras_grammar(text: str) -> None:
    for key in ("prompt", "lm_eval.system_instruction"):
        override = OverridesParser.create().parse_override(quote_free_text(f"{key}={text}"))
        assert OmegaConf.create({"prompt": override.value()})["prompt"] == text


NAMES = ["(1).png", "x=y.png", "12", "${home}.png", "d\\a.png", "it's.png", "ü.png", "~/x.png", "[x].png", "a b", "{}"]


def arriving(argument: str, schema: type | None = None) -> Any:
    """What a recipe gets of an argument."""
    override = OverridesParser.create().parse_override(quote_free_text(argument, schema))
    found: Any = OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)
    return found["value"]


@pytest.mark.parametrize("name", [*NAMES, "a, b.png"])
def test_a_file_may_have_any_name(name: str) -> None:
    assert arriving(f"image={name}") == name


@pytest.mark.parametrize("name", [*NAMES, "Config for E2.98B (layer-level)", "a, b"])
@pytest.mark.parametrize("key", ["slice.row", "slice.csv", "sizes.mine.row"])
def test_a_row_of_a_table_may_have_any_name(key: str, name: str) -> None:
    assert arriving(f"{key}={name}") == name


@pytest.mark.parametrize("written", ['"Main model"', "'Main model'", "Main model"])
def test_a_row_may_stand_in_quotes(written: str) -> None:
    assert arriving(f"slice.row={written}") == "Main model"


def test_no_row_is_no_name() -> None:
    assert arriving("slice.row=null") is None


PLACES = [
    "/x/E4B,(copy)", "t5/ünï", "a b", "E4B,v2", "x=y", "[1]", "it's", 'say "so"', "(1)", "{}", "12", "d\\a", "true",
    "a#b",
]  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("key", ["checkpoint", "output", "adapter_path", "run", "vocabulary.tokens", "++output"])
def test_a_place_may_have_any_name(key: str, name: str) -> None:
    assert arriving(f"{key}={name}", SliceRecipe) == name


@pytest.mark.parametrize("name", PLACES)
def test_one_of_several_places_may_have_any_name(name: str) -> None:
    written = name.replace(",", "\\,")
    assert arriving(f"vocabulary.corpus=[{written}]", SliceRecipe) == [name]
    assert arriving(f"data.train=[a.jsonl,{written}]", TrainRecipe) == ["a.jsonl", name]
    assert arriving(f"files=[{written} ,b]", EvaluateRecipe) == [name, "b"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_place_of_every_recipe_may_have_any_name(recipe: str) -> None:
    schema, name, item = schema_of(recipe), "it's (1), [x]=ü {}", "it's (1)\\, [x]=ü {}"
    for key, is_list in places(schema).items():
        if is_list:
            assert arriving(f"{key}=[x,{item}]", schema) == ["x", name]
        else:
            assert arriving(f"{key}={name}", schema) == name


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ("sweep", ["tasks", "slices", "lm_eval.include_path"]), ("search", ["files", "report_files"]),
        ("evaluate", ["files"]), ("train", ["data.train", "data.validation"]),
        ("slice", ["vocabulary.corpus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_several_places_of_any_name_arrive(recipe: str, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}=[a (1).jsonl,'b, c',/tmp/x]" for key in keys]
    assert main([recipe, "checkpoint=x", *words, "--cfg", "job"]) == 0, capsys.readouterr().err
    config = OmegaConf.create(capsys.readouterr().out)
    found = [[str(one) for one in OmegaConf.select(config, key)] for key in keys]
    assert found == [["a (1).jsonl", "b, c", "/tmp/x"]] * len(keys)


def test_a_task_and_a_slice_may_stand_alone_whatever_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "checkpoint=x", "output=y", "slices=official"]
    assert main([*words, "tasks=a (1).yaml", "--cfg", "job"]) == 0
    assert "tasks: a (1).yaml" in capsys.readouterr().out
    assert main([*words, "tasks=a,b"]) == 2  # which of both is meant, Hydra asks
    assert "use key=[value1,value2]" in capsys.readouterr().err
    assert main(["search", "checkpoint=x", "output=y", "files=a (1).jsonl"]) == 2
    assert "files is a single value; it must be a list, as in files=[…]" in capsys.readouterr().err


def texts_of(schema: type, within: str = "") -> Iterator[str]:
    """The keys of a recipe that are lists of texts, or anything."""
    for known, hint in get_type_hints(schema).items():
        if hint in (list[str], list[Path], Any):
            yield f"{within}{known}"
        if not within and get_origin(hint) is not dict:
            for part in (kind for kind in kinds_of(hint) if dataclasses.is_dataclass(kind)):
                yield from texts_of(part, f"{known}.")


def test_of_every_list_of_texts_it_is_known_whether_they_are_places() -> None:
    found = {
        key: recipe for recipe in RECIPES for key in texts_of(schema_of(recipe)) if key not in places(schema_of(recipe))
    }
    assert set(found) == {
        "freeze_matching", "adapter.targets_matching", "adapter.exclude_matching", "lm_eval.metrics", "budget", *FILES
    }, found  # fmt: skip


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("null", None), ('"null"', "null"), ("'t5/ü'", "t5/ü"), ('"a, b"', "a, b"), ("", ""), ("'", "'"),
        ("~/x", f"{Path.home()}/x"), ("~x", "~x"),
    ],
)  # fmt: skip
def test_a_place_may_be_none_or_stand_in_quotes_or_at_home(written: str, expected: str | None) -> None:
    assert arriving(f"output={written}", SliceRecipe) == expected


def test_a_place_may_still_be_named_by_another_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATSLICE_TEST", "there")
    for written in ("a (1)/${oc.env:MATSLICE_TEST}", '${oc.env:MATSLICE_TEST,"x"}', "'${oc.env:MATSLICE_TEST}'"):
        assert arriving(f"output={written}", SliceRecipe).endswith("there")
    assert quote_free_text("output=???", SliceRecipe) == "output=???"


@pytest.mark.parametrize("written", ["a,b", "'a, b',c", "choice(a,b)"])
def test_places_are_several_in_a_sweep_alone(written: str) -> None:
    assert quote_free_text(f"output={written}", SliceRecipe, swept=True) == f"output={written}"
    assert arriving(f"output={written}", SliceRecipe) == written
    assert quote_free_text("output=(a)", SliceRecipe, swept=True) == 'output="(a)"'


def test_every_place_of_a_recipe_is_known_by_its_type() -> None:
    assert {"checkpoint", "output", "run", "adapter_path", "vocabulary.tokens"} <= {*places(SliceRecipe)}
    assert {"checkpoint", "tokenizer", "trainer.output", "data.train", "data.soft_token_cache"} <= {
        *places(TrainRecipe)
    }
    assert {"checkpoint", "parent"} == {*places(VerifyRecipe)}
    assert "runtime" not in {*places(PlanRecipe)} >= {"checkpoint", "save", "csv"}


def test_what_is_not_understood_is_told_how_to_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slice", "slice.name=ü(", "checkpoint=x", "output=y"]) == 2
    told = capsys.readouterr().err
    assert """in quotes of both kinds, as in 'key="a text"'""" in told
    assert main(["slice", 'slice.name="ü("', "checkpoint=x", "output=y", "--cfg", "job"]) == 0  # which helps


def test_a_checkpoint_of_any_name_is_sliced_to_any_name(weights: Path, tmp_path: Path) -> None:
    parent, output = tmp_path / "E4B,(copy)=ü", tmp_path / "a [small] one, 'ß'"
    shutil.copytree(weights, parent)
    assert main(["slice", f"checkpoint={parent}", "slice=full", f"output={output}"]) == 0
    assert main(["verify", f"checkpoint={output}", f"parent={parent}"]) == 0
    assert main(["plan", f"model={output}"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_of_several_files_may_have_any_name(name: str) -> None:
    assert arriving(f"image=[{name}]") == [name]
    assert arriving(f"image=[a.png, {name} ,b.png]") == ["a.png", name, "b.png"]


def test_a_comma_in_the_name_of_one_of_several_files_is_put_in_quotes() -> None:
    assert arriving("""image=["a, b.png",'c, d.png',e\\,f.png]""") == ["a, b.png", "c, d.png", "e,f.png"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["image=a.png", "image=b.png"], "image is given 2 times; give several files as image=[a.png,b.png]"),
        (["audio=[a.wav,b.wav]", "prompt=x", "audio=c.wav"], "give several files as audio=[a.wav,b.wav,c.wav]"),
    ],
)
def test_files_given_twice_are_not_lost(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "checkpoint=x", *given]) == 2
    assert told in capsys.readouterr().err


def test_several_files_are_a_list() -> None:
    assert OverridesParser.create().parse_override(quote_free_text("audio=[a.wav,b.wav]")).value() == ["a.wav", "b.wav"]
    assert arriving("image=[]") == []
    assert arriving("image=null") is None
