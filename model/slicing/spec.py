# SPDX-License-Identifier: Apache-2.0
"""The sub-model as a value: what a person writes (``SliceConfig``) and what code relies on (``SliceSpec``).

MatFormer nests smaller feed-forward networks inside a larger one: the first ``w`` neurons of every
layer are a layer of width ``w``. Gemma 3n adds whole layers that may be left out. A spec says which
layers stay and how wide each is. Source: MatFormer, arXiv 2310.07707; the published Gemma 3n slices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.config import TextConfig
from model.errors import SliceError


@dataclass(kw_only=True, slots=True)
class SliceConfig:
    """A wished-for sub-model, as written in ``conf/slice/*.yaml``.

    ``ffn_widths`` holds one width per kept layer, one width for all of them, or nothing (every layer
    keeps its parent's width).
    """

    name: str
    skip_layers: list[int] = field(default_factory=list)
    ffn_widths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SliceSpec:
    """Which part of a parent model a sub-model is: complete, checked against the parent, hashable.

    ``kept_layers`` are indices in the parent, ascending; ``ffn_widths[i]`` is how many leading
    feed-forward neurons of layer ``kept_layers[i]`` stay.
    """

    name: str
    kept_layers: tuple[int, ...]
    ffn_widths: tuple[int, ...]

    @classmethod
    def full(cls, config: TextConfig) -> SliceSpec:
        """The parent itself: every layer at its full width."""
        return cls("full", tuple(range(config.num_hidden_layers)), config.intermediate_size)

    @classmethod
    def resolve(cls, written: SliceConfig, config: TextConfig) -> SliceSpec:
        """Turn what a person wrote into a complete, checked description of a part of ``config``.

        Raises:
            SliceError: The layers or widths do not fit the parent, or a layer is skipped whose keys
                and values a kept layer reads.
        """
        name, layers = written.name, config.num_hidden_layers
        skipped = set(written.skip_layers)
        if unknown := sorted(skipped - set(range(layers))):
            raise SliceError(f"slice '{name}': skip_layers has {unknown}, but the parent has layers 0 to {layers - 1}")
        kept = tuple(layer for layer in range(layers) if layer not in skipped)
        if not kept:
            raise SliceError(f"slice '{name}': skip_layers leaves no layer; keep at least one")
        widths = tuple(written.ffn_widths)
        if len(widths) == 1:
            widths *= len(kept)
        elif not widths:
            widths = tuple(config.intermediate_size[layer] for layer in kept)
        if len(widths) != len(kept):
            raise SliceError(
                f"slice '{name}': {len(widths)} ffn_widths for {len(kept)} kept layers;"
                " give one per kept layer, or a single width for all"
            )
        spec = cls(name, kept, widths)
        spec.check(config)
        return spec

    def check(self, config: TextConfig) -> None:
        """Raise SliceError where this is not a part of ``config`` that can compute anything."""
        self.check_layers(config.num_hidden_layers)
        for layer, width in zip(self.kept_layers, self.ffn_widths, strict=True):
            if not isinstance(width, int) or not 0 < width <= config.intermediate_size[layer]:
                raise SliceError(
                    f"slice '{self.name}': layer {layer} asks for width {width};"
                    f" its parent has 1 to {config.intermediate_size[layer]}"
                )
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
        """The description, in this spec's parent, of the part ``second`` of this sub-model."""
        return SliceSpec(second.name, tuple(self.kept_layers[i] for i in second.kept_layers), second.ffn_widths)

    def is_full(self, config: TextConfig) -> bool:
        """Whether this keeps everything of ``config``."""
        return len(self.kept_layers) == config.num_hidden_layers and self.ffn_widths == config.intermediate_size
