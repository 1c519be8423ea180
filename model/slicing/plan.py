# SPDX-License-Identifier: Apache-2.0
"""What a sub-model costs: parameters, bytes, and work per token, from its parent's config alone.

Nothing is loaded and nothing is built. Every figure is exact under the conventions stated beside it;
what a runtime allocates besides (activations, buffers, a cache that ignores the window) is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from model.checkpoint.names import TOKEN_TABLE, is_tower
from model.checkpoint.shapes import model_shapes
from model.config import LayerType, ModelConfig, TextConfig
from model.errors import ConfigError
from model.slicing.config import slice_config
from model.slicing.count import LOOKED_UP, Layout, text_shapes
from model.slicing.submodel import SubModel

PER_LAYER_TABLE = next(name for name in LOOKED_UP if name != TOKEN_TABLE)
ROUTER = ".altup.modality_router.weight"  # the one matrix that a token meets twice: to predict, and to correct
GROUP = 32  # entries of a row that share one 16-bit scale, in int8 and int4


class StoredAs(StrEnum):
    """How the entries of a tensor are stored.

    The two small ones stand for what runtimes commonly do: the text decoder's matrices, token tables included,
    in groups of 32 entries of a row with one 16-bit scale and no offset (8.5 and 4.5 bits an entry). All else
    stays bf16: tensors of one axis (norms, output scales), matrices whose rows are not whole groups (AltUp's
    coefficients), the towers and their embedders.
    """

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"

    @property
    def bits(self) -> int:
        """Of one entry, without its share of a scale."""
        return {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}[self]

    @property
    def cache(self) -> StoredAs:
        """How keys and values are stored beside such weights, unless asked otherwise: never below 16 bits."""
        return self if self is StoredAs.fp32 else StoredAs.bf16

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape; where it cannot be grouped, those of bf16."""
        entries = prod(shape)
        if self.bits >= StoredAs.bf16.bits:
            return entries * self.bits // 8
        if len(shape) < 2 or shape[-1] % GROUP:
            return StoredAs.bf16.bytes_of(shape)
        return entries * self.bits // 8 + entries // GROUP * 2


@dataclass(frozen=True)
class Parameters:
    """How many parameters there are, in one layout."""

    total: int  # with the towers and their embedders
    text: int  # of the decoder
    effective: int  # of the decoder without its two token tables: the "E" in E2B


@dataclass(frozen=True)
class Work:
    """Floating-point operations to decode one token, by where they arise; a multiplication and an addition are two.

    Counted are matrix products: all linear maps, AltUp's mixing of the streams, scores and sums of attention.
    Not counted: norms, activations, softmax, rotations, look-ups, and the towers (once per item, not per token).
    Layers with a sparse activation are counted whole: saving their zeros takes a kernel made for it.
    """

    linear: int  # layers and projections
    attention: int  # queries with keys, and weights with values, over the tokens that each layer looks back at
    head: int  # scores of the whole vocabulary

    @property
    def total(self) -> int:
        """All of it."""
        return self.linear + self.attention + self.head


