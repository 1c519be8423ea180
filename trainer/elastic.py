# SPDX-License-Identifier: Apache-2.0
"""Which sub-models a step trains: a pure function of (seed, step).

Every process draws the same without talking to the others, and a resumed run draws on as if nothing had
happened. Source: one sub-model per step is MatFormer (arXiv 2310.07707); smallest, largest and one
between is the sandwich rule of slimmable networks (arXiv 1903.05134).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from model.config import TextConfig
from model.errors import ConfigError
from model.slicing.count import Layout, count_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import written_in
from trainer.seeding import seeded


class ElasticPolicy(StrEnum):
    """Who trains in a step: the whole model, one sub-model drawn, or the smallest, the largest and one drawn."""

    off = "off"
    sample = "sample"
    sandwich = "sandwich"


@dataclass(kw_only=True, slots=True)
class ElasticConfig:
    """The sub-models that are trained, by name, and how often each is drawn.

    ``slices`` names every size that may be drawn, the full one included if it is to be. ``probabilities``
    gives a weight to each of those names, in any scale; empty means all alike. Without a policy nothing is drawn,
    and both are ignored.

    Raises:
        ConfigError: The names of the two do not match, or a weight cannot be drawn with.
    """

    policy: ElasticPolicy = ElasticPolicy.off
    slices: dict[str, SliceConfig] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy is ElasticPolicy.off:
            return
        if not self.slices:
            raise ConfigError(f"elastic.slices is empty, but elastic.policy is {self.policy}; name the sizes to train")
        if not self.probabilities:
            return
        if self.probabilities.keys() != self.slices.keys():
            raise ConfigError(
                f"elastic.probabilities names {sorted(self.probabilities)}, but elastic.slices has"
                f" {sorted(self.slices)}; give each of them a weight, or none"
            )
        weights = list(self.probabilities.values())
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise ConfigError(
                f"elastic.probabilities is {self.probabilities}; weights must not be negative, nor all of them 0"
            )


class SliceSampler:
    """Draws the specs of each step.

    Raises:
        SliceError: A slice does not fit the model.
        ConfigError: The only size is the full model, or a slice is listed under another name than its own.
    """

    def __init__(self, config: ElasticConfig, text: TextConfig, *, seed: int) -> None:
        self.policy = config.policy
        self.seed = seed
        if config.policy is ElasticPolicy.off:
            self.levels: tuple[SliceSpec, ...] = (SliceSpec.full(text),)
            self.weights = (1.0,)
        else:
            self.levels = tuple(named(key, written, text) for key, written in config.slices.items())
            if all(spec.is_full(text) for spec in self.levels):
                raise ConfigError(
                    f"elastic.policy is {config.policy}, but sizes has only {', '.join(map(repr, config.slices))}, the"
                    " whole model; give sizes=… with several, or elastic=off"
                )
            self.weights = tuple(config.probabilities.get(key, 1.0) for key in config.slices)
        shapes = text_shapes(text, Layout.used)
        by_size = sorted(self.levels, key=lambda spec: count_parameters(shapes.items(), SubModel(spec), text))
        self.smallest, self.largest = by_size[0], by_size[-1]
        self.may_skip_layers = any(len(spec.kept_layers) < text.num_hidden_layers for spec in self.levels)

    def at(self, step: int) -> tuple[SliceSpec, ...]:
        """The specs whose mean loss ``step`` lowers, each at most once."""
        if self.policy is ElasticPolicy.off:
            return self.levels
        drawn = self.draw(step)
        if self.policy is ElasticPolicy.sample:
            return (drawn,)
        return tuple(dict.fromkeys((self.largest, self.smallest, drawn)))

    def draw(self, step: int) -> SliceSpec:
        """The one level that chance gives ``step``."""
        return seeded("slice", self.seed, step).choices(self.levels, self.weights)[0]


def named(key: str, written: SliceConfig, text: TextConfig) -> SliceSpec:
    """The slice resolved; its name must be the key it is listed under."""
    if written.name != key:
        raise ConfigError(f"elastic.slices.{key} is named '{written.name}'; key and name must be the same")
    return SliceSpec.resolve(written_in(written), text)
