# SPDX-License-Identifier: Apache-2.0
"""Gemma 3n: token ids to scores, as the full model or any sub-model of it.

The sub-model is an argument of the forward pass, not a mode of the module: activation checkpointing,
several specs in one step and evaluation of many sizes all work on one set of weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import InputError
from model.inputs import Inputs, Outputs
from model.layers.altup import AltUp
from model.layers.embedding import ScaledEmbedding
from model.layers.kv_cache import KVCache
from model.layers.norm import RMSNorm
from model.slicing.spec import SliceSpec
from model.text.decoder import Decoder
from model.text.layer import DecoderLayer


class Towers(nn.Module):
    """What the published names call ``model``: the text decoder, and the place of the towers beside it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.language_model = Decoder(config.text)


class Gemma3n(nn.Module):
    """The model. Parameters carry the names of the published checkpoint; the head is the token table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Towers(config)

    @classmethod
    def build(
        cls, config: ModelConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Gemma3n:
        """A model of this shape whose parameters hold nothing yet: load them, or ``initialize``."""
        with torch.device("meta"):
            empty = cls(config).to(dtype)
        return empty if torch.device(device).type == "meta" else empty.to_empty(device=device)

    @property
    def recompute_layers(self) -> bool:
        """Whether layers' activations are made again in the backward pass instead of being kept."""
        return self.model.language_model.recompute_layers

    @recompute_layers.setter
    def recompute_layers(self, value: bool) -> None:
        self.model.language_model.recompute_layers = value

    def forward(self, inputs: Inputs, spec: SliceSpec | None = None, *, cache: KVCache | None = None) -> Outputs:
        """Scores for the token after each one, from the sub-model ``spec`` (None: the full model).

        Args:
            inputs: Token ids and which of them are real.
            spec: A part of this model. Layers it skips get no gradient, neurons it leaves out a gradient of zero.
            cache: To decode step by step: start with ``KVCache.empty``, then pass on each result's cache.

        Raises:
            SliceError: The spec was resolved for another parent.
            InputError: An id is not in the vocabulary.
        """
        hidden, cache = self.hidden(inputs, spec, cache=cache)
        return Outputs(logits=self.head(hidden), cache=cache)

    def hidden(
        self, inputs: Inputs, spec: SliceSpec | None = None, *, cache: KVCache | None = None
    ) -> tuple[Float[Tensor, "batch seq dim"], KVCache | None]:
        """Hidden states after the final norm, and the next cache; for callers that want few scores or none."""
        config = self.config.text
        if spec is None:
            spec = SliceSpec.full(config)
        else:
            spec.check(config)
        if inputs.ids.device.type == "cpu":  # elsewhere a look at the values would stop the device's queue
            check_ids(inputs.ids, config.vocab_size)
        return self.model.language_model(inputs, spec, cache)

    def head(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        """Scores of hidden states: the token table again, soft-capped in the model's dtype, then float32."""
        cap = self.config.text.final_logit_softcapping
        scores = F.linear(hidden, self.model.language_model.embed_tokens.weight)
        return (torch.tanh(scores / cap) * cap).float()

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill every parameter for training from scratch; the same seed gives the same weights.

        Matrices and tables are normal with the config's ``initializer_range``, padding rows zero, norms
        one; but what a layer adds begins small, and its queries at the size that other models get by
        dividing scores. Unlike transformers' zeros, AltUp's output scale is one: at zero the per-layer
        embeddings would never receive a gradient.
        """
        std = self.config.text.initializer_range
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, ScaledEmbedding):
                module.weight[module.padding_idx] = 0.0
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            if isinstance(module, AltUp):
                module.correct_output_scale.fill_(1.0)
        for module in self.modules():
            if isinstance(module, DecoderLayer):
                module.self_attn.q_norm.weight.fill_(self.config.text.head_dim**-0.5)
                for norm in module.added_norms():
                    norm.weight.fill_(self.config.text.num_hidden_layers**-0.5)


def check_ids(ids: Int[Tensor, "batch seq"], vocab_size: int) -> None:
    """Raise InputError for ids that the token table has no row for."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"inputs: token ids reach from {low} to {high}, but this model has 0 to {vocab_size - 1};"
            " use the tokenizer that came with it"
        )
