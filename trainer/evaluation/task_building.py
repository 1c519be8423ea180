# SPDX-License-Identifier: Apache-2.0
"""From what a user says about a task to the task: its rows read, checked and made ready before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import ConfigError, InputError
from model.processor.processor import Processor
from trainer.evaluation.generation_task import generation_task
from trainer.evaluation.held_out_task import held_out_task
from trainer.evaluation.multiple_choice import multiple_choice_task
from trainer.evaluation.task import Task
from trainer.evaluation.task_config import TaskConfig, TaskKind

BUILDERS = {
    TaskKind.held_out: held_out_task,
    TaskKind.multiple_choice: multiple_choice_task,
    TaskKind.generation: generation_task,
}


def build_tasks(configs: Sequence[TaskConfig], processor: Processor, *, has_reference: bool) -> list[Task]:
    """The tasks of some configs, in order.

    Args:
        configs: What the user says.
        processor: That of the model.
        has_reference: Whether sub-models are compared with one of them, as some metrics are.

    Raises:
        ConfigError: There are none, two have one name, or a metric cannot be had; the task is named.
        InputError: Files or rows cannot be used; the task and the rows are named.
    """
    if not configs:
        raise ConfigError("tasks is empty; name at least one, as conf/task has them")
    names = [config.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"tasks: two are called '{twice}'; give each a name of its own, results are told apart by it")
    return [build_task(config, processor, has_reference=has_reference) for config in configs]


def build_task(config: TaskConfig, processor: Processor, *, has_reference: bool) -> Task:
    """The task of a config; arguments and errors are those of ``build_tasks``."""
    metrics = config.chosen_metrics(has_reference=has_reference)
    try:
        return BUILDERS[config.kind](config, processor, metrics)
    except (ConfigError, InputError) as error:
        raise type(error)(f"{config.label}: {error}") from None
