# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness finds the same through matslice as through its own backend on the model cut out and saved.

Item by item, for two sub-models, on tasks of real text; in the tests only, for which it must be installed
(``pip install '.[eval]'``, as ``make test-slow`` does).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.reader import Checkpoint
from model.errors import ConfigError, InputError
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.submodel import SubModel
from recipes.cli import main
from recipes.harness import open_model
from tests.trained_tokenizer import TEXTS
from tests.trainer.harness.parts import FULL, SHORT, engine_of, processor, tokenizer, varied, write_checkpoint
from tests.trainer.parts import write_jsonl
from trainer.evaluation.task import Task
from trainer.harness.config import HarnessConfig
from trainer.harness.library import NAME, load_tasks, register
from trainer.harness.task import HarnessTask, harness_tasks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install '.[eval]')")
pytestmark = [pytest.mark.slow, pytest.mark.parity, pytest.mark.timeout(900)]

TASKS = Path(__file__).parents[1] / "trainer/harness/tasks"
SPECS = {"full": FULL, "mixed": SHORT}
NUM_ITEMS, MAX_LENGTH = 12, 128
TOLERANCE = 1e-4  # nats, of fp32 sums in another order


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent, what is cut out of it, and the tasks' rows."""
    place = tmp_path_factory.mktemp("harness")
    write_checkpoint(varied(), place / "parent")
    for name, spec in SPECS.items():
        slice_checkpoint(Checkpoint.open(place / "parent"), place / name, SubModel(spec))
    texts = [text for text in TEXTS if 120 < len(text) < 240]
    rows = []
    for number, text in enumerate(texts[: 2 * NUM_ITEMS]):
        cut = text.index(" ", len(text) // 2)
        others = [texts[-1 - number][-40:], texts[-50 - number][-70:].strip()]
        ends = [text[cut + 1 :], *others] if number % 2 else [*others, text[cut + 1 :]]
        rows.append(
            {
                "begun": text[:cut],
                "ends": ends,
                "answer": ends.index(text[cut + 1 :]),
                "whole": "\n\n".join(texts[number : number + 3]),
            }
        )
    write_jsonl(place / "rows.jsonl", rows[:NUM_ITEMS])
    write_jsonl(place / "examples.jsonl", rows[NUM_ITEMS:])
    return place


@pytest.fixture(autouse=True)
def here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks name their rows relative to where one is, and nothing is kept of them elsewhere."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", directory / "cache")


def evaluated(model: str, arguments: Mapping[str, Any], task: str, **asked: Any) -> dict[str, Any]:
    """What the harness finds of a task: its figures, and its records of items."""
    register(open_model)
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False)
    return importlib.import_module("lm_eval").simple_evaluate(
        model=model, model_args=dict(arguments), tasks=[str(TASKS / f"{task}.yaml")], batch_size=4, device="cpu",
        task_manager=manager, bootstrap_iters=0, **asked,
    )  # fmt: skip


def theirs(spec: str, task: str, **asked: Any) -> dict[str, Any]:
    """Through the harness's own backend, on the sub-model's own checkpoint."""
    return evaluated("hf", {"pretrained": spec, "dtype": "float32", "max_length": MAX_LENGTH}, task, **asked)


def ours(spec: str, task: str, **asked: Any) -> dict[str, Any]:
    """Through our model, on the parent's checkpoint."""
    said = {"skip_layers": [3, 4, 5], "ffn_widths": [48, 16, 24, 16, 32, 48]} if spec == "mixed" else {}
    return evaluated(NAME, {"checkpoint": "parent", "max_length": MAX_LENGTH, **said}, task, **asked)


