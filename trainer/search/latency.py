# SPDX-License-Identifier: Apache-2.0
"""Latency as a sum over layers: what each layer takes at each of its widths, measured on the model and machine at hand.

Layers are timed where they are, inside runs of whole sub-models, so caches are as warm as they will be. Runs of
different widths take turns, so that a machine that slows down slows all of them. Looking at the clock around every
layer takes time itself, and makes an accelerator wait: the same runs, timed only as wholes, say what is left without.
A sum of medians is near what a whole sub-model takes, not equal to it: ``seconds_of`` measures that, and has the last
word.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.kv_cache import KVCache
from model.slicing.plan import check_context
from model.slicing.spec import SliceSpec
from trainer.search.cost import NANOSECONDS, Costs, Resource
from trainer.search.space import Space

FINENESS = 20_000  # steps of the dearest cost: finer differences than that are noise, and slow the exact knapsack


@dataclass(kw_only=True, slots=True)
class LatencyConfig:
    """What is timed.

    Raises:
        ConfigError: A number is below its least.
    """

    context_tokens: int = 512  # that a run begins behind; 0 = none
    new_tokens: int = 1  # of a run: 1 decodes one token, more take in so many at once
    batch_size: int = 1  # sequences side by side
    repeats: int = 15  # runs of which the median is taken

    def __post_init__(self) -> None:
        least = {"context_tokens": 0, "new_tokens": 1, "batch_size": 1, "repeats": 3}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ConfigError(f"latency.{name} is {getattr(self, name)}; it must be at least {number}")


@dataclass(frozen=True)
class Stopwatch:
    """Runs sub-models of a model and takes the time.

    Args:
        model: In the memory of the device that is to be timed.
        written: What a run is.
        clock: Says what time it is, in seconds.

    Raises:
        ConfigError: The model cannot have such a context.
    """

    model: Gemma3n
    written: LatencyConfig
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        check_context(self.model.config.text, self.written.context_tokens + self.written.new_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def run(self, spec: SliceSpec) -> Callable[[], float]:
        """A function that runs a sub-model once and says how many seconds that took."""
        past = None
        if self.written.context_tokens:
            past = KVCache.empty(self.written.batch_size, self.device)
            past = self.forward(self.inputs(self.written.context_tokens), spec, past)
        inputs = self.inputs(self.written.new_tokens)

        def timed() -> float:
            self.wait()
            begun = self.clock()
            self.forward(inputs, spec, past)
            self.wait()
            return self.clock() - begun

        return timed

    @torch.no_grad()
    def forward(self, inputs: Inputs, spec: SliceSpec, past: KVCache | None) -> KVCache | None:
        """One run: layers, and scores of the last token."""
        hidden, cache = self.model.hidden(inputs, spec, cache=past)
        self.model.head(hidden[:, -1])
        return cache

    def inputs(self, tokens: int) -> Inputs:
        """So many tokens; which ones does not matter to the time."""
        ids = torch.arange(tokens, device=self.device) % self.model.config.text.vocab_size_per_layer_input
        ids = ids.expand(self.written.batch_size, tokens).contiguous()
        return Inputs(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))

    def wait(self) -> None:
        """Until the device has done all it was given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, specs: Sequence[SliceSpec]) -> list[float]:
        """The median of each sub-model's runs; they take turns."""
        was_training = self.model.training
        self.model.eval()
        runs = [self.run(spec) for spec in specs]
        for run in runs:
            run()  # warm
        times = [[run() for run in runs] for _ in range(self.written.repeats)]
        self.model.train(was_training)
        return [statistics.median(column) for column in zip(*times, strict=True)]

    def nanoseconds_of(self, spec: SliceSpec) -> int:
        """What a whole sub-model takes, as budgets of latency are."""
        return round(self.seconds_of([spec])[0] * NANOSECONDS)

    def layer_seconds(self, specs: Sequence[SliceSpec]) -> tuple[list[float], list[dict[int, float]]]:
        """The median of each sub-model's runs, and the part in them of each of its layers."""
        was_training = self.model.training
        self.model.eval()
        runs = [self.run(spec) for spec in specs]
        wholes: list[list[float]] = [[] for _ in specs]
        shares: list[dict[int, list[float]]] = [{layer: [] for layer in spec.kept_layers} for spec in specs]
        for run in runs:
            run()  # warm
        for _ in range(self.written.repeats):
            for run, whole, of_layers in zip(runs, wholes, shares, strict=True):
                whole.append(run())
                with self.timed_layers() as taken:
                    seconds = run()
                for layer, in_layer in taken.items():
                    of_layers[layer].append(in_layer / seconds)
        self.model.train(was_training)
        medians = [statistics.median(whole) for whole in wholes]
        return medians, [
            {layer: median * statistics.median(parts) for layer, parts in of_layers.items()}
            for median, of_layers in zip(medians, shares, strict=True)
        ]

    @contextmanager
    def timed_layers(self) -> Iterator[dict[int, float]]:
        """While it lasts, how long each layer took in the run at hand, by number."""
        taken: dict[int, float] = {}
        begun: dict[int, float] = {}
        hooks = []

        def before(number: int) -> Callable[..., None]:
            def note(*_: Any) -> None:
                self.wait()
                begun[number] = self.clock()

            return note

        def after(number: int) -> Callable[..., None]:
            def note(*_: Any) -> None:
                self.wait()
                taken[number] = self.clock() - begun[number]

            return note

        decoder: nn.Module = self.model.model.language_model
        for number, layer in enumerate(decoder.get_submodule("layers").children()):
            hooks += [layer.register_forward_pre_hook(before(number)), layer.register_forward_hook(after(number))]
        try:
            yield taken
        finally:
            for hook in hooks:
                hook.remove()


def latency_costs(space: Space, watch: Stopwatch) -> Costs:
    """What each choice takes, from runs in which all groups make theirs at once.

    What runs take besides their layers is the constant. All is rounded to small steps of the dearest cost.
    """
    most = max(space.top)
    points = [
        tuple(min(step + group.may_be_skipped, top) for group, top in zip(space.groups, space.top, strict=True))
        for step in range(most + 1)
    ]
    points = list(dict.fromkeys(points))
    wholes, layers = watch.layer_seconds([space.spec(point) for point in points])
    taken: dict[tuple[int, int], float] = {}  # by group and choice; the least noisy is the first with that choice
    for point, of_layers in zip(points, layers, strict=True):
        for number, (group, choice) in enumerate(zip(space.groups, point, strict=True)):
            taken.setdefault((number, choice), sum(of_layers[layer] for layer in group.layers))
    rest = statistics.median(whole - sum(of_layers.values()) for whole, of_layers in zip(wholes, layers, strict=True))
    step = max(1, round(max(wholes) * NANOSECONDS / FINENESS))

    def rounded(seconds: float) -> int:
        return round(seconds * NANOSECONDS / step) * step

    table = tuple(
        tuple(
            0 if group.may_be_skipped and choice == 0 else rounded(taken[number, choice])
            for choice in range(len(group.choices))
        )
        for number, group in enumerate(space.groups)
    )
    return Costs(Resource.latency_seconds, space, rounded(rest), table)
