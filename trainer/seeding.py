# SPDX-License-Identifier: Apache-2.0
"""Chance that is a function of what it is for, and of nothing that happened before."""

from __future__ import annotations

import hashlib
import random


def seeded(purpose: str, *numbers: int) -> random.Random:
    """A generator of its own for ``purpose`` and ``numbers``.

    Hashed, not added up: neighbouring seeds must not give the same draws one step apart.
    """
    digest = hashlib.sha256(" ".join((purpose, *map(str, numbers))).encode()).digest()
    return random.Random(int.from_bytes(digest))