@dataclass(frozen=True)
class Plan:
    """The figures of one sub-model.

    ``weight_bytes`` are of ``Layout.used``, with the towers; ``per_layer_table_bytes`` is the part of them that
    many runtimes leave in slower memory, being read one row per token. ``cache_bytes`` are the keys and values of
    one sequence: only producers have any, and of local layers only what the window still reaches.
    ``whole_cache_bytes`` are those of a runtime that keeps every token in local layers too, as ours does.
    """

    sub: SubModel
    config: ModelConfig  # of the sub-model
    context_tokens: int
    used: Parameters  # tensors something computes with: our models, and those of transformers 5.6 and later
    published: Parameters  # tensors in Google's files: also the keys and values of readers
    weight_bytes: Mapping[StoredAs, int]
    per_layer_table_bytes: Mapping[StoredAs, int]
    cache_bytes: Mapping[StoredAs, int]
    whole_cache_bytes: Mapping[StoredAs, int]
    work_per_token: Work  # of the last token of the context

    @classmethod
    def of(cls, config: ModelConfig, sub: SubModel, *, context_tokens: int) -> Plan:
        """The figures of the part ``sub`` of a model of this config.

        Raises:
            SliceError: ``sub`` is no legal part of it.
            ConfigError: The context is empty, or longer than the model was made for.
        """
        small = slice_config(config, sub)
        check_context(small.text, context_tokens)
        shapes = model_shapes(small, Layout.used)
        table = shapes[PER_LAYER_TABLE]
        return cls(
            sub=sub,
            config=small,
            context_tokens=context_tokens,
            used=count(shapes),
            published=count(model_shapes(small, Layout.published)),
            weight_bytes={kind: weight_bytes(shapes, kind) for kind in StoredAs},
            per_layer_table_bytes={kind: kind.bytes_of(table) for kind in StoredAs},
            cache_bytes={kind: cache_bytes(small.text, context_tokens, kind) for kind in StoredAs},
            whole_cache_bytes={
                kind: cache_bytes(small.text, context_tokens, kind, windowed=False) for kind in StoredAs
            },
            work_per_token=work_per_token(small.text, context_tokens),
        )


def check_context(config: TextConfig, context_tokens: int) -> None:
    """Raise ConfigError for a context that the model cannot have."""
    if not 0 < context_tokens <= config.max_position_embeddings:
        raise ConfigError(
            f"context is {context_tokens} tokens; it must be 1 to {config.max_position_embeddings}, the positions"
            " that this model was made for (max_position_embeddings)"
        )


def count(shapes: Mapping[str, Sequence[int]]) -> Parameters:
    """The parameters of a whole model's tensors."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    text = sum(size for name, size in sizes.items() if not is_tower(name))
    return Parameters(sum(sizes.values()), text, text - sum(sizes[name] for name in LOOKED_UP))


def weight_bytes(shapes: Mapping[str, Sequence[int]], kind: StoredAs) -> int:
    """Bytes of a model's tensors, headers of files aside."""
    towers = kind.cache  # bf16 where the decoder is smaller
    return sum((towers if is_tower(name) else kind).bytes_of(shape) for name, shape in shapes.items())


def cache_bytes(config: TextConfig, context_tokens: int, kind: StoredAs, *, windowed: bool = True) -> int:
    """Bytes of the keys and values of one sequence.

    Args:
        config: The sub-model's.
        context_tokens: Tokens seen so far.
        kind: How they are stored; groups of the small kinds lie along a head.
        windowed: Whether local layers drop what their window no longer reaches.
    """
    producers = config.layer_types[: config.first_shared_layer]
    kept = [reach(config, layer, context_tokens) if windowed else context_tokens for layer in producers]
    return kind.bytes_of((2 * sum(kept) * config.num_key_value_heads, config.head_dim))


def reach(config: TextConfig, kind: LayerType, context_tokens: int) -> int:
    """How many tokens a layer of this type attends to, the attending one included."""
    return min(context_tokens, config.sliding_window) if kind is LayerType.sliding_attention else context_tokens


def work_per_token(config: TextConfig, context_tokens: int) -> Work:
    """What it takes to decode the last of ``context_tokens`` tokens with a model of this config."""
    dim, streams = config.hidden_size, config.altup_num_inputs
    matrices = matrices_of(text_shapes(config, Layout.used).items())
    linear = sum(2 * prod(shape) * (2 if name.endswith(ROUTER) else 1) for name, shape in matrices)
    mixing = 2 * streams * streams * dim * config.num_hidden_layers
    looked_at = sum(reach(config, kind, context_tokens) for kind in config.layer_types)
    return Work(
        linear=linear + mixing,
        attention=2 * 2 * looked_at * config.num_attention_heads * config.head_dim,
        head=2 * config.vocab_size * dim,
    )


def matrices_of(shapes: Iterable[tuple[str, Sequence[int]]]) -> Iterable[tuple[str, Sequence[int]]]:
    """The tensors that a token's vector is multiplied with, each once; not those that are looked up or added."""
    return ((name, shape) for name, shape in shapes if len(shape) == 2 and name not in LOOKED_UP)
