# SPDX-License-Identifier: Apache-2.0
"""What is worth knowing of a legal sub-model before it is cut: where it leaves what was trained.

Nothing here is refused. A sub-model may be meant to be trained further; then these notes say where that is needed.
Which points were trained is told by ``model.slicing.trained``, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model.config import TextConfig
from model.slicing.spec import SliceSpec
from model.slicing.trained import GEMMA_3N_DIM, blocks, optional_block, trained_widths

LANES = 16  # matrix units of GPUs work on 16-bit numbers in tiles of 16; NVIDIA, Matrix Multiplication Background


def advice(spec: SliceSpec, config: TextConfig) -> list[str]:
    """Notes on the part ``spec`` of ``config``, each a sentence without a full stop; none if all of it was trained.

    No layer's width is in two notes: what one of them asks for would be what another warns of.
    """
    widths = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    narrowed = {layer: width for layer, width in widths.items() if width < config.intermediate_size[layer]}
    return [
        *on_untrained_widths(narrowed, config),
        *on_the_optional_block(narrowed, config),
        *on_skipped_layers(spec, config),
    ]


def on_untrained_widths(narrowed: Mapping[int, int], config: TextConfig) -> list[str]:
    """Narrowed layers at widths other than the two that Gemma 3n was trained at."""
    (small, large), block = trained_widths(config), optional_block(config)
    by_width: dict[int, list[int]] = {}
    for layer, width in narrowed.items():
        if width not in (small, large) and layer not in block:
            by_width.setdefault(width, []).append(layer)
    if not by_width:
        return []
    least, most = min(by_width), max(by_width)
    if len(by_width) == 1:
        found = f"width {least} of {told(by_width[least])} was never trained: it is"
    else:
        layers = sorted(layer for group in by_width.values() for layer in group)
        found = f"widths {least} to {most} of {told(layers)} were never trained: they are"
    where = "below both" if most < small else "not" if least < small else "between"
    whose = "Gemma 3n's training" if is_gemma_3n(config) else "training, taken for granted to be like Gemma 3n's"
    asked = f"ask for {small}{f' or {large}' if most > small else ''}"
    return [f"{found} {where} {small} and {large}, the widths of {whose}; {asked}, or {further(sorted(by_width))}"]


def further(widths: Sequence[int]) -> str:
    """That these widths need training, and which ones beside them would be computed faster."""
    if not (uneven := [width for width in widths if width % LANES]):
        return "train the slice further"
    if len(uneven) > 1:
        return f"train the slice further (at multiples of {LANES}: others are computed more slowly by accelerators)"
    near = uneven[0] - uneven[0] % LANES or LANES
    return (
        f"train the slice further (at {near}: {uneven[0]} is no multiple of {LANES}, which accelerators compute more"
        " slowly)"
    )


def on_the_optional_block(narrowed: Mapping[int, int], config: TextConfig) -> list[str]:
    """Layers that Gemma 3n's smaller size lacks, so that they were trained at their full width only."""
    block = optional_block(config)
    if not (layers := [layer for layer in narrowed if layer in block]):
        return []
    size = "the smaller size of Gemma 3n leaves" if is_gemma_3n(config) else (
        "a smaller size, taken for granted as Gemma 3n's, leaves"
    )  # fmt: skip
    verb = "is" if len(layers) == 1 else "are"
    remedy = f"keep the full width there, or skip {told(block)}"
    return [f"{told(layers)} {verb} narrowed, but trained at full width only: {size} {told(block)} out; {remedy}"]


def on_skipped_layers(spec: SliceSpec, config: TextConfig) -> list[str]:
    """Layers left out that training never left out: parts of the optional block, and all others."""
    block = optional_block(config)
    skipped = sorted(set(range(config.num_hidden_layers)) - set(spec.kept_layers))
    notes: list[str] = []
    inside, outside = [layer for layer in skipped if layer in block], [layer for layer in skipped if layer not in block]
    if inside and len(inside) < len(block):
        notes.append(
            f"{told(inside)} of block {span(block)} {'is' if len(inside) == 1 else 'are'} left out, but training left"
            f" out the whole block or nothing of it; skip all of {span(block)}, or none"
        )
    lost = [(whole, [layer for layer in outside if layer in whole])
            for whole in blocks(config, range(config.num_hidden_layers))]  # fmt: skip
    what = [f"block {span(whole)}" if len(gone) == len(whole) else f"{told(gone)} of block {span(whole)}"
            for whole, gone in lost if gone]  # fmt: skip
    if what:
        is_one = len(what) == 1 and (len(outside) == 1 or what[0].startswith("block"))
        rule = f"only {told(block)} may go without loss of training" if block else "its parent needs all its layers"
        notes.append(
            f"{' and '.join(what)} {'is' if is_one else 'are'} left out, which training never did; {rule}: train the"
            " slice further, or keep them"
        )
    return notes


def is_gemma_3n(config: TextConfig) -> bool:
    """Whether the training is known, and not taken for granted."""
    return config.hidden_size == GEMMA_3N_DIM


def told(layers: Sequence[int]) -> str:
    """Layers by number, runs of them by their ends: ``layers 4, 9, 20-24``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(map(span, runs))}"


def span(run: Sequence[int]) -> str:
    """A run of layers by its ends."""
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
