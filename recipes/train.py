# SPDX-License-Identifier: Apache-2.0
"""Train a model, or an adapter on it. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from model.adapter.lora import PeftModel, attach
from model.freezing import freeze
from model.gemma3n import Gemma3n
from recipes.build import build_cache, build_model
from recipes.program import start
from recipes.train_prepare import idle_training, prepare
from recipes.train_recipe import Prepared, TrainRecipe
from recipes.train_records import identity, start_record, written_out
from trainer.checkpoint import WEIGHTS, Run, write_whole
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.loop import Trainer
from trainer.optim import build_optimizer
from trainer.runtime import rows_per_step
from trainer.runtime import start as start_processes
from trainer.sinks import Sink, open_sinks
from trainer.soft_tokens import SharedTowers
from trainer.weights import Weights, adapter_weights, model_weights

CONFIG_FILE = "config.yaml"  # in the directory of the run


def run(recipe: TrainRecipe) -> None:
    """Train; the newest weights are always in ``weights`` in the run's directory."""
    prepared = prepare(recipe)
    may_leave_unused = prepared.sampler.may_skip_layers or prepared.trains_media
    accelerator = start_processes(recipe.trainer, may_leave_unused=may_leave_unused)
    # Only the first process compares it with what is there.
    described = identity(recipe, prepared) if accelerator.is_main_process else {}
    directory = Run(
        recipe.trainer, described, accelerator=accelerator, told={"data.train": ", ".join(recipe.data.train)}
    )
    if accelerator.is_main_process:
        write_whole(recipe.trainer.output / CONFIG_FILE, written_out(recipe))
        for modality in prepared.idle:
            print(f"warning: {idle_training(recipe, modality)}", file=sys.stderr)
    sinks = open_sinks(recipe.trainer, directory, console=Console(stderr=True), settings=described)
    with closed_on_failure(sinks):
        gemma, model, weights = build_trained(recipe, prepared)
    kept = recipe.data.soft_token_cache if prepared.has_media else None
    cache = build_cache(kept, gemma, prepared.processor, accelerator.device)
    if cache is not None:
        cache.digests.update(prepared.digests)
    begun = start_record(prepared, gemma, model, step=directory.resumed_step)
    begun["steps_per_epoch"] = begun["train_rows"] / rows_per_step(recipe.trainer, accelerator)
    for sink in sinks:
        sink.write(begun)
    state = Trainer(
        config=recipe.trainer,
        accelerator=accelerator,
        model=model,
        weights=weights,
        optimizer=build_optimizer(model, recipe.optim),
        schedule=prepared.schedule,
        sampler=prepared.sampler,
        loader=Loader(
            prepared.train.rows, batch_size=recipe.trainer.batch_size, seed=recipe.trainer.seed,
            collator=Collator(prepared.processor.tokenizer.pad_id, prepared.processor, cache),
            shuffle=recipe.data.shuffle,
        ),
        validation=[] if prepared.validation is None else prepared.validation.rows,
        evaluated=prepared.evaluated,
        run=directory,
        sinks=sinks,
        towers=SharedTowers(gemma, cache),
        workers=recipe.data.workers if prepared.has_media else 0,
    ).fit()  # fmt: skip
    if accelerator.is_main_process:
        kind = "adapter" if recipe.adapter else "model"
        print(f"{kind} after {state.step} steps: {directory.directory / WEIGHTS}")


def build_trained(recipe: TrainRecipe, prepared: Prepared) -> tuple[Gemma3n, Gemma3n | PeftModel, Weights]:
    """The model, the same with what is trained in it, and how that gets to disk and back."""
    precision, seed = recipe.trainer.precision, recipe.trainer.seed
    gemma = build_model(prepared.loaded, prepared.checkpoint, dtype=precision.dtype, seed=seed)
    gemma.recompute = recipe.trainer.recompute
    if recipe.adapter is None:
        freeze(gemma, recipe.freeze)
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
    return start("train", TrainRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
