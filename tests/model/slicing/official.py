# SPDX-License-Identifier: Apache-2.0
"""The published E4B, the 16 slices of it that Google published, and the page about who runs them.

python -m tests.model.slicing.official > docs/runtimes.md
"""

from __future__ import annotations

import dataclasses

from model.config import ModelConfig, TextConfig
from model.slicing.runtimes import markdown
from model.slicing.spec import SliceSpec
from model.slicing.table import published_slices
from model.tower_config import AudioConfig, VisionConfig

WIDE, NARROW = 16_384, 8_192
E4B = ModelConfig(
    text=TextConfig.parse({"num_hidden_layers": 35, "num_kv_shared_layers": 15, "intermediate_size": WIDE}),
    vision=VisionConfig(),
    audio=AudioConfig(),
)
HEAD = """# Which runtime runs which slice

Written by `python -m tests.model.slicing.official > docs/runtimes.md` from the rules in
`model/slicing/runtimes.py`; a test holds it against them. `matslice plan` asks the same rules about any slice.

The rows are the slices that Google published for E4B, with both towers and the keys and values that published
files hold for every layer. "yes" says that the loader's source builds what the slice is. Only transformers was
run, on random slices of a tiny text-only model; the others were read, in the commit named where it is known, which
need not be the newest. LiteRT's two are Google's own bundles: nothing converts a slice for it.
"""


def official_specs() -> dict[str, SliceSpec]:
    """The 16 slices by their published names."""
    resolved = ((name, SliceSpec.resolve(written, E4B.text)) for name, written in published_slices().items())
    return {name: dataclasses.replace(spec, name=name) for name, spec in resolved}


def page() -> str:
    """What docs/runtimes.md holds."""
    return "\n".join((HEAD, *markdown(official_specs(), E4B), ""))


if __name__ == "__main__":
    print(page(), end="")
