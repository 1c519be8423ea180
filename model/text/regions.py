# SPDX-License-Identifier: Apache-2.0
"""A decoder layer in two regions, before and behind its attention, which torch may compile.

Attention itself stays out of them: what it computes depends on the lengths of a batch's documents, of which nearly
every batch has others. The regions depend on how many rows and tokens there are, and code for one number is code for
all but one row. Whatever else differs between layers, such as a width in use, is compiled by itself; layers that are
alike share code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from model.layers.kv_cache import KeyValues
from model.layers.rotary import Rotary

# How often a region may be compiled: for every kind of layer, every width in use, one row or several, with a gradient
# or without one. A few dozen are many; as batches bring nothing new, far more means that something is compiled anew
# again and again, and that is an error rather than a slow run.
LIMIT = 1000


def enter_attention(
    layer: Any, streams: Float[Tensor, "batch seq streams dim"], rotary: Rotary, *, produces: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """A decoder layer up to its attention: predicted streams, the normed first one, queries, and keys and values."""
    predicted = layer.altup.predict(streams)
    normed = layer.input_layernorm(predicted[:, :, 0])
    made: KeyValues | None = layer.self_attn.key_values(normed, rotary) if produces else None
    return predicted, normed, layer.self_attn.queries(normed, rotary), made and (made.keys, made.values)


def leave_attention(
    layer: Any,
    predicted: Float[Tensor, "batch seq streams dim"],
    normed: Float[Tensor, "batch seq dim"],
    attended: Float[Tensor, "batch seq heads head_dim"],
    per_layer_input: Float[Tensor, "batch seq ple"],
    width: int,
) -> Float[Tensor, "batch seq streams dim"]:
    """A decoder layer from its attention on, at feed-forward ``width``: the streams after it."""
    attention = layer.post_attention_layernorm(layer.self_attn.output(attended))
    x = (predicted[:, :, 0] + attention + layer.laurel(normed)) / math.sqrt(2)
    forwarded = layer.mlp(layer.pre_feedforward_layernorm(x), width)
    x = x + layer.post_feedforward_layernorm(forwarded)

    corrected = layer.altup.correct(predicted, x)
    first, *others = corrected.unbind(dim=2)  # not by index: each would have a gradient of the size of all
    gate = layer.per_layer_input_gate(layer.altup.scale_output(first))
    gated = F.gelu(gate, approximate="tanh") * per_layer_input
    addition = layer.post_per_layer_input_norm(layer.per_layer_projection(gated))
    # The first stream stays as corrected: only the others learn of the per-layer embedding here.
    return torch.stack((first, *(other + addition for other in others)), dim=2)


@cache
def compiled(region: Callable[..., Any]) -> Callable[..., Any]:
    """A region that torch compiles whenever it is run with something that it has no code for."""
    settings = torch._dynamo.config  # noqa: SLF001 - documented
    settings.recompile_limit = max(LIMIT, settings.recompile_limit)
    settings.accumulated_recompile_limit = max(LIMIT, settings.accumulated_recompile_limit)
    settings.optimize_ddp = False  # it cuts what is compiled at DDP's buckets; a region is smaller than one anyway
    # Not dynamic but for what is marked: torch would take the second width it sees for any width.
    # Dropout drops what it would drop otherwise, so that compiling changes how numbers are rounded and nothing else.
    code = torch.compile(region, fullgraph=True, dynamic=False, options={"fallback_random": True})

    def run(layer: Any, *arguments: Any, **named: Any) -> Any:
        for argument in arguments:
            for tensor in (argument.cos, argument.sin) if isinstance(argument, Rotary) else (argument,):
                if isinstance(tensor, Tensor):
                    mark(tensor)
        return code(layer, *arguments, **named)

    return run


def mark(tensor: Tensor) -> None:
    """Let code be made for any number of rows and tokens, the first two axes; that for one row is its own."""
    for axis in (0, 1):
        if tensor.shape[axis] > 1:
            torch._dynamo.mark_dynamic(tensor, axis)  # noqa: SLF001 - documented
