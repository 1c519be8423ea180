# SPDX-License-Identifier: Apache-2.0
"""What a model answers, compared with what was to be answered; prompts of text, images and sound.

A row is a conversation in any of the formats of training, and its last turn, the assistant's, is what is to be
answered. Where a row lists "answers", any of them is accepted; a last turn of the assistant's is then not read.

    {"messages": [{"role": "user", "content": "What is it? <image_soft_token>"}], "images": ["a.png"],
     "answers": ["a cat", "a kitten"]}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.errors import InputError
from model.generation.sampling import SamplingConfig
from model.processor.chat import Message, Role
from model.processor.processor import Processor
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.data.example import Example
from trainer.data.faults import Fault, raise_faults
from trainer.data.formats.known import check_columns, in_their_words
from trainer.data.supervise import TokenRow
from trainer.evaluation.comparing import COMPARE, FIGURES, fault_of, form_of
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Metric, Values
from trainer.evaluation.question import strings
from trainer.evaluation.task import batches_of, digests_of, fingerprint_of, modalities_of, told_apart
from trainer.evaluation.task_config import MetricName, TaskConfig
from trainer.evaluation.task_rows import RawRow, conversation_of, raw_rows

ANSWERS = "answers"


@dataclass(frozen=True, eq=False)
class Item:
    """A prompt, of which no token is supervised, and the answers that are accepted."""

    prompt: TokenRow
    accepted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Prompts that are answered greedily; see ``task.Task`` for what it has.

    Args:
        sampling: How many tokens an answer may have.
        stop_ids: What ends one.
        normalise: Whether texts are made plain before they are compared.
    """

    name: str
    metrics: tuple[Metric, ...]
    fingerprint: str
    digests: tuple[str, ...]
    modalities: frozenset[Modality]
    items: tuple[str, ...]
    batches: tuple[range, ...]
    prompts: Sequence[Item]
    sampling: SamplingConfig
    stop_ids: frozenset[int]
    normalise: bool

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        """What each sub-model answers, and how that compares under each metric.

        Raises:
            InputError: A medium cannot be decoded; the row it is in is named.
        """
        asked = [self.prompts[index] for index in batch]
        inputs = engine.prompts_of([item.prompt for item in asked])
        found = engine.generate(inputs, specs, sampling=self.sampling, stop_ids=self.stop_ids)
        return [[self.compared(text, item) for text, item in zip(texts, asked, strict=True)] for texts in found]

    def compared(self, answer: str, item: Item) -> Values:
        """An answer with what is found of it."""
        values: dict[str, Any] = {"answer": answer}
        for name in (MetricName(metric.name) for metric in self.metrics):
            values[name] = COMPARE[name](answer, item.accepted, form_of(name, normalise=self.normalise))
        return values


def generation_task(config: TaskConfig, processor: Processor, metrics: Sequence[MetricName]) -> GenerationTask:
    """The task of a config of this kind.

    Raises:
        MatsliceError: Files or rows cannot be used, or there are none.
    """
    columns = {ours: theirs for ours, theirs in config.columns.items() if ours != ANSWERS}
    check_columns(columns, config.format, "columns")
    given = raw_rows(config)
    faults: list[Fault] = []
    items: list[Item] = []
    for row in given:
        try:
            items.append(item_of(row, config, processor, metrics))
        except InputError as error:
            faults.append(Fault(row.where, in_their_words(str(error), config.columns)))
    raise_faults(faults, total=len(given))
    items.sort(key=lambda item: len(item.prompt.ids))  # so that little is padding
    tokenizer, asked = processor.tokenizer, config.generation
    stop_ids = frozenset({tokenizer.end_of_turn_id, *processor.config.text.eos_token_id})
    settings = {
        "kind": config.kind.value,
        "max_new_tokens": asked.max_new_tokens,
        "normalise": asked.normalise,
        "accepted": [item.accepted for item in items],
        "stop_ids": sorted(stop_ids),
        "tokenizer": tokenizer.fingerprint,  # what is answered is read by it
    }
    prompts = [item.prompt for item in items]
    digests = digests_of([prompt] for prompt in prompts)
    return GenerationTask(
        name=config.name,
        metrics=tuple(FIGURES[metric] for metric in metrics),
        fingerprint=fingerprint_of(settings, digests),
        digests=digests,
        modalities=modalities_of(prompts),
        items=told_apart([prompt.where for prompt in prompts]),
        batches=batches_of([1] * len(items), config.batch_size),
        prompts=items,
        sampling=SamplingConfig(max_new_tokens=asked.max_new_tokens),
        stop_ids=stop_ids,
        normalise=asked.normalise,
    )


def item_of(row: RawRow, config: TaskConfig, processor: Processor, metrics: Sequence[MetricName]) -> Item:
    """The prompt of a row and what is accepted.

    Raises:
        InputError: Something is wrong with a field, as ``field: found …; expected …``.
    """
    example = example_of(row, config)
    *before, last = example.messages
    if ANSWERS in row.fields:
        where, accepted = ANSWERS, strings(row.fields[ANSWERS], ANSWERS)
        if not accepted:
            raise InputError(f"{ANSWERS}: found an empty list; expected at least one text")
    else:
        where, accepted = example.field, (last.text.strip(),)
        if last.role is not Role.assistant or not accepted[0]:
            raise InputError(
                f"{where}: found no answer in the last turn, which is by {last.role}; expected the assistant's, or"
                f" '{ANSWERS}' in the row"
            )
    for metric in metrics:
        if wrong := fault_of(metric, accepted, form_of(metric, normalise=config.generation.normalise)):
            raise InputError(f"{where}: {wrong}")
    asked = before if last.role is Role.assistant else example.messages
    try:
        prompt = prompt_row(asked, row.where, processor)
    except InputError as error:
        raise InputError(f"{example.field}: {error}") from None
    positions, answer = processor.config.text.max_position_embeddings, config.generation.max_new_tokens
    most = min(config.max_length_tokens, positions - answer)
    if len(prompt.ids) > most:
        limit = f"the model has {positions} positions, and generation.max_new_tokens takes {answer}"
        raise InputError(
            f"{example.field}: found {len(prompt.ids)} tokens; expected at most {most}"
            f" ({'max_length_tokens' if most == config.max_length_tokens else limit})"
        )
    return Item(prompt, accepted)


def example_of(row: RawRow, config: TaskConfig) -> Example:
    """The conversation of a row; raises as ``item_of``."""
    if ANSWERS not in row.fields:
        return conversation_of(row, config.format)
    # What is accepted stands elsewhere, so there need be no completion, nor a turn of the assistant's.
    with_completion = dataclasses.replace(row, fields={"completion": ANSWERS} | row.fields)
    return conversation_of(with_completion, config.format, (Role.user, Role.assistant))


def prompt_row(messages: Sequence[Message], where: str, processor: Processor) -> TokenRow:
    """What is asked, up to where the assistant's next words go; its media are looked at.

    Raises:
        InputError: It is no conversation that can be answered, or has media that cannot be used.
    """
    rendered = processor.render(messages, add_generation_prompt=True)
    for picture in rendered.pictures:
        picture.check()
    ids = torch.tensor(processor.tokenizer.encode(rendered.text), dtype=torch.int64)
    return TokenRow(ids, torch.zeros(len(ids), dtype=torch.bool), where, rendered.pictures, rendered.recordings)
