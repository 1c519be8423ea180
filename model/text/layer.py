# SPDX-License-Identifier: Apache-2.0
"""One decoder layer: AltUp around LAuReL, attention and feed-forward, and the per-layer embedding's gate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.layers.altup import AltUp
from model.layers.attention import Attention
from model.layers.feed_forward import FeedForward
from model.layers.kv_cache import KeyValues
from model.layers.laurel import Laurel
from model.layers.norm import RMSNorm
from model.text.context import Context


class DecoderLayer(nn.Module):
    """One layer. Attribute names are the published ones, which is why they are longer than ours."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, produces=index < config.first_shared_layer)
        self.mlp = FeedForward(dim, config.intermediate_size[index], sparsity=config.activation_sparsity_pattern[index])
        self.altup = AltUp(config)
        self.laurel = Laurel(config)
        self.input_layernorm = RMSNorm(dim, eps)
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.pre_feedforward_layernorm = RMSNorm(dim, eps)
        self.post_feedforward_layernorm = RMSNorm(dim, eps)
        self.per_layer_input_gate = nn.Linear(dim, config.hidden_size_per_layer_input, bias=False)
        self.per_layer_projection = nn.Linear(config.hidden_size_per_layer_input, dim, bias=False)
        self.post_per_layer_input_norm = RMSNorm(dim, eps)

    def added_norms(self) -> tuple[RMSNorm, ...]:
        """The norms whose weights say how much this layer adds to the hidden state."""
        return (
            self.post_attention_layernorm,
            self.post_feedforward_layernorm,
            self.laurel.post_laurel_norm,
            self.post_per_layer_input_norm,
        )

    def forward(
        self,
        streams: Float[Tensor, "batch seq streams dim"],
        per_layer_input: Float[Tensor, "batch seq ple"],
        context: Context,
        width: int,
        *,
        shared: KeyValues | None = None,
        past: KeyValues | None = None,
    ) -> tuple[Float[Tensor, "batch seq streams dim"], KeyValues]:
        """Run the layer at feed-forward ``width``; give the streams after it, and the keys and values it used.

        Args:
            streams: AltUp's copies of the hidden state.
            per_layer_input: This layer's block of the per-layer embeddings.
            context: Rotations and attention for this layer's type.
            width: Feed-forward neurons in use.
            shared: For a reader, its producer's keys and values (of all tokens, also earlier ones).
            past: For a producer that decodes step by step, its keys and values of earlier tokens.
        """
        predicted = self.altup.predict(streams)
        first = predicted[:, :, 0]
        normed = self.input_layernorm(first)
        if (key_values := shared) is None:
            made = self.self_attn.key_values(normed, context.rotary)
            key_values = made if past is None else past.then(made)
        attended = self.self_attn(normed, key_values, context.rotary, context.kernel)

        x = (first + self.post_attention_layernorm(attended) + self.laurel(normed)) / math.sqrt(2)
        forwarded = self.mlp(self.pre_feedforward_layernorm(x), width)
        x = x + self.post_feedforward_layernorm(forwarded)

        corrected = self.altup.correct(predicted, x)
        first, *others = corrected.unbind(dim=2)  # not by index: each would have a gradient of the size of all
        gate = self.per_layer_input_gate(self.altup.scale_output(first))
        gated = F.gelu(gate, approximate="tanh") * per_layer_input
        addition = self.post_per_layer_input_norm(self.per_layer_projection(gated))
        # The first stream stays as corrected: only the others learn of the per-layer embedding here.
        return torch.stack((first, *(other + addition for other in others)), dim=2), key_values
