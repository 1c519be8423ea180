# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-evaluation-harness among our own: it makes the prompts and judges the answers, our engine answers.

So sub-models share what they have in common, and the items are resampled as those of other tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError, InputError, MatsliceError
from model.processor.processor import Processor
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Metric, Values
from trainer.evaluation.task import DIGEST_LENGTH, batches_of
from trainer.harness.chat import Chat
from trainer.harness.config import HarnessConfig
from trainer.harness.encoding import Encoding, longest_first
from trainer.harness.generation import Usual
from trainer.harness.judging import judging_of
from trainer.harness.library import document_hash, first_line, load_tasks, seeded_alike
from trainer.harness.metrics import PLAIN, keys_of, metrics_of, refuse_unknown
from trainer.harness.requests import Answer, Asking, Request, Requests, hash_of, in_turn


@dataclass(frozen=True, eq=False)
class Item:
    """A document of a task: what the harness asks of it, and that as tokens, each as often as it is repeated."""

    where: str
    document: Any
    instances: tuple[Any, ...]
    requests: tuple[Request, ...]

    @property
    def length(self) -> int:
        """Of its longest sequence of tokens."""
        return max(request.length for request in self.requests)

    @property
    def weight(self) -> int:
        """The sequences that it is."""
        return sum(request.weight for request in self.requests)


@dataclass(frozen=True, kw_only=True)
class HarnessTask:
    """A task of lm-evaluation-harness; see ``trainer.evaluation.task.Task`` for what it has.

    Args:
        theirs: The harness's own.
        documents: What it asks of, in the order of measuring.
        stop_ids: What ends an answer, beside what the task says.
        batch_size: Sequences that the model reads at once.
    """

    name: str
    metrics: tuple[Metric, ...]
    fingerprint: str
    digests: tuple[str, ...]
    items: tuple[str, ...]
    batches: tuple[range, ...]
    theirs: Any
    documents: Sequence[Item]
    stop_ids: frozenset[int]
    batch_size: int
    modalities: frozenset[Modality] = frozenset()

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        """Of each item what the harness's metrics say of it, and what was answered."""
        items = [self.documents[index] for index in batch]
        asking = Asking(engine=engine, stop_ids=self.stop_ids, batch_size=self.batch_size)
        found: list[list[Values]] = []
        for answers in asking.answers([request for item in items for request in item.requests], specs):
            coming = iter(answers)
            found.append([self.judged(item, [next(coming) for _ in item.requests]) for item in items])
        return found

    def judged(self, item: Item, answers: Sequence[Answer]) -> Values:
        """What an item's answers are worth, by every filter of answers that the task has.

        Raises:
            InputError: The task's own functions fail.
        """
        coming = iter(answers)
        asked = [
            dataclasses.replace(one, resps=[next(coming) for _ in range(one.repeats or 1)], filtered_resps={})
            for one in item.instances
        ]
        metrics: dict[str, Any] = {}
        try:
            for ensemble in filters_of(self.theirs):
                ensemble.apply(asked)
                kept = ensemble.name
                judged = self.theirs.process_results(item.document, [one.filtered_resps[kept] for one in asked])
                for name, value in judged.items():
                    metrics[name if kept == PLAIN else f"{name},{kept}"] = as_json(value)
        except MatsliceError:
            raise
        except Exception as error:  # functions of the task run here, of which anything can come
            raise InputError(
                f"{item.where}: the task cannot judge an answer ({type(error).__name__}: {first_line(error)})"
            ) from error
        return {"metrics": metrics, "answers": as_json(answers)}


def harness_tasks(
    names: Sequence[str], config: HarnessConfig, processor: Processor, *, checkpoint: Path | None = None
) -> list[HarnessTask]:
    """The tasks of names, each one or those of a group or a tag, all made ready before a model is loaded.

    Args:
        names: As the harness has them, or YAML files of tasks.
        config: How they are asked.
        processor: The checkpoint's: its tokenizer and chat template, and how long a text the model reads.
        checkpoint: Where it says what ends an answer; None: the model's own ends, and that of a turn.

    Raises:
        ConfigError: The harness is absent, has no such task, asks for what cannot be done here, or has no such metric.
        InputError: A task's data cannot be had or asked.
    """
    if not names:
        return []
    text = processor.config.text
    encoding = Encoding(
        tokenizer=processor.tokenizer,
        max_length=config.length_in(text.max_position_embeddings),
        add_bos=config.add_bos_token,
    )
    own = Usual(stop_ids=frozenset({processor.tokenizer.end_of_turn_id, *text.eos_token_id}))
    usual = own if checkpoint is None else Usual.read(checkpoint, processor.tokenizer, text)
    requests = Requests(encoding=encoding, usual=usual, seed=config.generation_seed)
    loaded: list[Any] = []
    for name in names:
        with seeded_alike():
            loaded += load_tasks(name, config.include_path)
    refuse_unknown(config.metrics, {label_of(one): keys_of(list(one.aggregation()), names_of(one)) for one in loaded})
    found = []
    for theirs in loaded:
        with seeded_alike():  # what is asked does not depend on the other tasks
            found.append(ready(theirs, config, requests))
    return found


