# SPDX-License-Identifier: Apache-2.0
"""Where a sub-model comes from: ``slice.json`` for programs, the model card for people."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint.reader import Checkpoint, sha256
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.errors import CheckpointError
from model.json_object import json_object
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.dead_kv import DeadKV
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality

LINEAGE_FILE, CARD_FILE = "slice.json", "README.md"

CARD = """\
---
library_name: transformers
license: gemma
{base_model}tags:
- matformer
- matslice
---

# {name}

A sub-model of a Gemma 3n checkpoint ({parent}), cut out by matslice {version}. {weights}

| | |
|---|---|
| decoder layers | {layers} of the parent's {parent_layers}{skipped} |
| feed-forward widths | {widths} |
| takes in | {modalities} |
| parameters | {parameters:,} in all, {text_parameters:,} of the text decoder |
| effective parameters | {effective_parameters:,} that are computed with; {published:,} by the published convention, \
which counts keys and values that nothing reads |
{more}
`{lineage}` says which part of which parent this is, and holds the SHA-256 of every file beside it:
`matslice verify checkpoint=DIRECTORY` checks them.

Use is subject to the Gemma Terms of Use: <https://ai.google.dev/gemma/terms>.
"""

UNCHANGED = """\
No weight was changed: each is a part of
the parent's tensor of that name."""
MERGED = """\
Then an adapter was merged
into it: the weights that the adapter was trained on are not the parent's any more, all others are parts of the
parent's tensors of that name."""
OF_MERGED = """
An adapter had been merged into that parent, or into one it was cut out of."""
SHOWN = 16  # digits of a fingerprint that a card has
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def lineage_of(source: Checkpoint, wanted: ModelConfig, sub: SubModel, dead_kv: DeadKV) -> dict[str, Any]:
    """The content of ``slice.json`` without checksums: the parent's fingerprint (and its own lineage), the part, sizes.

    Args:
        source: The parent.
        wanted: Its config, without the towers that are left out.
        sub: The part of the parent.
        dead_kv: What becomes of keys and values that nothing computes with.
    """
    parent: dict[str, Any] = {"fingerprint": source.fingerprint(), "layers": wanted.text.num_hidden_layers}
    if (name := name_of(source)) is not None:
        parent["name"] = name
    if sub.audio_layers is not None and wanted.audio is not None:
        parent["audio_layers"] = wanted.audio.conf_num_hidden_layers
    if (source.path / LINEAGE_FILE).is_file():
        parent["slice"] = read_lineage(source.path)
    vocabulary = sub.vocabulary and {
        "parent_size": sub.vocabulary.parent_size,
        "kept": [[some.start, some.stop] for some in sub.vocabulary.ranges],  # from, up to but not including
    }
    return {
        "spec": dataclasses.asdict(sub.spec),
        "modalities": list(wanted.modalities),
        "audio_layers": sub.audio_layers,
        "vocabulary": vocabulary,
        "dead_kv": dead_kv.value,
        "parent": parent,
        **counts_of(wanted, sub),
        "versions": {
            "matslice": version("matslice"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def counts_of(config: ModelConfig, sub: SubModel) -> dict[str, int]:
    """The sizes of the part ``sub`` of a model of this config, as ``slice.json`` says them."""
    text = config.text
    used, published = (text_shapes(text, layout).items() for layout in (Layout.used, Layout.published))
    return {
        "parameters": count_parameters(model_shapes(config, Layout.used).items(), sub, text),
        "text_parameters": count_parameters(used, sub, text),
        "effective_parameters": count_effective_parameters(used, sub, text),
        "effective_parameters_in_published_layout": count_effective_parameters(published, sub, text),
    }


def write_lineage(lineage: Mapping[str, Any], hashes: Mapping[str, str], directory: Path) -> None:
    """Write ``slice.json``; ``hashes`` are those known already, other files in ``directory`` are hashed here."""
    others = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name != LINEAGE_FILE)
    checksums = {name: hashes.get(name) or sha256(directory / name) for name in others}
    content = json.dumps({**lineage, "checksums": checksums}, indent=2) + "\n"
    (directory / LINEAGE_FILE).write_text(content, encoding="utf-8")


def read_lineage(directory: Path) -> dict[str, Any]:
    """The content of ``slice.json``.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        return json_object((directory / LINEAGE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / LINEAGE_FILE}: cannot be read ({error}); copy it anew") from None


def sub_model_of(lineage: Mapping[str, Any], where: str) -> SubModel:
    """The part of its parent that ``slice.json`` says a sub-model is.

    Raises:
        CheckpointError: It says so in no form that is known here; ``where`` is said of it.
    """
    try:
        spec, vocabulary, audio_layers = lineage["spec"], lineage["vocabulary"], lineage["audio_layers"]
        return SubModel(
            SliceSpec(spec["name"], tuple(spec["kept_layers"]), tuple(spec["ffn_widths"])),
            tuple(Modality(name) for name in lineage["modalities"]),
            None if audio_layers is None else tuple(audio_layers),
            vocabulary and Vocabulary(
                tuple(old for start, stop in vocabulary["kept"] for old in range(start, stop)),
                vocabulary["parent_size"],
            ),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: does not say which part of its parent this is ({error}); slice anew") from None


def write_card(lineage: Mapping[str, Any], small: ModelConfig, directory: Path) -> None:
    """Write the model card of what ``slice.json`` tells of; ``small`` is the sub-model's config."""
    (directory / CARD_FILE).write_text(card_of(lineage, small), encoding="utf-8")


def check_lineage(lineage: Mapping[str, Any], small: ModelConfig, where: str) -> None:
    """Raise CheckpointError unless there is all that a card tells; ``where`` is said of it."""
    try:
        card_of(lineage, small)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: does not say what a model card tells ({error!r}); slice anew") from None


def card_of(lineage: Mapping[str, Any], small: ModelConfig) -> str:
    """The model card."""
    spec, parent = lineage["spec"], lineage["parent"]
    name = named if HUB_NAME.fullmatch(named := parent.get("name", "")) else None
    skipped = sorted(set(range(parent["layers"])) - set(spec["kept_layers"]))
    more = ""
    if lineage["audio_layers"] is not None:
        more += f"| audio tower | layers {list(lineage['audio_layers'])} of the parent's |\n"
    if lineage["vocabulary"] is not None:
        ids = small.text.vocab_size
        whole = ids - small.text.vocab_size_per_layer_input + lineage["vocabulary"]["parent_size"]
        more += f"| vocabulary | {ids:,} ids of the parent's {whole:,} |\n" if ids < whole else ""
    return CARD.format(
        name=spec["name"],
        base_model=f"base_model: {name}\n" if name else "",
        parent=(f"`{name}`, " if name else "") + f"fingerprint `{parent['fingerprint'][:SHOWN]}`",
        version=version("matslice"),
        weights=told_of_weights(lineage),
        layers=len(spec["kept_layers"]),
        parent_layers=parent["layers"],
        skipped=f" (without {', '.join(map(str, skipped))})" if skipped else "",
        widths=", ".join(map(str, run_lengths(spec["ffn_widths"]))),
        modalities=", ".join(lineage["modalities"]),
        published=lineage["effective_parameters_in_published_layout"],
        more=more,
        lineage=LINEAGE_FILE,
        **{key: lineage[key] for key in ("parameters", "text_parameters", "effective_parameters")},
    )


def told_of_weights(lineage: Mapping[str, Any]) -> str:
    """Whether the weights are still those of the parent, and the parent's those that were published."""
    earlier = lineage["parent"].get("slice")
    while isinstance(earlier, dict) and "merged" not in earlier:
        parent = earlier.get("parent")
        earlier = parent.get("slice") if isinstance(parent, dict) else None
    return (MERGED if "merged" in lineage else UNCHANGED) + (OF_MERGED if earlier else "")


def name_of(source: Checkpoint) -> str | None:
    """The name on the hub that a parent's config gives; None for all else, as a place on this machine."""
    name = source.config.published.get("_name_or_path")
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name) or Path(name).exists():
        return None
    return name


def run_lengths(widths: Sequence[int]) -> list[str]:
    """Widths layer by layer, equal neighbours together: ``4 × 8192``."""
    runs: list[tuple[int, int]] = []
    for width in widths:
        count = runs.pop()[0] if runs and runs[-1][1] == width else 0
        runs.append((count + 1, width))
    return [f"{count} × {width:,}" for count, width in runs]
