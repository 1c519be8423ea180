# SPDX-License-Identifier: Apache-2.0
"""What README shows of Python runs, with a tiny checkpoint in place of the published one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tests.tiny import TINY_TEXT, tiny_inputs, tiny_model

README = Path(__file__).parents[2] / "README.md"
# What the tiny parent has in place of E4B's directory, optional block and half width.
SMALLER = {"[20, 21, 22, 23, 24]": "[3, 4, 5]", "8192": "24"}


def test_the_python_of_the_readme_loads_the_sub_model_that_it_describes(weights: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for shown, ours in (SMALLER | {"weights/e4b": str(weights)}).items():
        assert shown in example
        example = example.replace(shown, ours)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - our own file
    spec, loaded = names["spec"], names["e2b"]
    assert (spec.kept_layers, spec.ffn_widths) == ((0, 1, 2, 6, 7, 8), (24,) * 6)
    assert loaded.config.text.intermediate_size == (24,) * 6
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    inputs, whole = tiny_inputs(loaded.config), tiny_model().to(torch.bfloat16)
    assert whole.config.text == TINY_TEXT
    with torch.no_grad():  # as its comment says
        torch.testing.assert_close(loaded(inputs).logits, whole(inputs, spec=spec).logits)
