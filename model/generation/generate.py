# SPDX-License-Identifier: Apache-2.0
"""Going on with a text: read the prompt once, then one token at a time over the cached keys and values.

Prompts of a batch end together, so shorter ones are padded on the left. Each step equals a forward
pass over everything so far; the cache only saves work. Images and sound are in the prompt alone: their
keys and values are in the cache from then on, and what is said is text.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from model.config import ModelConfig
from model.errors import InputError
from model.generation.sampling import SamplingConfig, choose, without
from model.inputs import Inputs, Read
from model.layers.kv_cache import KVCache
from model.slicing.spec import SliceSpec


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, *, device: torch.device | str = "cpu") -> Inputs:
    """A batch of prompts of different lengths, ending together.

    Raises:
        InputError: There is no prompt, or one is empty.
    """
    if not prompts or not all(prompts):
        raise InputError("generate: a prompt has no tokens; every prompt needs at least one")
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = True
    return Inputs(ids=ids, mask=mask).to(device)


@torch.no_grad()
def generate(
    model: Any,
    inputs: Inputs,
    *,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    spec: SliceSpec | None = None,
    unsaid: Iterable[int] = (),
) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the next token of every row, step by step, until all rows have stopped or the limit is reached.

    A row that has yielded one of ``stop_ids`` yields padding from then on. Ids that belong to media are
    never yielded. While the generator runs, the model is in evaluation mode.

    Args:
        model: A ``Gemma3n``, or one with an adapter attached.
        inputs: Prompts, padded on the left (see ``pad_left``), with the media that stand in them.
        sampling: How a token is chosen, and how many there may be.
        stop_ids: What ends a row.
        spec: A part of the model; None is all of it.
        unsaid: Further ids that are not to be yielded, such as those of media whose towers are not loaded.

    Raises:
        InputError: A prompt is padded on the right, the text would outgrow the model's positions, or media
            and placeholders do not belong together.
    """
    check_prompts(inputs, sampling, model.config.text.max_position_embeddings)
    nothing = KVCache.empty(inputs.ids.shape[0], inputs.ids.device)
    with evaluating(model):
        yield from go_on(
            model, read(model, inputs, nothing, spec), sampling=sampling, stop_ids=stop_ids, spec=spec, unsaid=unsaid
        )


@torch.no_grad()
def go_on(
    model: Any,
    so_far: Read,
    *,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    spec: SliceSpec | None = None,
    unsaid: Iterable[int] = (),
    seeds: Sequence[int] = (),
) -> Generator[Int[Tensor, " batch"], None, None]:
    """Yield what ``generate`` does, where ``spec`` has read the prompts already; see ``Gemma3n.read_each``.

    The model is to be in evaluation mode, and the prompts such as ``check_prompts`` lets pass. With ``seeds``, one for
    each row, what is drawn for a row is the same in whatever batch it is; without, ``sampling.seed`` draws for all.
    """
    config, device = model.config.text, so_far.hidden.device
    never = torch.tensor([*ids_of_media(model.config), *unsaid], dtype=torch.long, device=device)
    random = [torch.Generator().manual_seed(seed) for seed in seeds or (sampling.seed,)]
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
    stopped = torch.zeros(len(so_far.hidden), dtype=torch.bool, device=device)
    for left in reversed(range(sampling.max_new_tokens)):
        scores = without(model.head(so_far.hidden), never)
        token = choose(scores, sampling, random).masked_fill(stopped, config.pad_token_id)
        yield token
        stopped = stopped | torch.isin(token, stops)
        if not left or bool(stopped.all()):
            return
        said = Inputs.of(token[:, None], ids_below=config.vocab_size_per_layer_input)  # see ``ids_of_media``
        so_far = read(model, said, so_far.cache, spec)


def read(model: Any, inputs: Inputs, before: KVCache, spec: SliceSpec | None) -> Read:
    """What a sub-model has read when it has read ``inputs`` too; of a long prompt only the last token is scored."""
    hidden, cache = model.hidden(inputs, spec, cache=before)
    return Read(hidden=hidden[:, -1], cache=cache)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A model in evaluation mode; it is left as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def ids_of_media(config: ModelConfig) -> list[int]:
    """The ids that are nothing to say: all behind the text's own, and the marks that open an item of a medium.

    Behind the text's ids a published table holds copies of the padding row, all of one score: of many
    copies sampling would take some far too often.
    """
    begins = [tower.tokens.begin_id for tower in (config.vision, config.audio) if tower is not None]
    return [*begins, *range(config.text.vocab_size_per_layer_input, config.text.vocab_size)]


def complete(
    model: Any,
    inputs: Inputs,
    *,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    spec: SliceSpec | None = None,
    unsaid: Iterable[int] = (),
) -> list[list[int]]:
    """The continuation of each prompt, up to and without the token that stopped it.

    Arguments and errors are those of ``generate``.
    """
    steps = generate(model, inputs, sampling=sampling, stop_ids=stop_ids, spec=spec, unsaid=unsaid)
    return said_in(steps, stop_ids)


def said_in(steps: Iterable[Int[Tensor, " batch"]], stop_ids: Collection[int]) -> list[list[int]]:
    """Each row's ids of all steps, up to and without the one that stopped it."""
    return [until_stop(row, stop_ids) for row in torch.stack(list(steps), dim=1).tolist()]


def until_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """``ids`` before the first stop."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


def check_prompts(inputs: Inputs, sampling: SamplingConfig, max_positions: int) -> None:
    """Raise InputError where generation could not give what it promises."""
    if inputs.ids.numel() == 0 or not bool(inputs.mask[:, -1].all()):
        raise InputError(
            "generate: a prompt is empty or ends in padding, and its continuation would follow the padding;"
            " pad prompts on the left"
        )
    if (total := inputs.ids.shape[1] + sampling.max_new_tokens) > max_positions:
        raise InputError(
            f"generate: {inputs.ids.shape[1]} prompt tokens and max_new_tokens={sampling.max_new_tokens} make {total};"
            f" the model has {max_positions} positions (max_position_embeddings)"
        )
