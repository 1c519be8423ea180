# SPDX-License-Identifier: Apache-2.0
"""Train a model, or an adapter on it. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from torch.optim import Optimizer

from model.adapter.lora import PeftModel, attach, describe_targets
from model.freezing import freeze
from model.gemma3n import Gemma3n
from recipes.build import build_cache, build_model
from recipes.program import start
from recipes.resume import CONFIG_FILE, complete, fork_source
from recipes.train_prepare import idle_training, prepare
from recipes.train_recipe import Prepared, TrainRecipe
from recipes.train_records import identity, start_record, written_out
from trainer.allocator import give_back
from trainer.checkpoint import Run, write_whole
from trainer.config import TrainerConfig
from trainer.data.collate import Collator
from trainer.loop import Trainer
from trainer.optim import build_optimizer
from trainer.optimizers.groups import describe_groups
from trainer.results import write_results
from trainer.runtime import rows_per_step
from trainer.runtime import start as start_processes
from trainer.sinks import METRICS_FILE, Sink, open_sinks, read_records
from trainer.soft_tokens import SharedTowers
from trainer.state import TrainState
from trainer.stopping import Ending
from trainer.summary import summarize, summary_table
from trainer.timing import nothing_left
from trainer.trained import WEIGHTS
from trainer.weights import Weights, adapter_weights, model_weights

GIVES = "the lowest validation loss (data.validation must be given)"


def run(recipe: TrainRecipe) -> float | None:
    """Train, and give the lowest validation loss, as trainer.monitor has it; None if no loss was measured.

    ``weights`` in the run's directory is always the newest. A run that a signal ended is saved, with status 143 or 130.
    """
    source, lineage = fork_source(recipe.resume) if recipe.resume is not None and recipe.fork else (None, None)
    prepared = prepare(recipe)
    may_leave_unused = prepared.sampler.may_skip_layers or prepared.trains_media
    accelerator = start_processes(prepared.trainer, may_leave_unused=may_leave_unused)
    if accelerator.device.type == "cpu":
        give_back()
    # Only the first process compares it with what is there.
    described = identity(recipe, prepared) if accelerator.is_main_process else {}
    directory = Run(
        prepared.trainer, described, accelerator=accelerator, told={"data.train": recipe.data.learnt_from},
        lineage=lineage,
    )  # fmt: skip
    if accelerator.is_main_process:
        write_whole(recipe.trainer.output / CONFIG_FILE, written_out(recipe))
    if is_at_its_end(recipe, prepared, directory):
        return directory.state.best_loss
    rows_of_step = rows_per_step(prepared.trainer, accelerator.num_processes)
    if accelerator.is_main_process:
        tell_what_is_trained(recipe, prepared, rows_of_step)
    sinks = open_sinks(prepared.trainer, directory, console=Console(stderr=True), settings=described)
    with closed_on_failure(sinks):
        gemma, model, weights = build_trained(recipe, prepared)
        if source is not None:
            weights.load(source)
        optimizer = build_optimizer(model, recipe.optim)
    if accelerator.is_main_process:
        tell_groups(optimizer)
    kept = recipe.data.soft_token_cache if prepared.has_media else None
    cache = build_cache(kept, gemma, prepared.processor, accelerator.device)
    if cache is not None:
        cache.digests.update(prepared.digests)
        prepared.loader.collator = Collator(prepared.processor.tokenizer.pad_id, prepared.processor, cache)
    begun = start_record(prepared, gemma, model, step=directory.resumed_step)
    begun["steps_per_epoch"] = prepared.steps_per_epoch(rows_of_step)
    for sink in sinks:
        sink.write(begun)
    trainer = Trainer(
        config=prepared.trainer, accelerator=accelerator, model=model, weights=weights, optimizer=optimizer,
        schedule=prepared.schedule,
        sampler=prepared.sampler,
        loader=prepared.loader,
        validation=[] if prepared.validation is None else prepared.validation.rows,
        evaluated=prepared.evaluated,
        run=directory,
        sinks=sinks,
        towers=SharedTowers(gemma, cache),
        workers=recipe.data.workers if prepared.has_media or gemma.per_layer_table is not None else 0,
        save_first=source is not None,
    )  # fmt: skip
    state = trainer.fit()
    if accelerator.is_main_process:
        tell_the_end(recipe, state, prepared.trainer, trainer.ending)
    if trainer.ending is not None and trainer.ending.signal is not None:
        sys.exit(128 + trainer.ending.signal)
    return state.best_loss


def tell_what_is_trained(recipe: TrainRecipe, prepared: Prepared, rows_of_step: int) -> None:
    """What has no row to learn from, rows that a step takes twice, and where the adapter sits, on the screen."""
    if told := rows_taken_again(prepared, rows_of_step):
        print(f"warning: {told}", file=sys.stderr)
    for modality in prepared.idle:
        print(f"warning: {idle_training(recipe, modality)}", file=sys.stderr)
    if recipe.adapter is not None:
        targets = describe_targets(Gemma3n.build(prepared.config, device="meta"), recipe.adapter)
        print("\n".join(targets), file=sys.stderr)


def rows_taken_again(prepared: Prepared, at_once: int) -> str | None:
    """That a step takes more packs than there are, so that it has the same rows several times; None if it does not."""
    packs, config = prepared.packs, prepared.trainer
    if packs is None or at_once <= (count := len(packs)):
        return None
    what = "rows" if packs.budget is None else f"packs (of {len(prepared.train.rows)} rows)"
    keys = "trainer.batch_size" + (" or trainer.gradient_accumulation" if config.gradient_accumulation > 1 else "")
    return (
        f"a step takes {at_once} {what}, but there are {count}, so it has all of them {at_once / count:.1f} times;"
        f" lower {keys}" + (", or set data.packing=false" if packs.budget is not None else "")
    )


def tell_the_end(recipe: TrainRecipe, state: TrainState, config: TrainerConfig, ending: Ending | None) -> None:
    """Where the weights are, what training made of every sub-model, and why it ended, on the screen."""
    kind = "adapter" if recipe.adapter else "model"
    print(f"{kind} after {state.step} steps: {config.output / WEIGHTS}")
    summary = summarize(read_records(config.output / METRICS_FILE))
    if summary.sizes:
        Console(stderr=True).print(summary_table(summary))
    if told := why_ended(ending, state, config):
        print(told, file=sys.stderr)


def tell_groups(optimizer: Optimizer) -> None:
    """Which parameters learn at which rate, on the screen, where not all do alike."""
    if len(optimizer.param_groups) > 1:
        print("\n".join(["optimizer:", *(f"  {line}" for line in describe_groups(optimizer))]), file=sys.stderr)


def is_at_its_end(recipe: TrainRecipe, prepared: Prepared, directory: Run) -> bool:
    """Whether a run that is resumed has nothing to do; if so, that and what it came to are told."""
    measures = prepared.validation is not None and len(prepared.validation.rows) > 0
    ended = nothing_left(directory.state, prepared.trainer, measures=measures)
    if directory.found is None or ended is None:
        return False
    directory.close()
    if directory.accelerator.is_main_process:
        write_results(directory.directory)
        tell_the_end(recipe, directory.state, prepared.trainer, ended)
        tell_nothing_left(directory.state, prepared.trainer, ended)
    return True


def tell_nothing_left(state: TrainState, config: TrainerConfig, ending: Ending) -> None:
    """That a resumed run is where it ends, and what goes on from there, on the screen; the rest is told anyway."""
    told = f"nothing left to do: {state.step} of {config.num_steps} steps are done"
    if ending is Ending.done:
        told += (
            ", and a run cannot get more of them, as its learning rates depend on how many there are; to train on from"
            f" its weights: matslice train resume={config.output} fork=true trainer.output=…"
        )
    print(told, file=sys.stderr)


def why_ended(ending: Ending | None, state: TrainState, config: TrainerConfig) -> str | None:
    """Why a run took fewer steps than it was to take, and what goes on with it."""
    go_on = f"matslice train resume={config.output}"
    match ending:
        case Ending.early:
            return (
                f"stopped early: the last {state.evaluations_without_gain} evaluations found no lower validation loss"
                f" than {state.loss_to_beat}; more patience: {go_on} trainer.early_stopping.patience=…"
            )
        case Ending.minutes:
            return f"stopped after {state.seconds / 60:.1f} minutes; more of them: {go_on} trainer.max_minutes=…"
        case Ending.sigint | Ending.sigterm:
            return f"stopped by {ending.upper()} after a checkpoint was written; {go_on}"
        case _:
            return None


def build_trained(recipe: TrainRecipe, prepared: Prepared) -> tuple[Gemma3n, Gemma3n | PeftModel, Weights]:
    """The model, the same with what is trained in it, and how that gets to disk and back."""
    precision, seed = recipe.trainer.precision, recipe.trainer.seed
    gemma = build_model(
        prepared.loaded, prepared.checkpoint, dtype=precision.dtype, seed=seed,
        per_layer_table=recipe.trainer.per_layer_table,
    )  # fmt: skip
    gemma.recompute = recipe.trainer.recompute
    gemma.attention = recipe.trainer.attention
    if recipe.trainer.compile:
        gemma.model.language_model.compile_layers()
    if recipe.adapter is None:
        freeze(gemma, recipe.freeze, recipe.freeze_matching)
        return gemma, gemma, model_weights(gemma, extras=prepared.processor.write)
    adapted = attach(gemma, recipe.adapter)
    return gemma, adapted, adapter_weights(adapted)


@contextmanager
def closed_on_failure(sinks: Sequence[Sink]) -> Iterator[None]:
    """Close what would otherwise be closed at the end of training, which is not going to be."""
    try:
        yield
    except BaseException:
        for sink in sinks:
            sink.close()
        raise


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("train", TrainRecipe, run, arguments, complete=complete, gives=GIVES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
