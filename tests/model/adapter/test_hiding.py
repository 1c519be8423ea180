# SPDX-License-Identifier: Apache-2.0
"""What is not needed is not imported: a package that is broken here must not stop a command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from model.adapter.hiding import hidden


def test_a_hidden_package_seems_not_to_be_installed_for_a_while() -> None:
    sys.modules.pop("colorsys", None)
    with hidden("colorsys"):
        assert importlib.util.find_spec("colorsys") is None
    assert importlib.util.find_spec("colorsys") is not None


def test_what_has_been_imported_stays() -> None:
    with hidden("json"):
        assert sys.modules["json"] is not None


def test_adapters_are_there_without_torchvision() -> None:
    """In a process of its own: the tests have imported torchvision, in a way that a command does not."""
    program = "import sys, model.adapter.lora; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
