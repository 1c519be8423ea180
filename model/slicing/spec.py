# SPDX-License-Identifier: Apache-2.0
"""The sub-model as a value: what a person writes (``SliceConfig``) and what code relies on (``SliceSpec``).

MatFormer nests smaller feed-forward networks inside a larger one: the first ``w`` neurons of every
layer are a layer of width ``w``. Gemma 3n adds whole layers that may be left out. A spec says which
layers stay and how wide each is. Source: MatFormer, arXiv 2310.07707; the published Gemma 3n slices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeGuard

from model.config import TextConfig
from model.errors import SliceError, counted

FILE_NAME = re.compile(r"\w[\w.-]*")  # names become those of files and directories
Shape = tuple[tuple[int, ...], tuple[int, ...]]  # of a sub-model: its layers and their widths


@dataclass(kw_only=True, slots=True)
class SliceConfig:
    """A wished-for sub-model, as written in ``conf/slice/*.yaml``.

    ``ffn_widths`` holds one width per kept layer, one width for all of them, or nothing (every layer
    keeps its parent's width). Instead of layers and widths, a row of a table may be named; what stands
    there is put in by ``model.slicing.table.written_in``.
    """

    name: str
    skip_layers: list[int] = field(default_factory=list)  # by index in the parent, ascending
    ffn_widths: list[int] = field(default_factory=list)  # one per kept layer, or one for all; none = the parent's
    csv: str | None = None  # file of slices in Google's CSV schema; null = Google's own table
    row: str | None = None  # name of a row of csv, instead of skip_layers and ffn_widths


@dataclass(frozen=True)
class SliceSpec:
    """Which part of a parent model a sub-model is: complete, checked against the parent, hashable.

    ``kept_layers`` are indices in the parent, ascending; ``ffn_widths[i]`` is how many leading
    feed-forward neurons of layer ``kept_layers[i]`` stay.
    """

    name: str
    kept_layers: tuple[int, ...]
    ffn_widths: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """What it is, whatever its name: of one parent, sub-models of the same shape are the same."""
        return self.kept_layers, self.ffn_widths

    @classmethod
    def full(cls, config: TextConfig) -> SliceSpec:
        """The parent itself: every layer at its full width."""
        return cls("full", tuple(range(config.num_hidden_layers)), config.intermediate_size)

    @classmethod
    def resolve(cls, written: SliceConfig, config: TextConfig) -> SliceSpec:
        """Turn what a person wrote into a complete, checked description of a part of ``config``.

        Raises:
            SliceError: The name is none for a file, the layers or widths do not fit the parent, a layer is
                skipped whose keys and values a kept layer reads, or a row is named that was not put in.
        """
        check_name(written.name)
        where, layers = f"slice '{written.name}'", config.num_hidden_layers
        if (written.csv, written.row) != (None, None):
            raise SliceError(
                f"{where}: csv is {written.csv!r} and row {written.row!r}, but a row's layers and widths are put in"
                " first; resolve what model.slicing.table.written_in makes of it"
            )
        skipped = check_skips(where, written.skip_layers)
        if unknown := [layer for layer in skipped if layer >= layers]:
            raise SliceError(
                f"{where}: skip_layers has {unknown}, but the parent has layers 0 to {layers - 1}; leave out what is"
                " not there"
            )
        kept = tuple(layer for layer in range(layers) if layer not in skipped)
        if not kept:
            raise SliceError(f"{where}: skip_layers leaves no layer; keep at least one")
        widths = tuple(written.ffn_widths)
        if len(widths) == 1:
            widths *= len(kept)
        elif not widths:
            widths = tuple(config.intermediate_size[layer] for layer in kept)
        if len(widths) != len(kept):
            hint = " (leave out those of skipped layers)" if len(widths) == layers else ""
            raise SliceError(
                f"{where}: {len(widths)} ffn_widths for {counted(len(kept), 'kept layer')};"
                f" give one per kept layer, or a single width for all{hint}"
            )
        for layer, width in zip(kept, widths, strict=True):
            check_width(where, layer, width, widest=config.intermediate_size[layer])
        spec = cls(written.name, kept, widths)
        spec.check(config)
        return spec

    def check(self, config: TextConfig) -> None:
        """Raise SliceError where this is not a part of ``config`` that can compute anything."""
        self.check_layers(config.num_hidden_layers)
        for layer, width in zip(self.kept_layers, self.ffn_widths, strict=True):
            check_width(f"slice '{self.name}'", layer, width, widest=config.intermediate_size[layer])
        kept = frozenset(self.kept_layers)
        for reader in self.kept_layers:
            producer, kind = config.kv_producer(reader), config.layer_types[reader]
            if producer not in kept:
                raise SliceError(
                    f"slice '{self.name}': layer {producer} is skipped, but layer {reader} ({kind}) reads its keys"
                    f" and values; keep {producer}, or skip every {kind} layer from {config.first_shared_layer} on"
                )

    def check_layers(self, num_layers: int) -> None:
        """Raise SliceError unless the kept layers are some of the parent's, in order, each with one width."""
        kept = self.kept_layers
        if odd := [layer for layer in kept if not is_whole(layer)]:
            raise SliceError(
                f"slice '{self.name}': kept_layers has {odd[0]!r}; layers are whole numbers from 0 on;"
                f" write {whole(odd[0], least=0)}"
            )
        if not kept or list(kept) != sorted(set(kept)):
            raise SliceError(f"slice '{self.name}': kept_layers is {list(kept)}; it must be ascending, with no repeats")
        if kept[0] < 0 or kept[-1] >= num_layers:
            raise SliceError(
                f"slice '{self.name}': keeps layers {kept[0]} to {kept[-1]}, but this model has layers"
                f" 0 to {num_layers - 1}; resolve the slice for this model"
            )
        if len(self.ffn_widths) != len(kept):
            raise SliceError(
                f"slice '{self.name}': {len(self.ffn_widths)} widths for {len(kept)} kept layers; give one each"
            )

    def then(self, second: SliceSpec) -> SliceSpec:
        """The description, in this spec's parent, of the part ``second`` of this sub-model.

        Raises:
            SliceError: ``second`` has layers or neurons that this sub-model does not have.
        """
        second.check_layers(len(self.kept_layers))
        for layer, width in zip(second.kept_layers, second.ffn_widths, strict=True):
            check_width(f"slice '{second.name}'", layer, width, widest=self.ffn_widths[layer])
        return SliceSpec(second.name, tuple(self.kept_layers[i] for i in second.kept_layers), second.ffn_widths)

    def is_full(self, config: TextConfig) -> bool:
        """Whether this keeps everything of ``config``."""
        return len(self.kept_layers) == config.num_hidden_layers and self.ffn_widths == config.intermediate_size


def check_name(name: str) -> None:
    """Raise SliceError unless files can bear a sub-model's name wherever they are put."""
    if not FILE_NAME.fullmatch(name):
        better = re.sub(r"[^\w.-]+", "_", name).strip("_.-")
        raise SliceError(
            f"slice: name is {name!r}; it must be of letters, digits and _, with . and - behind the first;"
            f" write slice.name={better or 'mine'}"
        )


def check_skips(where: str, skipped: Sequence[object]) -> tuple[int, ...]:
    """Skipped layers as they are written, if layers can be named like that; ``where`` they stand is told if not.

    Raises:
        SliceError: One is no whole number, or negative, or stands twice, or they are not in ascending order.
    """
    for place, layer in enumerate(skipped):
        if not is_whole(layer):
            raise SliceError(
                f"{where}: skip_layers[{place}] is {layer!r}; layers are whole numbers from 0 on;"
                f" write {whole(layer, least=0)}"
            )
    layers = [layer for layer in skipped if is_whole(layer)]
    if negative := [layer for layer in layers if layer < 0]:
        raise SliceError(
            f"{where}: skip_layers has {negative}, but layers are numbered from 0 on, and not from the end;"
            " write their numbers in the parent"
        )
    ordered = sorted(set(layers))
    remedy = f"write skip_layers=[{','.join(map(str, ordered))}]"
    if twice := [layer for layer in ordered if layers.count(layer) > 1]:
        raise SliceError(f"{where}: skip_layers has {twice} more than once; name each layer once: {remedy}")
    if layers != ordered:
        behind = next(later for earlier, later in pairwise(layers) if later < earlier)
        raise SliceError(
            f"{where}: skip_layers has {behind} behind a later layer; layers stand in ascending order: {remedy}"
        )
    return tuple(layers)


def check_width(where: str, layer: int, width: object, *, widest: int) -> None:
    """Raise SliceError unless ``layer``, of ``widest`` neurons in the parent, can be cut to ``width``."""
    if not is_whole(width):
        rule, remedy = "widths are whole numbers", f"write {whole(width, least=1)}"
    elif width < 1:
        rule = f"its parent has 1 to {widest}"
        remedy = "to leave the layer out, name it in skip_layers and give no width for it"
    elif width > widest:
        rule, remedy = f"its parent has 1 to {widest}", f"ask for {widest} or less"
    else:
        return
    raise SliceError(f"{where}: layer {layer} asks for width {width!r}; {rule}; {remedy}")


def is_whole(number: object) -> TypeGuard[int]:
    """Whether this is a whole number, as true and 3.0 are not."""
    return isinstance(number, int) and not isinstance(number, bool)


def whole(found: object, *, least: int) -> str:
    """What to write for something that is no whole number: that number, if it is as good as one."""
    if isinstance(found, float) and found.is_integer() and found >= least:
        return str(int(found))
    return "a whole number"
