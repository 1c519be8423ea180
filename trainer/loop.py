# SPDX-License-Identifier: Apache-2.0
"""The training loop. What it does in a step, and in which order, is stated in ``Trainer.fit``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from model.adapter.lora import PeftModel, base_of
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceSpec
from trainer.average import Average
from trainer.checkpoint import Run
from trainer.config import TrainerConfig
from trainer.data.ahead import Ahead, with_table_rows
from trainer.data.batch import Batch
from trainer.data.loader import Batches
from trainer.data.supervise import TokenRow
from trainer.divergence import Divergence
from trainer.elastic import SliceSampler
from trainer.evaluation.held_out import Score, score_batches, total
from trainer.gradients import Gradients, PlainGradients
from trainer.metrics import Clock, Record, StepFigures, Window
from trainer.optimizers.groups import set_learning_rate
from trainer.reach import Reach, media_of_rows
from trainer.results import write_results
from trainer.runtime import is_resharded_after_forward, is_sharded, is_zero, rows_per_step
from trainer.schedule import Schedule
from trainer.sharding import Sharding, shard
from trainer.sinks import Sink
from trainer.soft_tokens import SharedTowers
from trainer.state import TrainState
from trainer.step import SupervisedLoss
from trainer.stopping import Ending, Requests
from trainer.timing import is_due, is_evaluated, lacks_evaluation, why_end
from trainer.trained import Trained
from trainer.weights import Weights
from trainer.zero import Zero, divide_states
from trainer.zero_config import zero_config


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
        save_first: Write a checkpoint of a new run before its first step, as a fork has to, whose weights are
            nowhere else.
    """

    config: TrainerConfig
    accelerator: Accelerator
    model: Gemma3n | PeftModel
    weights: Weights
    optimizer: Optimizer
    schedule: Schedule
    sampler: SliceSampler
    loader: Batches
    validation: Sequence[TokenRow]
    evaluated: Sequence[SliceSpec]
    run: Run
    sinks: Sequence[Sink]
    towers: SharedTowers | None = None
    workers: int = 0
    save_first: bool = False
    window: Window = field(default_factory=Window, init=False)
    clock: Clock = field(default_factory=Clock, init=False)
    batches: Ahead[Batch] = field(init=False)
    requests: Requests = field(default_factory=Requests, init=False)
    ending: Ending | None = field(default=None, init=False)  # why the run came to an end for now
    sharding: Sharding | None = field(default=None, init=False)  # how the model is divided up, if it is
    zero: Zero | None = field(default=None, init=False)  # how the optimizer's states alone are divided up, if they are
    gradients: Gradients = field(init=False)
    trained: Trained = field(init=False)
    reach: Reach = field(init=False)

    def __post_init__(self) -> None:
        self.gradients = PlainGradients(self.accelerator, self.optimizer)
        process, table = self.accelerator.process_index, base_of(self.model).per_layer_table
        self.batches = Ahead(
            lambda position: with_table_rows(self.loader.batch(position, process=process), table),
            stride=self.rows_per_micro_batch, end=self.config.num_steps * self.rows_per_step, workers=self.workers,
        )  # fmt: skip

    def fit(self) -> TrainState:
        """Train until the run ends, from the beginning or from where it stopped; ``ending`` says why it ended.

        From the first step on, SIGTERM and SIGINT let the step at hand be finished and saved.

        Raises:
            DivergenceError: A loss or gradient is not finite; neither weights nor optimizer have been touched by it.
            CheckpointError: The run cannot be resumed, or a checkpoint cannot be written.
            ConfigError: Something that is trained has no gradient.
            KeyboardInterrupt: SIGINT came once more.
        """
        try:
            prepared = self.prepared()
            prepared.train()
            self.trained = self.all_that_is_trained()
            self.reach = Reach(self.trained.parameters, self.gradients.has)
            state = self.run.load(self.trained)
            self.loader.go_on_from(state.stream)
            if self.save_first and self.run.found is None:
                self.run.save(state, self.trained)
            self.clock = Clock(first_step=state.step)
            with self.requests.listening():
                self.advance_to_the_end(prepared, state)
        finally:
            self.loader.close()  # first: what makes batches may be waiting for rows
            self.batches.close()
            for sink in self.sinks:
                sink.close()
            self.run.close()
        if self.accelerator.is_main_process and (self.ending is None or self.ending.signal is None):
            write_results(self.run.directory)
        self.accelerator.wait_for_everyone()
        return state

    def prepared(self) -> nn.Module:
        """The model and its loss, with the first process's weights: whole in every process or, by FSDP2, divided up.

        By DeepSpeed's ZeRO, models are whole, and the optimizer's states divided up.
        """
        loss, device = SupervisedLoss(self.model, chunk_bytes=self.config.loss_chunk_bytes), self.accelerator.device
        if is_sharded():
            self.sharding = shard(loss, self.optimizer, device, reshard_after_forward=is_resharded_after_forward())
            self.gradients = PlainGradients(self.accelerator, self.optimizer, self.sharding)
            return loss
        if is_zero():
            told = zero_config(self.config, self.accelerator.num_processes)
            self.gradients = self.zero = divide_states(loss, self.optimizer, device, told)
            return self.zero.engine
        return self.accelerator.prepare(loss.to(device))

    def all_that_is_trained(self) -> Trained:
        """Weights, optimizer and average; to be made when the weights are where they are trained, and what they are."""
        parameters = {name: own for name, own in self.model.named_parameters() if own.requires_grad}
        average = None if self.config.average.decay is None else Average(parameters, self.config.average)
        return Trained(
            weights=self.weights, optimizer=self.optimizer, parameters=parameters, average=average,
            sharding=self.sharding, zero=self.zero,
        )  # fmt: skip

    def advance_to_the_end(self, prepared: nn.Module, state: TrainState) -> None:
        """Take steps until there is a reason not to."""
        if state.step == 0 and self.config.eval_before:
            self.measure(state)
        if self.validation and lacks_evaluation(state, self.config):
            self.measure(state)
            self.run.note(state)
        seconds_before, self.ending = state.seconds, why_end(state, self.config)
        while self.ending is None:
            self.advance(prepared, state, seconds_before=seconds_before)

    def advance(self, prepared: nn.Module, state: TrainState, *, seconds_before: float = 0.0) -> None:
        """One optimizer step and what follows it.

        The order of operations; every line is the same in all processes:

        1. draw the step's specs, from (seed, step)
        2. gather its micro-batches, count its supervised tokens over all processes
        3. forward and backward for every micro-batch and spec; gradients are exchanged in the last one
        4. add up losses over all processes; stop if one is not finite, or if something trained has no gradient
        5. measure the global norm of the gradient and clip it; stop if it is not finite
        6. set the learning rate of this step, move the weights and their average, drop the gradients
        7. count the step
        8. log, evaluate, save; whatever is saved has been logged, so a resumed run repeats no half window
        """
        self.window.start()
        specs = self.sampler.at(state.step)
        batches = self.gather(state.position)
        tokens, supervised = self.total(sum(b.tokens for b in batches), sum(b.supervised_tokens for b in batches))
        losses = self.accumulate(prepared, batches, specs, supervised_tokens=int(supervised))
        # What this process was asked to do is told to the others together with its losses.
        asked = [self.requests.has(Ending.sigint), self.requests.has(Ending.sigterm)]
        seconds = seconds_before + time.perf_counter() - self.clock.since
        *sums, interrupted, terminated, state.seconds = self.total(
            *losses.sum(dim=0).tolist(), *asked, seconds if self.accelerator.is_main_process else 0.0
        )  # fmt: skip
        if not all(map(math.isfinite, sums)):
            self.refuse_losses(losses, sums, state, specs)
        if self.sharding is not None:
            self.sharding.drop_idle(media_of_rows(self.rows_of_step(state.position)), self.total)
        self.reach.check(batches, specs)
        norm = self.clip(state, specs, sums)
        learning_rate = self.schedule.at(state.step)
        set_learning_rate(self.optimizer, learning_rate)
        self.gradients.step()
        state.step += 1
        state.position += self.rows_per_step
        state.stream = self.loader.state_at(state.position)
        state.tokens += int(tokens)
        state.supervised_tokens += int(supervised)
        if self.trained.average is not None:
            self.trained.average.update(state.step)
        figures = StepFigures(
            loss_sums=dict(zip((spec.name for spec in specs), sums, strict=True)),
            supervised_tokens=int(supervised), tokens=int(tokens), gradient_norm=norm, learning_rate=learning_rate,
        )  # fmt: skip
        self.window.add(figures)
        for sink in self.sinks:
            sink.tick(state.step, figures.loss)
        self.ending = Ending.sigterm if terminated else Ending.sigint if interrupted else why_end(state, self.config)
        self.follow_up(state, figures)

    @property
    def rows_per_step(self) -> int:
        """Rows that all processes take from the loader in one step."""
        return rows_per_step(self.config, self.accelerator.num_processes)

    @property
    def rows_per_micro_batch(self) -> int:
        """Rows that all processes take from the loader for one micro-batch of each."""
        return self.loader.batch_size * self.accelerator.num_processes

    def positions(self, position: int) -> range:
        """Where the micro-batches of the step that begins at ``position`` begin."""
        return range(position, position + self.rows_per_step, self.rows_per_micro_batch)

    def rows_of_step(self, position: int) -> list[TokenRow]:
        """The rows of a step, of all processes."""
        processes = range(self.accelerator.num_processes)
        return [row for at in self.positions(position) for i in processes for row in self.loader.take(at, process=i)]

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
    ) -> Float[Tensor, "micro_batches specs"]:
        """Add the gradient of the step's loss; return this process's loss sum for each micro-batch and spec.

        The step's loss is the mean over its supervised tokens, of all micro-batches and processes, and over its
        specs. Each backward follows its forward, so that only one set of activations is alive at a time.
        """
        # Distributed training averages gradients over processes; the loss is a sum over them.
        scale = self.accelerator.num_processes / (supervised_tokens * len(specs))
        losses: list[Tensor] = []
        for number, waiting in enumerate(batches, start=1):
            batch = waiting.to(self.accelerator.device)
            encoded = batch if self.towers is None else self.towers.encode(batch)
            for index, spec in enumerate(specs):
                last = number == len(batches) and index == len(specs) - 1
                with self.gradients.passing(prepared, last=last):
                    loss_sum = prepared(encoded.inputs, encoded.labels, spec)
                    self.gradients.backward(loss_sum * scale)
                losses.append(loss_sum.detach())
        # Looked at once, when all work is under way: each look waits for the device.
        return torch.stack(losses).float().cpu().double().view(len(batches), len(specs))

    def refuse_losses(
        self, losses: Float[Tensor, "micro_batches specs"], sums: Sequence[float], state: TrainState,
        specs: Sequence[SliceSpec],
    ) -> None:  # fmt: skip
        """Raise DivergenceError with the rows of the micro-batches whose loss is not finite, of any process."""
        count, process = self.accelerator.num_processes, self.accelerator.process_index
        found = torch.zeros(len(losses), count)
        found[:, process] = (~losses.isfinite().all(dim=1)).float()
        bad = self.total(*found.flatten().tolist())
        every = [(at, i) for at in self.positions(state.position) for i in range(count)]
        rows = [row.where for (at, i), is_bad in zip(every, bad, strict=True) if is_bad
                for row in self.loader.take(at, process=i)]  # fmt: skip
        self.diverge(Divergence(
            step=state.step + 1, specs=[spec.name for spec in specs], loss_sums=list(sums), gradient_norm=None,
            parameters=[], rows=rows,
        ))  # fmt: skip

    def clip(self, state: TrainState, specs: Sequence[SliceSpec], sums: Sequence[float]) -> float:
        """Scale the gradient down to the largest norm allowed; return the norm it had."""
        norm = self.gradients.norm()
        # Before clipping: scaling by a norm that is not finite would spoil every gradient, and hide the culprit.
        if not math.isfinite(norm.item()):
            names = self.gradients.not_finite(dict(self.model.named_parameters()))
            rows = [row.where for row in self.rows_of_step(state.position)]
            self.diverge(Divergence(
                step=state.step + 1, specs=[spec.name for spec in specs], loss_sums=list(sums),
                gradient_norm=norm.item(), parameters=names, rows=rows,
            ))  # fmt: skip
        if self.config.max_grad_norm is not None:
            self.gradients.clip(norm, self.config.max_grad_norm)
        return norm.item()

    def diverge(self, found: Divergence) -> None:
        """Raise DivergenceError, and leave a file about it."""
        if self.accelerator.is_main_process:
            found.write(self.run.directory)
        raise found.error()

    def follow_up(self, state: TrainState, figures: StepFigures) -> None:
        """Log, evaluate and save where it is time to."""
        step = state.step
        # After a signal there may be little time: what is left out is made up for when the run goes on.
        measures = is_evaluated(state, self.config) and (self.ending is None or self.ending.signal is None)
        saves = self.ending is not None or is_due(step, self.config.save_every)
        if saves or (measures and self.may_end_or_save) or is_due(step, self.config.log_every):
            self.report(self.window.record(
                step=step, epoch=self.loader.epoch(state.position), last=figures, device=self.accelerator.device,
                eta_seconds=self.clock.seconds_left(step, self.config.num_steps),
            ))  # fmt: skip
            self.window = Window()
        if measures:
            self.measure(state)
            self.ending = self.ending or why_end(state, self.config)
        if saves or self.ending is not None or (self.config.keep_best and measures and state.best_step == step):
            self.run.save(state, self.trained)

    @property
    def may_end_or_save(self) -> bool:
        """Whether an evaluation may be followed by a checkpoint that was not due."""
        return self.config.keep_best or self.config.early_stopping.patience is not None

    def measure(self, state: TrainState) -> None:
        """Report the validation losses after this step, and let the state know what is best."""
        if not self.validation:
            return
        with self.trained.measured():
            found = self.evaluate() if self.sharding is None else self.sharding.within(self.evaluate)
        scores = dict(zip((spec.name for spec in self.evaluated), found, strict=True))
        for spec in self.evaluated:
            self.report(validation_record(scores[spec.name], spec, step=state.step))
        if state.step == 0:
            return  # what has not been trained is nothing to beat
        watched = [scores[self.config.monitor]] if self.config.monitor else list(scores.values())
        loss = sum(score.loss for score in watched) / len(watched)
        state.judge(loss, min_delta=self.config.early_stopping.min_delta)

    def evaluate(self) -> list[Score]:
        """The score of the validation rows under each spec that is to be measured; each process takes its share."""
        count, size = self.accelerator.num_processes, self.config.eval_batch_size or self.config.batch_size
        mine = self.validation[self.accelerator.process_index :: count]
        score = partial(
            score_batches, self.model, specs=self.evaluated, collator=self.loader.collator, towers=self.towers,
            batch_size=size,
        )  # fmt: skip
        found = total(score(mine, workers=self.workers), self.evaluated)
        if self.sharding is not None:  # processes of a divided model keep each other company to the last batch
            for _ in range(math.ceil(math.ceil(len(self.validation) / count) / size) - math.ceil(len(mine) / size)):
                list(score(self.validation[:1]))
        return [self.over_processes(score) for score in found]

    def over_processes(self, score: Score) -> Score:
        """The sum of what the processes measured."""
        loss_sum, *counts = self.total(score.loss_sum, score.supervised_tokens, score.exact, score.examples)
        supervised_tokens, exact, examples = map(int, counts)
        return Score(loss_sum=loss_sum, supervised_tokens=supervised_tokens, exact=exact, examples=examples)

    def report(self, record: Record) -> None:
        """Tell every sink."""
        for sink in self.sinks:
            sink.write(record)


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
