# SPDX-License-Identifier: Apache-2.0
"""JSON files that came from elsewhere: whatever is wrong with one is a ``ValueError``, for the caller to word."""

from __future__ import annotations

import json
from typing import Any


def json_object(content: bytes) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: Why it is none: no UTF-8 text, no JSON, too deeply nested, or something else than an object.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value
