# SPDX-License-Identifier: Apache-2.0
"""The training loop. What it does in a step, and in which order, is stated in ``Trainer.fit``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from model.adapter.lora import PeftModel
from model.errors import DivergenceError
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceSpec
from trainer.checkpoint import Run
from trainer.config import TrainerConfig
from trainer.curve import CURVE_FILE, draw_loss_curve
from trainer.data.ahead import Ahead
from trainer.data.batch import Batch
from trainer.data.loader import Loader
from trainer.data.supervise import TokenRow
from trainer.elastic import SliceSampler
from trainer.evaluation.held_out import Score, score_batches, total
from trainer.metrics import Clock, Record, StepFigures, Window
from trainer.runtime import rows_per_step
from trainer.schedule import Schedule
from trainer.sinks import METRICS_FILE, Sink, read_records
from trainer.soft_tokens import SharedTowers
from trainer.state import TrainState
from trainer.step import SupervisedLoss
from trainer.weights import Weights

NUM_SHOWN = 5  # parameters and rows named when a run has to stop


@dataclass(kw_only=True)
class Trainer:
    """Everything a run is made of, finished; ``fit`` lets time pass.

    Args:
        model: Its parameters that require a gradient are those of ``optimizer``.
        validation: Rows to measure on; may be empty.
        evaluated: The sub-models to measure.
        sinks: Where figures go; empty in every process but the first.
        towers: The model's, where rows have media: frozen ones run once for all specs of a step.
        workers: Threads that make micro-batches ahead.
    """

    config: TrainerConfig
    accelerator: Accelerator
    model: Gemma3n | PeftModel
    weights: Weights
    optimizer: Optimizer
    schedule: Schedule
    sampler: SliceSampler
    loader: Loader
    validation: Sequence[TokenRow]
    evaluated: Sequence[SliceSpec]
    run: Run
    sinks: Sequence[Sink]
    towers: SharedTowers | None = None
    workers: int = 0
    window: Window = field(default_factory=Window, init=False)
    clock: Clock = field(default_factory=Clock, init=False)
    batches: Ahead[Batch] = field(init=False)

    def __post_init__(self) -> None:
        process = self.accelerator.process_index
        self.batches = Ahead(
            lambda position: self.loader.batch(position, process=process), stride=self.rows_per_micro_batch,
            end=self.config.max_steps * self.rows_per_step, workers=self.workers,
        )  # fmt: skip

    def fit(self) -> TrainState:
        """Train until ``config.max_steps``, from the beginning or from where the run stopped.

        Raises:
            DivergenceError: A gradient is not finite; neither weights nor optimizer have been touched by it.
            CheckpointError: The run cannot be resumed.
        """
        try:
            self.model.to(self.accelerator.device)
            state = self.run.load(self.optimizer, self.weights)
            # Every process gets the first one's weights, and the model is wrapped where there are several. The
            # optimizer stays as it is: it knows the parameters, which wrapping does not replace.
            prepared: nn.Module = self.accelerator.prepare(SupervisedLoss(self.model))
            prepared.train()
            self.clock = Clock(first_step=state.step)
            while state.step < self.config.max_steps:
                self.advance(prepared, state)
        finally:
            self.batches.close()
            for sink in self.sinks:
                sink.close()
            self.run.close()
        if self.accelerator.is_main_process:
            draw_loss_curve(read_records(self.run.directory / METRICS_FILE), self.run.directory / CURVE_FILE)
        self.accelerator.wait_for_everyone()
        return state

    def advance(self, prepared: nn.Module, state: TrainState) -> None:
        """One optimizer step and what follows it.

        The order of operations; every line is the same in all processes:

        1. draw the step's specs, from (seed, step)
        2. gather its micro-batches, count its supervised tokens over all processes
        3. forward and backward for every micro-batch and spec; gradients are exchanged in the last one
        4. measure the global norm of the gradient and clip it; stop if it is not finite
        5. set the learning rate of this step, move the weights, drop the gradients
        6. count the step
        7. log, evaluate, save; whatever is saved has been logged, so a resumed run repeats no half window
        """
        self.window.start()
        specs = self.sampler.at(state.step)
        batches = self.gather(state.position)
        tokens, supervised = self.total(sum(b.tokens for b in batches), sum(b.supervised_tokens for b in batches))
        sums = self.accumulate(prepared, batches, specs, supervised_tokens=int(supervised))
        norm = self.clip(state, specs)
        learning_rate = self.schedule.at(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.position += self.rows_per_step
        state.tokens += int(tokens)
        state.supervised_tokens += int(supervised)
        figures = StepFigures(
            loss_sums=dict(zip((spec.name for spec in specs), self.total(*sums), strict=True)),
            supervised_tokens=int(supervised), tokens=int(tokens), gradient_norm=norm, learning_rate=learning_rate,
        )  # fmt: skip
        self.window.add(figures)
        for sink in self.sinks:
            sink.tick(state.step, figures.loss)
        self.follow_up(state, figures)

    @property
    def rows_per_step(self) -> int:
        """Rows that all processes take from the loader in one step."""
        return rows_per_step(self.config, self.accelerator)

    @property
    def rows_per_micro_batch(self) -> int:
        """Rows that all processes take from the loader for one micro-batch of each."""
        return self.loader.batch_size * self.accelerator.num_processes

    def positions(self, position: int) -> range:
        """Where the micro-batches of the step that begins at ``position`` begin."""
        return range(position, position + self.rows_per_step, self.rows_per_micro_batch)

    def gather(self, position: int) -> list[Batch]:
        """This process's micro-batches of a step; they wait outside the device, where pixels would crowd it."""
        return [self.batches(start) for start in self.positions(position)]

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all processes, in float64: exact for counts."""
        if self.accelerator.num_processes == 1:
            return list(numbers)
        here = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        reduced = self.accelerator.reduce(here, reduction="sum")
        assert isinstance(reduced, torch.Tensor)
        return reduced.tolist()

    def accumulate(
        self, prepared: nn.Module, batches: Sequence[Batch], specs: Sequence[SliceSpec], *, supervised_tokens: int
    ) -> list[float]:
        """Add the gradient of the step's loss; return this process's loss sum for each spec.

        The step's loss is the mean over its supervised tokens, of all micro-batches and processes, and over its
        specs. Each backward follows its forward, so that only one set of activations is alive at a time.
        """
        # Distributed training averages gradients over processes; the loss is a sum over them.
        scale = self.accelerator.num_processes / (supervised_tokens * len(specs))
        sums = [torch.zeros((), device=self.accelerator.device) for _ in specs]
        for number, waiting in enumerate(batches, start=1):
            batch = waiting.to(self.accelerator.device)
            encoded = batch if self.towers is None else self.towers.encode(batch)
            for index, spec in enumerate(specs):
                last = number == len(batches) and index == len(specs) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(prepared):
                    loss_sum = prepared(encoded.inputs, encoded.labels, spec)
                    # Not Accelerate's: it divides by a number of micro-batches it takes from the environment.
                    (loss_sum * scale).backward()
                sums[index] += loss_sum.detach()
        return [total.item() for total in sums]

    def clip(self, state: TrainState, specs: Sequence[SliceSpec]) -> float:
        """Scale the gradient down to the largest norm allowed; return the norm it had."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        # Before clipping: scaling by a norm that is not finite would spoil every gradient, and hide the culprit.
        if not math.isfinite(norm.item()):
            raise DivergenceError(self.describe_divergence(norm.item(), state, specs))
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return norm.item()

    def describe_divergence(self, norm: float, state: TrainState, specs: Sequence[SliceSpec]) -> str:
        """Where a gradient is not finite, and what to do."""
        names = [n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        processes = range(self.accelerator.num_processes)
        rows = [
            row for at in self.positions(state.position) for i in processes for row in self.loader.take(at, process=i)
        ]
        return (
            f"step {state.step + 1}: the gradient's norm is {norm} (specs: {', '.join(spec.name for spec in specs)};"
            f" parameters: {shortened(names)}); weights and optimizer are as after step {state.step}."
            " Lower optim.learning_rate or trainer.max_grad_norm and begin anew, or look at the rows of this step:"
            f" {shortened([row.where for row in rows])}"
        )

    def follow_up(self, state: TrainState, figures: StepFigures) -> None:
        """Log, evaluate and save where it is time to."""
        step, last = state.step, state.step == self.config.max_steps
        save = last or is_due(step, self.config.save_every)
        if save or is_due(step, self.config.log_every):
            self.report(self.window.record(
                step=step, epoch=self.loader.epoch(state.position), last=figures, device=self.accelerator.device,
                eta_seconds=self.clock.seconds_left(step, self.config.max_steps),
            ))  # fmt: skip
            self.window = Window()
        if last or is_due(step, self.config.eval_every):
            for spec, score in zip(self.evaluated, self.evaluate(), strict=True) if self.validation else ():
                self.report(validation_record(score, spec, step=step))
        if save:
            self.run.save(state, self.optimizer, self.weights)

    def evaluate(self) -> list[Score]:
        """The score of the validation rows under each spec that is to be measured; each process takes its share."""
        mine = self.validation[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = score_batches(
            self.model, mine, self.evaluated, collator=self.loader.collator, towers=self.towers, workers=self.workers,
            batch_size=self.config.eval_batch_size or self.config.batch_size,
        )  # fmt: skip
        return [self.over_processes(score) for score in total(batches, self.evaluated)]

    def over_processes(self, score: Score) -> Score:
        """The sum of what the processes measured."""
        loss_sum, *counts = self.total(score.loss_sum, score.supervised_tokens, score.exact, score.examples)
        supervised_tokens, exact, examples = map(int, counts)
        return Score(loss_sum=loss_sum, supervised_tokens=supervised_tokens, exact=exact, examples=examples)

    def report(self, record: Record) -> None:
        """Tell every sink."""
        for sink in self.sinks:
            sink.write(record)


def is_due(step: int, every: int | None) -> bool:
    """Whether something done every so many steps is done after ``step``."""
    return every is not None and step % every == 0


def validation_record(score: Score, spec: SliceSpec, *, step: int) -> Record:
    """A score as a record."""
    return {
        "kind": "validation",
        "step": step,
        "spec": spec.name,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
        "examples": score.examples,
    }


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
