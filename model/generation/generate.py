# SPDX-License-Identifier: Apache-2.0
"""Going on with a text: read the prompt once, then one token at a time over the cached keys and values.

Prompts of a batch end together, so shorter ones are padded on the left. Each step equals a forward
pass over everything so far; the cache only saves work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from model.errors import InputError
from model.generation.sampling import SamplingConfig, choose
from model.inputs import Inputs, Outputs
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
    return Inputs(ids=ids.to(device), mask=mask.to(device))


@torch.no_grad()
def generate(
    model: Any,
    inputs: Inputs,
    *,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    spec: SliceSpec | None = None,
) -> Iterator[Int[Tensor, " batch"]]:
    """Yield the next token of every row, step by step, until all rows have stopped or the limit is reached.

    A row that has yielded one of ``stop_ids`` yields padding from then on. While the generator runs,
    the model is in evaluation mode.

    Args:
        model: A ``Gemma3n``, or one with an adapter attached.
        inputs: Prompts, padded on the left (see ``pad_left``).

    Raises:
        InputError: A prompt is padded on the right, or the text would outgrow the model's positions.
    """
    config = model.config.text
    check(inputs, sampling, config.max_position_embeddings)
    random = torch.Generator().manual_seed(sampling.seed)
    stops = torch.tensor(sorted(stop_ids), dtype=inputs.ids.dtype, device=inputs.ids.device)
    stopped = torch.zeros(inputs.ids.shape[0], dtype=torch.bool, device=inputs.ids.device)
    cache = KVCache.empty(inputs.ids.shape[0], inputs.ids.device)
    was_training = model.training
    model.eval()
    try:
        for _ in range(sampling.max_new_tokens):
            outputs: Outputs = model(inputs, spec=spec, cache=cache)
            assert outputs.cache is not None
            token = choose(outputs.logits[:, -1], sampling, random).masked_fill(stopped, config.pad_token_id)
            yield token
            stopped = stopped | torch.isin(token, stops)
            if bool(stopped.all()):
                return
            cache, inputs = outputs.cache, Inputs.of(token[:, None])
    finally:
        model.train(was_training)


def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    spec: SliceSpec | None = None,
) -> list[list[int]]:
    """The continuation of each prompt, up to and without the token that stopped it.

    Raises:
        InputError: As ``pad_left`` and ``generate`` do.
    """
    device = next(model.parameters()).device
    inputs = pad_left(prompts, model.config.text.pad_token_id, device=device)
    steps = list(generate(model, inputs, sampling=sampling, stop_ids=stop_ids, spec=spec))
    return [until_stop(row, stop_ids) for row in torch.stack(steps, dim=1).tolist()]


def until_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    """``ids`` before the first stop."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


def check(inputs: Inputs, sampling: SamplingConfig, max_positions: int) -> None:
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
