# SPDX-License-Identifier: Apache-2.0
"""The figures of tasks of lm-evaluation-harness that are functions of sums over items, as ours are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from model.errors import ConfigError
from trainer.evaluation.metric import Metric, Values, ratio

Sums = Float64[np.ndarray, "*axes parts"]
Figure = Float64[np.ndarray, "*axes"]
PLAIN = "none"  # the filter of answers that stay as they are
AGGREGATIONS = "lm_eval.api.metrics"  # the module of those that are known
LIKELIHOOD = "log-likelihood"


def perplexity(sums: Sums) -> Figure:
    """Of log-likelihoods, over what they count."""
    return np.asarray(np.exp(-ratio(sums)))


def bits(sums: Sums) -> Figure:
    """Likewise, in bits."""
    return np.asarray(-ratio(sums) / math.log(2))


def one(value: Any) -> tuple[float, ...]:
    """A value of an item counts once."""
    return float(value), 1.0


def weighted(value: Any) -> tuple[float, ...]:
    """A value with what it is over, as of a text its log-likelihood and its words."""
    return float(value[0]), float(value[1])


# By the harness's names of its aggregations: what an item adds, how the sums become the figure, and its unit.
KNOWN: Mapping[str, tuple[Callable[[Any], tuple[float, ...]], Callable[[Sums], Figure], str]] = MappingProxyType({
    "mean": (one, ratio, "mean over items"),
    "perplexity": (one, perplexity, "perplexity"),
    "weighted_perplexity": (weighted, perplexity, "perplexity"),
    "bits_per_byte": (weighted, bits, "bits per byte"),
})  # fmt: skip
SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"})  # 0 to 1, for each item


def parts_of(values: Values, *, key: str, parts: Callable[[Any], tuple[float, ...]]) -> tuple[float, ...]:
    """What an item adds to a figure; one that the harness found nothing of adds nothing."""
    found = values["metrics"].get(key)
    return (0.0, 0.0) if found is None else parts(found)


def keys_of(names: Sequence[str], filters: Sequence[str]) -> list[str]:
    """The figures of a task: of every filter of answers each metric, as in ``exact_match,strict-match``."""
    return [name if kept == PLAIN else f"{name},{kept}" for kept in filters for name in names]


def refuse_unknown(wanted: Sequence[str], known: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError if figures are wanted that no task has; ``known`` are those of tasks, by their labels."""
    every = {key for keys in known.values() for key in keys}
    if unknown := [key for key in wanted if key not in every]:
        told = "; ".join(f"{label} has {', '.join(keys)}" for label, keys in known.items())
        raise ConfigError(f"lm_eval: no task has a metric '{unknown[0]}' (metrics); {told}")


def metrics_of(task: Any, filters: Sequence[str], wanted: Sequence[str], label: str) -> tuple[Metric, ...]:
    """The figures of a task of the harness, or those of them that are wanted; all if it has none of these.

    Raises:
        ConfigError: One is no function of sums over items.
    """
    aggregations, higher = task.aggregation(), task.higher_is_better()
    all_of_them = {key: key.split(",")[0] for key in keys_of(list(aggregations), filters)}
    found = []
    for key in [key for key in wanted if key in all_of_them] or all_of_them:
        aggregation = aggregations[all_of_them[key]]
        name = getattr(aggregation, "__name__", repr(aggregation))
        if name not in KNOWN or getattr(aggregation, "__module__", "") != AGGREGATIONS:
            others = [one for one, plain in all_of_them.items() if aggregations[plain] is not aggregation]
            chosen = ",".join([*(one for one in wanted if one != key), *(one for one in others if one not in wanted)])
            remedy = f"choose others by metrics=[{chosen}]" if others else "leave the task out"
            raise ConfigError(
                f"{label}: its metric '{key}' is put together by '{name}', which is no mean over items, so there is"
                f" no interval of it here; {remedy}, or run the task by 'matslice lm_eval'"
            )
        parts, finish, unit = KNOWN[name]
        found.append(
            Metric(
                name=key, unit=unit, higher_is_better=bool(higher.get(all_of_them[key], True)),
                parts=partial(parts_of, key=key, parts=parts), finish=finish,
                bounds=(0.0, 1.0) if name == "mean" and all_of_them[key] in SHARES else None,
            )
        )  # fmt: skip
    return tuple(found)
