# SPDX-License-Identifier: Apache-2.0
"""How well a model says what the assistant said in conversations it was not trained on, as a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from model.processor.processor import Processor
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.data.config import LongRows
from trainer.data.supervise import Limits, Maker, TokenRow
from trainer.evaluation.calibration import calibration_error
from trainer.evaluation.engine import Engine, RowScore
from trainer.evaluation.metric import Metric, Values, ratio, share
from trainer.evaluation.task import batches_of, digests_of, fingerprint_of, modalities_of, told_apart
from trainer.evaluation.task_config import MetricName, TaskConfig
from trainer.evaluation.task_rows import examples_of, longest_row

MOST_NATS = 700.0  # exp overflows a little above


def exp_ratio(sums: Float64[np.ndarray, "*axes parts"]) -> Float64[np.ndarray, "*axes"]:
    """Among how many tokens, all alike, the model seems to choose."""
    return np.asarray(np.exp(np.minimum(ratio(sums), MOST_NATS)))


def is_exact(values: Values) -> float:
    """Whether greedy decoding would say it all; ``held_out.score_batch`` says why."""
    return float(values["right"] == values["tokens"])


FIGURES: Mapping[MetricName, Metric] = MappingProxyType({
    MetricName.loss: Metric(
        name="loss", unit="nats per token", higher_is_better=False,
        parts=lambda values: (values["loss_sum"], values["tokens"]), finish=ratio,
    ),
    MetricName.perplexity: Metric(
        name="perplexity", unit="tokens", higher_is_better=False,
        parts=lambda values: (values["loss_sum"], values["tokens"]), finish=exp_ratio,
    ),
    MetricName.accuracy: share("accuracy", "share of answers", is_exact),
    MetricName.token_accuracy: Metric(
        name="token_accuracy", unit="share of tokens", higher_is_better=True,
        parts=lambda values: (values["right"], values["tokens"]), finish=ratio,
    ),
    MetricName.ece: calibration_error("ece", "gap of probability, by tokens", lambda values: values["bins"]),
    MetricName.agreement: Metric(
        name="agreement", unit="share of tokens", higher_is_better=True,
        parts=lambda values: (values["agreeing"], values["tokens"]), finish=ratio,
    ),
    MetricName.kl: Metric(
        name="kl", unit="nats per token", higher_is_better=False,
        parts=lambda values: (values["kl_sum"], values["tokens"]), finish=ratio,
    ),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeldOutTask:
    """Conversations and texts whose answers are looked at token by token; see ``task.Task`` for what it has."""

    name: str
    metrics: tuple[Metric, ...]
    fingerprint: str
    digests: tuple[str, ...]
    modalities: frozenset[Modality]
    items: tuple[str, ...]
    batches: tuple[range, ...]
    rows: Sequence[TokenRow]

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        """The sums over each row's supervised tokens."""
        scores = engine.score([self.rows[index] for index in batch], specs)
        return [[values_of(score) for score in of_spec] for of_spec in scores]


def values_of(score: RowScore) -> Values:
    """A score as JSON values; what is beside a reference only where there is one."""
    values: dict[str, Any] = {
        "loss_sum": score.loss_sum,
        "tokens": score.tokens,
        "right": score.right,
        "bins": [[one.tokens, one.confidence_sum, one.right] for one in score.bins],
    }
    if score.agreeing is not None:
        values |= {"agreeing": score.agreeing, "kl_sum": score.kl_sum}
    return values


def held_out_task(config: TaskConfig, processor: Processor, metrics: Sequence[MetricName]) -> HeldOutTask:
    """The task of a config of this kind.

    Raises:
        MatsliceError: Files or rows cannot be used, or there are none.
    """
    most = longest_row(config, processor)
    limits = Limits(max_length_tokens=most, long_rows=LongRows.refuse, remedy="max_length_tokens of the task")
    maker = Maker(processor, limits)
    rows = [row for example in examples_of(config) for row in maker.rows(example)]
    maker.finish()
    rows.sort(key=lambda row: len(row.ids))  # so that little is padding
    digests = digests_of([row] for row in rows)
    return HeldOutTask(
        name=config.name,
        metrics=tuple(FIGURES[metric] for metric in metrics),
        fingerprint=fingerprint_of({"kind": config.kind.value}, digests),
        digests=digests,
        modalities=modalities_of(rows),
        items=told_apart([row.where for row in rows]),
        batches=batches_of([1] * len(rows), config.batch_size),
        rows=rows,
    )
