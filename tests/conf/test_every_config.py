# SPDX-License-Identifier: Apache-2.0
"""Every file in conf/ composes with every recipe that has its group, becomes its dataclass, and is explained."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from model.adapter.targets import resolve_targets
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.slicing.count import Layout, count_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.cli import RECIPES, parted, schema_of
from recipes.schema import choices, register_schema
from recipes.shape import ShapeConfig
from trainer.elastic import SliceSampler

CONF = Path(__file__).parents[2] / "conf"
LAUNCHED = sorted((CONF / "accelerate").glob("*.yaml"))  # Accelerate's own config files, which Hydra never sees
TASKS = sorted((CONF / "task").glob("*.yaml"))  # named by tasks=, and tried in tests/trainer/evaluation
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path not in (*LAUNCHED, *TASKS))
SCHEMAS = {name: schema_of(name) for name in RECIPES}
NOT_IN_A_SCHEMA = {"experiment": ["train"], "program": list(SCHEMAS)}  # groups that fill no field of their own
GIVEN = {  # what only a user can know
    "checkpoint": "weights", "output": "out", "adapter_path": "adapter", "files": ["a.jsonl"], "slice": "full",
    "data.train": ["a.jsonl"], "tasks": ["demo_topic"], "trainer.output": "runs/a", "trainer.max_steps": 100,
}  # fmt: skip

WHOLE = ("full", "main", "custom")  # slices that leave nothing out; custom only as long as nothing is said beside it


@pytest.fixture(scope="module", autouse=True)
def hydra_with_conf() -> Iterator[None]:
    for name, schema in SCHEMAS.items():
        register_schema(name, schema)
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield


def complete(recipe: str, overrides: list[str]) -> Any:
    """The recipe's dataclass, filled from ``overrides`` and, where they say nothing, from GIVEN."""
    if recipe == "slice" and not any(override.startswith("slice=") for override in overrides):
        overrides = [*overrides, "slice=full"]
    cfg: DictConfig = compose(recipe, overrides)
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, GIVEN[key])
    if "trainer" in cfg and cfg.trainer.max_steps is None and cfg.trainer.epochs is None:
        cfg.trainer.max_steps = GIVEN["trainer.max_steps"]  # one of the two is asked for
    return OmegaConf.to_object(cfg)


def recipes_with(group: str) -> list[str]:
    fields = {name: {known.name for known in dataclasses.fields(schema)} for name, schema in SCHEMAS.items()}
    # The demo's sizes are those it is made for, and it says so.
    return NOT_IN_A_SCHEMA.get(group) or [name for name in fields if group in fields[name] and name != "demo"]


USES = [
    (recipe, str(path.parent), path.stem)
    for path in FILES if path.parent != Path()
    for recipe in recipes_with(str(path.parent))
]  # fmt: skip
FIRST = {use[1:]: use for use in reversed(USES)}


def slice_named(name: str) -> SliceConfig:
    return complete("slice", [f"slice={name}"]).slice


def model_named(name: str) -> ModelConfig:
    shape: ShapeConfig = complete("train", [f"model={name}"]).model
    return shape.to_model_config()


def shape_named(name: str) -> TextConfig:
    return model_named(name).text


def whole(text: TextConfig) -> SubModel:
    return SubModel(SliceSpec.full(text))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_is_a_recipe_or_in_a_group_that_one_has(path: Path) -> None:
    if path.parent == Path():
        assert path.stem in SCHEMAS
    else:
        assert recipes_with(str(path.parent))


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.stem)
def test_every_file_for_the_launcher_says_how_to_launch_with_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert (
        f"#   accelerate launch --config_file conf/accelerate/{path.name} --num_processes 2 -m recipes.cli train"
        in text
    )
    assert load_config_from_file(str(path)).mixed_precision == "no"


@pytest.mark.parametrize("recipe", SCHEMAS)
def test_every_recipe_becomes_its_dataclass(recipe: str) -> None:
    assert isinstance(complete(recipe, []), SCHEMAS[recipe])


