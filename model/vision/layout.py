# SPDX-License-Identifier: Apache-2.0
"""Which of the two published layouts a vision tower in a file is of.

Gemma 3n came out (June 2025) with a tower as timm 1.0.16 builds it. In July 2025 timm changed padding,
activation and stem, and Google replaced the weights. The older ones load almost completely, and see nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

STEM = "timm_model.conv_stem.conv."


def older_layout(names: Iterable[str]) -> str | None:
    """Why a file with tensors of these names holds an older tower, in words, and what to do; None if it does not.

    The two layouts differ in one name and no shape: the first convolution has had a bias only since timm 1.0.17.
    A file without any tower is of neither layout.

    Args:
        names: All of the checkpoint's tensors, whatever prefix stands before ``timm_model``.
    """
    found = {name for name in names if STEM in name}
    weights = sorted(name for name in found if name.endswith(f"{STEM}weight"))
    if not weights or any(name.endswith(f"{STEM}bias") for name in found):
        return None
    bias = weights[0].removesuffix("weight") + "bias"
    return (
        f"tensor {bias!r} is missing: the vision tower is of the older layout (timm 1.0.16, June 2025), whose "
        "weights Google replaced in July 2025 because they were made for another padding and activation; download "
        "the model's current weights again (a copy that others made of the first release stays old), or load the "
        "model without its vision tower"
    )