def ready(theirs: Any, config: HarnessConfig, requests: Requests) -> HarnessTask:
    """One task, its documents asked."""
    label = label_of(theirs)
    refuse_unfit(theirs, label)
    chosen = metrics_of(theirs, names_of(theirs), config.metrics, label)
    set_fewshot(theirs, config)
    documents = documents_of(theirs, config, requests, label)
    order = longest_first([document.length for document in documents])
    documents = [documents[place] for place in order]
    tokenizer = requests.encoding.tokenizer
    settings = {
        "task": theirs.task_name, "version": str(theirs.VERSION), "judged": judging_of(theirs),
        "metrics": [[metric.name, metric.unit, metric.higher_is_better] for metric in chosen],
        "num_fewshot": theirs.get_config("num_fewshot"), "tokenizer": tokenizer.fingerprint,
        "chat_template": Chat.of(tokenizer).text if config.apply_chat_template else None,
        "stop_ids": sorted(requests.usual.stop_ids),
        "documents": [document_hash(one.document) for one in documents],
        "targets": [str(theirs.doc_to_target(one.document)) for one in documents],
    }  # fmt: skip
    return HarnessTask(
        name=f"lm_eval.{theirs.task_name}",
        metrics=chosen,
        fingerprint=hash_of(settings, (request for one in documents for request in one.requests)),
        digests=tuple(hash_of({}, one.requests)[:DIGEST_LENGTH] for one in documents),
        items=tuple(one.where for one in documents),
        batches=batches_of([one.weight for one in documents], config.batch_size),
        theirs=theirs,
        documents=documents,
        stop_ids=requests.usual.stop_ids,
        batch_size=config.batch_size,
    )


def refuse_unfit(theirs: Any, label: str) -> None:
    """Raise ConfigError for a task that runs what models write, or shows them media."""
    if getattr(theirs, "UNSAFE_CODE", False):
        raise ConfigError(
            f"{label}: runs programs that the model writes, which is not done here; run it by 'matslice lm_eval' with"
            " --confirm_run_unsafe_code, where nothing can be harmed"
        )
    if getattr(theirs, "MULTIMODAL", False):
        raise ConfigError(f"{label}: shows images or plays sound, which are not passed on yet; leave it out")


def set_fewshot(theirs: Any, config: HarnessConfig) -> None:
    """How many examples there are, by the harness's own rule: a task that says none gets none."""
    own = theirs.get_config("num_fewshot")
    if own is None or (config.num_fewshot is not None and own != 0):
        theirs.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    theirs.set_fewshot_seed(seed=config.fewshot_seed)


def documents_of(theirs: Any, config: HarnessConfig, requests: Requests, label: str) -> list[Item]:
    """What the task asks of each of its documents, in their order."""
    tokenizer = requests.encoding.tokenizer
    chat = Chat.of(tokenizer)

    def written(messages: Any, add_generation_prompt: bool = True) -> str:  # noqa: FBT001 as the harness calls it
        return chat.write(messages, add_generation_prompt=add_generation_prompt)

    try:
        theirs.build_all_requests(
            limit=config.limit, rank=0, world_size=1, system_instruction=config.system_instruction,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.fewshot_as_multiturn and config.apply_chat_template,
            chat_template=written if config.apply_chat_template else None,
            tokenizer_name=tokenizer.fingerprint if config.apply_chat_template else "",
        )  # fmt: skip
    except MatsliceError:
        raise
    except Exception as error:  # templates and functions of the task run here, of which anything can come
        raise InputError(
            f"{label}: its prompts cannot be made ({type(error).__name__}: {first_line(error)}); look at the task's"
            " file, and at what its data holds"
        ) from error
    by_document: dict[int, list[Any]] = {}
    for instance in theirs.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    items = [item_of(f"{label}:{number}", asked, requests) for number, asked in by_document.items()]
    coming = iter(in_turn(request for item in items for request in item.requests))
    return [dataclasses.replace(item, requests=tuple(next(coming) for _ in item.requests)) for item in items]


def item_of(where: str, asked: Sequence[Any], requests: Requests) -> Item:
    """One document."""
    instances = tuple(sorted(asked, key=lambda one: one.idx))
    made = [requests.of(one.request_type, one.args, where) for one in instances]
    repeated = [request for one, request in zip(instances, made, strict=True) for _ in range(one.repeats or 1)]
    return Item(where, instances[0].doc, instances, tuple(repeated))


def filters_of(theirs: Any) -> Sequence[Any]:
    """What a task makes of answers before they are judged; the harness has no public name for it."""
    return vars(theirs)["_filters"]


def label_of(theirs: Any) -> str:
    """What messages call a task."""
    return f"lm_eval:{theirs.task_name}"


def names_of(theirs: Any) -> list[str]:
    """The names of its filters of answers."""
    return [ensemble.name for ensemble in filters_of(theirs)]


def as_json(value: Any) -> Any:
    """A value of the harness's metrics without types of NumPy's."""
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