@pytest.mark.parametrize(
    ("recipe", "group", "option"),
    # Every file with one recipe; with the others that have its group, in the slow tests.
    [pytest.param(*use, marks=() if use == FIRST[use[1:]] else pytest.mark.slow) for use in USES],
)
def test_every_option_becomes_part_of_the_recipe(recipe: str, group: str, option: str) -> None:
    where = "@hydra" if group == "program" else ""
    assert isinstance(complete(recipe, [f"{group}{where}={option}"]), SCHEMAS[recipe])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    lines = [line for line in (CONF / path).read_text(encoding="utf-8").splitlines() if "# @package" not in line]
    assert re.fullmatch(r"# [A-Z]?\S.*", lines[0])
    assert path.parts[0] == "program" or lines[1].startswith("#   matslice ")


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "program"], ids=str)
def test_the_command_in_every_file_is_one_that_works(path: Path) -> None:
    found = re.search(r"^#   matslice (.*)$", (CONF / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    recipe, overrides = parted(shlex.split(found[1].split("   (")[0]))  # a remark may follow
    complete(recipe, [override for override in overrides if not override.startswith("prompt=")])
    assert path.parent == Path() or any(override.startswith(f"{path.parent}={path.stem}") for override in overrides)


@pytest.mark.parametrize("name", choices("slice"))
def test_every_slice_is_part_of_the_model_it_is_made_for(name: str) -> None:
    parent = shape_named("tiny" if name.startswith("tiny") else "e4b")
    written = slice_named(name)
    assert written.name == name
    assert SliceSpec.resolve(written, parent).is_full(parent) == (name in WHOLE)


@pytest.mark.parametrize(("name", "parameters"), [("e4b", 6_835_235_568), ("e2b", 4_435_182_688)])
def test_the_published_shapes_have_the_published_sizes(name: str, parameters: int) -> None:
    text = shape_named(name)
    assert count_parameters(text_shapes(text, Layout.used).items(), whole(text), text) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("e4b", 7_818_517_072), ("e2b", 5_418_464_192)])
def test_the_published_shapes_with_their_towers_have_the_published_sizes(name: str, parameters: int) -> None:
    model = model_named(name)
    assert model.modalities == tuple(Modality)
    shapes = model_shapes(model, Layout.used).items()
    assert count_parameters(shapes, whole(model.text), model.text) == parameters


def test_every_adapter_of_conf_has_targets_in_the_published_model() -> None:
    empty = Gemma3n.build(model_named("e2b"), device="meta")
    for name in choices("adapter"):
        if adapter := complete("train", [f"adapter={name}"]).adapter:
            assert resolve_targets(empty, adapter.targets)


def test_e2b_is_the_e2b_slice_of_e4b() -> None:
    e4b, e2b = shape_named("e4b"), shape_named("e2b")
    spec = SliceSpec.resolve(slice_named("e2b"), e4b)
    assert spec.ffn_widths == e2b.intermediate_size
    assert tuple(e4b.layer_types[layer] for layer in spec.kept_layers) == e2b.layer_types
    assert (
        tuple(e4b.activation_sparsity_pattern[layer] for layer in spec.kept_layers) == e2b.activation_sparsity_pattern
    )


def test_the_tiny_shape_has_every_mechanism_on() -> None:
    tiny = shape_named("tiny")
    assert {tiny.kv_producer(layer) for layer in range(5, 15)} == {3, 4}
    assert {sparsity > 0 for sparsity in tiny.activation_sparsity_pattern} == {True, False}
    assert set(slice_named("tiny_e2b").skip_layers) == set(range(5, 10))


@pytest.mark.parametrize("name", choices("sizes"))
def test_sizes_go_by_the_names_of_their_slices(name: str) -> None:
    sizes = complete("train", [f"sizes={name}"]).sizes
    assert {key: written.name for key, written in sizes.items()} == {key: key for key in sizes}


@pytest.mark.parametrize("policy", ["sample", "sandwich"])
def test_elastic_training_draws_from_the_sizes(policy: str) -> None:
    recipe = complete("train", [f"elastic={policy}", "sizes=tiny"])
    assert recipe.elastic.slices == recipe.sizes
    assert "tiny_e2b" in recipe.sizes


def test_a_size_can_be_added_on_the_command_line() -> None:
    added = ["+slice@sizes.mine=full", "sizes.mine.name=mine", "sizes.mine.ffn_widths=[24]"]
    recipe = complete("train", [*added, "elastic=sample"])
    assert recipe.elastic.slices["mine"] == SliceConfig(name="mine", ffn_widths=[24])


@pytest.mark.parametrize("changes", [["elastic=off"], ["+slice@sizes.mine=full", "sizes.mine.name=mine"]], ids=str)
def test_an_experiment_can_be_changed(changes: list[str]) -> None:
    recipe = complete("train", ["experiment=elastic_lora", *changes])
    SliceSampler(recipe.elastic, shape_named("e4b"), seed=0)
