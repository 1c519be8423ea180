# SPDX-License-Identifier: Apache-2.0
"""What tests must know of the release of transformers they compare with: 5.17 is supported, 5.23 is the oracle."""

from __future__ import annotations

from importlib.metadata import version

import pytest

TRANSFORMERS = tuple(int(part) for part in version("transformers").split(".")[:2])
ORACLE = (5, 23)


def differs_before_oracle(how: str) -> pytest.MarkDecorator:
    """Leaves a test out where transformers is older than the release that we are held to, and differs from it."""
    return pytest.mark.skipif(TRANSFORMERS < ORACLE, reason=f"transformers {version('transformers')} {how}")
