# SPDX-License-Identifier: Apache-2.0
"""The published E4B, the 16 slices of it that Google published, and the page about who runs them.

python -m tests.model.slicing.official > docs/runtimes.md
"""

from __future__ import annotations

from model.config import ModelConfig, TextConfig
from model.slicing.runtimes import markdown
from model.slicing.spec import SliceSpec
from model.tower_config import AudioConfig, VisionConfig

WIDE, NARROW = 16_384, 8_192
BLOCK = range(20, 25)  # left out of the two smallest, wide in all others
E4B = ModelConfig(
    text=TextConfig.parse({"num_hidden_layers": 35, "num_kv_shared_layers": 15, "intermediate_size": WIDE}),
    vision=VisionConfig(),
    audio=AudioConfig(),
)
# Name, wide layers by index in the parent. Source: google/gemma3n-slicing-configs, configs.csv.
TABLE = (
    ("Main model", range(35)),
    ("Config for official E2B Model", ()),
    ("Config for E1.96B (layer-level)", (4,)),
    ("Config for E2.54B (layer-level)", (4, *BLOCK)),
    ("Config for E2.69B (layer-level)", (4, 9, 14, 19, *BLOCK)),
    ("Config for E2.98B (layer-level)", (*range(15, 25), *range(30, 35))),
    ("Config for E3.18B (layer-level)", (4, *range(9, 25), 29, 34)),
    ("Config for E3.39B (layer-level)", (4, *range(9, 30), 34)),
    ("Config for E3.59B (layer-level)", (*range(4, 30), 34)),
    ("Config for E3.79B (layer-level)", range(4, 35)),
    ("Config for E2.49B (block-level)", BLOCK),
    ("Config for E2.73B (block-level)", range(15, 25)),
    ("Config for E2.98B (block-level)", range(10, 25)),
    ("Config for E3.24B (block-level)", range(10, 30)),
    ("Config for E3.49B (block-level)", range(5, 30)),
    ("Config for E3.79B (block-level)", range(5, 35)),
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
    specs = {}
    for name, wide in TABLE:
        kept = tuple(layer for layer in range(35) if layer not in BLOCK or layer in wide)
        specs[name] = SliceSpec(name, kept, tuple(WIDE if layer in wide else NARROW for layer in kept))
    return specs


def page() -> str:
    """What docs/runtimes.md holds."""
    return "\n".join((HEAD, *markdown(official_specs(), E4B), ""))


if __name__ == "__main__":
    print(page(), end="")