def assert_alike(found: Any, expected: Any) -> None:
    """The same texts and verdicts; log-likelihoods but for rounding, which of thousands of nats is more."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=TOLERANCE, rel=2e-7 if abs(expected) > 1000 else 0)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == expected


def items_of(results: dict[str, Any], task: str) -> dict[tuple[int, str], dict[str, Any]]:
    """Its records, by document and filter of answers."""
    return {(one["doc_id"], one["filter"]): one for one in results["samples"][task]}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("continued_choice", {}),
        ("continued_choice", {"num_fewshot": 1}),
        ("continued_choice", {"apply_chat_template": True}),
        ("continued_text", {}),
        ("continued_text", {"num_fewshot": 1, "apply_chat_template": True, "system_instruction": "Go on."}),
        ("begun_text", {"num_fewshot": 1, "apply_chat_template": True}),
        ("whole_text", {}),
    ],
    ids=[
        "choice",
        "choice after an example",
        "choice in a conversation",
        "text",
        "text in a conversation",
        "begun",
        "whole",
    ],
)
def test_items_are_answered_alike(spec: str, task: str, asked: dict[str, Any]) -> None:
    expected, found = theirs(spec, task, **asked), ours(spec, task, **asked)
    for key, one in items_of(expected, task).items():
        other = items_of(found, task)[key]
        assert other["arguments"] == one["arguments"]
        assert_alike(other["resps"], one["resps"])
    for name, value in expected["results"][task].items():
        same = pytest.approx(value, rel=TOLERANCE) if isinstance(value, float) else value
        assert found["results"][task][name] == same
    assert len(items_of(found, task)) >= NUM_ITEMS
    if task == "continued_text":
        said = {one["resps"][0][0] for one in found["samples"][task]}
        assert len(said) > NUM_ITEMS // 3, said  # the model does say something
    assert found["config"]["spec"] == ("full" if spec == "full" else "asked")
    assert found["config"]["ffn_widths"] == list(SPECS[spec].ffn_widths)


@pytest.mark.parametrize("task", ["continued_choice", "continued_text", "whole_text"])
def test_a_task_of_a_sweep_finds_of_each_sub_model_what_the_harness_finds(directory: Path, task: str) -> None:
    config = HarnessConfig(batch_size=4, max_length=MAX_LENGTH)
    (asked,) = harness_tasks([str(TASKS / f"{task}.yaml")], config, processor(), checkpoint=directory / "parent")
    assert isinstance(asked, HarnessTask)
    plain: Task = asked
    engine = engine_of(open_model({"checkpoint": "parent"}).asking.engine.gemma)
    specs = list(SPECS.values())
    found: list[list[Any]] = [[] for _ in specs]
    for batch in plain.batches:
        for values, more in zip(found, plain.measure(engine, specs, batch), strict=True):
            values.extend(more)
    for spec, values in zip(SPECS, found, strict=True):
        expected = theirs(spec, task)
        assert json.loads(json.dumps(values)) == values
        for item, one in zip(plain.items, values, strict=True):
            record = next(kept for (number, _), kept in items_of(expected, task).items() if item.endswith(f":{number}"))
            assert_alike(
                one["answers"], [list(said[0]) if isinstance(said[0], tuple) else said[0] for said in record["resps"]]
            )
        for metric in plain.metrics:
            key = metric.name if "," in metric.name else f"{metric.name},none"
            assert metric.of(values) == pytest.approx(expected["results"][task][key], abs=TOLERANCE, rel=TOLERANCE)
            assert metric.higher_is_better is expected["higher_is_better"][task][metric.name.split(",")[0]]


def written(directory: Path, task: str, *changes: tuple[str, str]) -> str:
    """A task of ours changed, as a file."""
    text = (TASKS / f"{task}.yaml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (directory / f"{task}.yaml").write_text(text)
    return str(directory / f"{task}.yaml")


def test_answers_that_are_judged_otherwise_are_of_another_task(tmp_path: Path) -> None:
    def fingerprint(*changes: tuple[str, str]) -> str:
        (found,) = harness_tasks([written(tmp_path, "continued_text", *changes)], HarnessConfig(), processor())
        return found.fingerprint

    usual = fingerprint()
    assert fingerprint() == usual
    others = [
        fingerprint(("ignore_case: true", "ignore_case: false")), fingerprint(("(\\\\S+)", "(\\\\w+)")),
        fingerprint(("higher_is_better: true", "higher_is_better: false")),
        fingerprint(("max_gen_toks: 16", "max_gen_toks: 17")),
    ]  # fmt: skip
    assert len({usual, *others}) == 1 + len(others)


DRAWN = ("  do_sample: false", "  do_sample: true\n  temperature: 1.0\nrepeats: 4")
FIRST = "      - function: take_first\n  - name: first"
VOTE = "      - function: take_first_k\n        k: 4\n      - function: majority_vote\n"


def test_each_answer_that_is_drawn_of_a_prompt_is_another_whatever_the_batch(directory: Path, tmp_path: Path) -> None:
    place = written(tmp_path, "continued_text", DRAWN, (FIRST, VOTE + FIRST))
    engine = engine_of(open_model({"checkpoint": "parent"}).asking.engine.gemma)
    found = []
    for batch_size in (1, 5):
        config = HarnessConfig(batch_size=batch_size, max_length=MAX_LENGTH, limit=4)
        (asked,) = harness_tasks([place], config, processor(), checkpoint=directory / "parent")
        values = [one for batch in asked.batches for one in asked.measure(engine, [FULL], batch)[0]]
        found.append(dict(zip(asked.items, values, strict=True)))
    assert found[0] == found[1]
    for values in found[0].values():
        assert len(set(values["answers"])) > 1
    register(open_model)
    results = importlib.import_module("lm_eval").simple_evaluate(
        model=NAME, model_args={"checkpoint": "parent", "max_length": MAX_LENGTH}, tasks=[place], batch_size=3,
        device="cpu", limit=4, bootstrap_iters=0,
        task_manager=importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False),
    )  # fmt: skip
    for (number, _), one in items_of(results, "continued_text").items():
        assert one["resps"][0] == found[0][f"lm_eval:continued_text:{number}"]["answers"]


def test_a_task_is_known_again_and_another_asking_is_another() -> None:
    def fingerprint(**changes: Any) -> str:
        (found,) = harness_tasks([str(TASKS / "continued_choice.yaml")], HarnessConfig(**changes), processor())
        return found.fingerprint

    usual = fingerprint()
    assert fingerprint(batch_size=3) == usual  # how much at once is no part of what is asked
    others = [
        fingerprint(limit=3), fingerprint(num_fewshot=2), fingerprint(num_fewshot=2, fewshot_seed=5),
        fingerprint(apply_chat_template=True), fingerprint(add_bos_token=False), fingerprint(metrics=["acc"]),
    ]  # fmt: skip
    assert len({usual, *others}) == 1 + len(others)


def test_windows_are_those_of_the_harness() -> None:
    utils = importlib.import_module("lm_eval.utils")
    made = open_model({"checkpoint": "parent", "max_length": 20}).requests.encoding
    for text in TEXTS[:80]:
        windows = utils.get_rolling_token_windows(
            token_list=made.encode(text), prefix_token=tokenizer().bos_id, max_seq_len=20, context_len=1
        )
        expected = [utils.make_disjoint_window(window) for window in windows]
        assert [(list(split.given), list(split.scored)) for split in made.windows(text)] == expected


def test_what_the_harness_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task 'continued_choise', nor has include_path; did you mean continued_"):
        load_tasks("continued_choise", [TASKS])
    with pytest.raises(ConfigError, match=r"there is no file 'gone\.yaml'"):
        load_tasks("gone.yaml", [])
    (tmp_path / "gone_rows.yaml").write_text(
        (TASKS / "whole_text.yaml").read_text().replace("rows.jsonl", "gone.jsonl")
    )
    with pytest.raises(InputError, match=r"cannot be made ready .*check the network, the name and what the task needs"):
        load_tasks(str(tmp_path / "gone_rows.yaml"), [])
    (tmp_path / "counted.yaml").write_text(
        (TASKS / "continued_choice.yaml")
        .read_text()
        .replace("metric: acc_norm\n    aggregation: mean", "metric: mcc\n    aggregation: matthews_corrcoef")
    )
    with pytest.raises(ConfigError, match=r"its metric 'mcc' is put together by 'matthews_corrcoef'.*metrics=\[acc\]"):
        harness_tasks([str(tmp_path / "counted.yaml")], HarnessConfig(), processor())
    both = [str(tmp_path / "counted.yaml"), str(TASKS / "whole_text.yaml")]
    chosen, other = harness_tasks(both, HarnessConfig(metrics=["acc"]), processor())
    assert [metric.name for metric in chosen.metrics] == ["acc"]
    assert [metric.name for metric in other.metrics] == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    with pytest.raises(ConfigError, match=r"no task has a metric 'f1' .*lm_eval:continued_choice has acc, acc_norm"):
        harness_tasks([str(TASKS / "continued_choice.yaml")], HarnessConfig(metrics=["f1"]), processor())
    with pytest.raises(ConfigError, match="max_length is 600, but the model has 512 positions"):
        harness_tasks([str(TASKS / "continued_choice.yaml")], HarnessConfig(max_length=600), processor())


def test_its_command_knows_our_models(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "lm_eval", "--model", NAME, "--model_args", "checkpoint=parent,skip_layers=[3,4,5],ffn_widths=24",
        "--tasks", str(TASKS / "continued_choice.yaml"), "--limit", "3", "--batch_size", "4", "--device", "cpu",
        "--apply_chat_template", "--output_path", str(directory / "out"), "--log_samples",
    ]  # fmt: skip
    status, told = main(words), capfd.readouterr()
    assert status == 0, told.err
    assert "continued_choice" in told.out
    (written,) = (directory / "out").rglob("results_*.json")
    results = json.loads(written.read_text())
    assert results["config"]["kept_layers"] == [0, 1, 2, 6, 7, 8]
    assert "<start_of_turn>" in results["chat_template"]
    assert len(results["config"]["model_fingerprint"]) == 64
    assert main([*words[:4], "checkpoint=gone", *words[5:]]) == 2
    assert "error: checkpoint: no directory 'gone'" in capfd.readouterr().err
    assert main(["lm_eval", "--model", NAME, "--tasks", "no_such_task"]) == 2
    assert "error: lm_eval: Tasks not found: no_such_task" in capfd.readouterr().err


def test_a_sweep_asks_the_harness(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(
        "name: mixed\nskip_layers: [3, 4, 5]\nffn_widths: [48, 16, 24, 16, 32, 48]\n", encoding="utf-8"
    )
    tasks = [f"lm_eval:{TASKS / name}.yaml" for name in ("continued_choice", "continued_text")]
    words = [
        "sweep", f"checkpoint={directory / 'parent'}", f"tasks=[{','.join(tasks)}]", "lm_eval.batch_size=4",
        f"slices=[full,{tmp_path / 'mixed.yaml'}]", f"output={tmp_path / 'out'}", f"lm_eval.max_length={MAX_LENGTH}",
    ]  # fmt: skip
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["spec"]["name"], row["task"]) for row in rows} == {
        (spec, f"lm_eval.{task}") for spec in SPECS for task in ("continued_choice", "continued_text")
    }
    for row in rows:
        task = row["task"].removeprefix("lm_eval.")
        expected = ours(row["spec"]["name"], task)["results"][task]
        for name, figure in row["metrics"].items():
            theirs_name = name if "," in name else f"{name},none"
            assert figure["value"] == pytest.approx(expected[theirs_name], rel=TOLERANCE)
