# SPDX-License-Identifier: Apache-2.0
"""What every source file of ours looks like."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path.relative_to(ROOT) for package in ("model", "trainer", "recipes", "conf", "tests")
    for path in (ROOT / package).rglob("*.py")
)  # fmt: skip
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # the aim is 40; a table of cases may need more


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_file_names_its_licence_first(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=str)
def test_package_files_hold_a_docstring_and_nothing_else(path: Path) -> None:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    assert [type(node) for node in body] in ([], [ast.Expr])


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] != "tests"], ids=str)
def test_no_function_is_too_long_to_hold_in_mind(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_nothing_is_called_utils() -> None:
    vague = {"utils", "common", "helpers", "misc", "base"}
    assert [str(path) for path in SOURCES if path.stem in vague] == []
