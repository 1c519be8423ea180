# SPDX-License-Identifier: Apache-2.0
"""Keeps a package that is not needed from being imported by one that is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Meanwhile ``package`` seems not to be installed; if it has been imported already, nothing changes."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType] - how Python is told that there is none
    try:
        yield
    finally:
        del sys.modules[package]
