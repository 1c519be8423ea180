# SPDX-License-Identifier: Apache-2.0
"""What is worth knowing of a legal sub-model before it is cut: where it leaves what was trained.

Nothing here is refused. A sub-model may be meant to be trained further; then these notes say where that is needed.
Which points were trained is told by ``model.slicing.trained``, with its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.config import TextConfig
from model.slicing.spec import SliceSpec
from model.slicing.trained import blocks, optional_block, trained_widths

LANES = 16  # matrix units of GPUs work on 16-bit numbers in tiles of 16; NVIDIA, Matrix Multiplication Background


def advice(spec: SliceSpec, config: TextConfig) -> list[str]:
    """Notes on the part ``spec`` of ``config``, each a sentence without a full stop; none if all of it was trained."""
    widths = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    narrowed = {layer: width for layer, width in widths.items() if width < config.intermediate_size[layer]}
    return [
        *on_untrained_widths(narrowed, config),
        *on_the_optional_block(narrowed, config),
        *on_skipped_layers(spec, config),
        *on_uneven_widths(narrowed),
    ]


def on_untrained_widths(narrowed: dict[int, int], config: TextConfig) -> list[str]:
    """Narrowed layers at widths other than the two that Gemma 3n was trained at."""
    trained, block = trained_widths(config), optional_block(config)
    by_width: dict[int, list[int]] = {}
    for layer, width in narrowed.items():
        if width not in trained and layer not in block:
            by_width.setdefault(width, []).append(layer)
    small, large = trained
    return [
        f"width {width} of {told(layers)} was never trained: it is"
        f" {'below both' if width < small else 'between'} {small} and {large}, the widths of Gemma 3n's training;"
        f" ask for {small}{f' or {large}' if width > small else ''}, or train the slice further"
        for width, layers in sorted(by_width.items())
    ]


def on_the_optional_block(narrowed: dict[int, int], config: TextConfig) -> list[str]:
    """Layers that Gemma 3n's smaller size lacks, so that they were trained at their full width only."""
    block = optional_block(config)
    if not (layers := [layer for layer in narrowed if layer in block]):
        return []
    return [
        (
            f"{told(layers)} {'is' if len(layers) == 1 else 'are'} narrowed, but trained at full width only: the"
            f" smaller size of Gemma 3n leaves {told(block)} out; keep the full width there, or skip {told(block)}"
        )
    ]


def on_skipped_layers(spec: SliceSpec, config: TextConfig) -> list[str]:
    """Layers left out that training never left out: parts of the optional block, and all others."""
    block = optional_block(config)
    skipped = sorted(set(range(config.num_hidden_layers)) - set(spec.kept_layers))
    notes = []
    inside, outside = [layer for layer in skipped if layer in block], [layer for layer in skipped if layer not in block]
    if inside and len(inside) < len(block):
        notes.append(
            f"{told(inside)} of block {span(block)} {'is' if len(inside) == 1 else 'are'} left out, but training left"
            f" out the whole block or nothing of it; skip all of {span(block)}, or none"
        )
    for whole in blocks(config, range(config.num_hidden_layers)):
        if lost := [layer for layer in outside if layer in whole]:
            what = f"block {span(whole)} is" if len(lost) == len(whole) else (
                f"{told(lost)} of block {span(whole)} {'is' if len(lost) == 1 else 'are'}"
            )  # fmt: skip
            rule = f"only {told(block)} may go without loss of training" if block else "its parent needs all its layers"
            notes.append(f"{what} left out, which training never did; {rule}: train the slice further, or keep them")
    return notes


def on_uneven_widths(narrowed: dict[int, int]) -> list[str]:
    """Widths that matrix units cannot divide into whole tiles."""
    by_width: dict[int, list[int]] = {}
    for layer, width in narrowed.items():
        if width % LANES:
            by_width.setdefault(width, []).append(layer)
    return [
        f"width {width} of {told(layers)} is no multiple of {LANES}, which accelerators compute more slowly; ask for"
        f" {width - width % LANES or LANES}"
        for width, layers in sorted(by_width.items())
    ]


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
