# SPDX-License-Identifier: Apache-2.0
"""One decoder layer: AltUp around LAuReL, attention and feed-forward, and the per-layer embedding's gate."""

from __future__ import annotations

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
from model.text.regions import compiled, enter_attention, leave_attention


class DecoderLayer(nn.Module):
    """One layer. Attribute names are the published ones, which is why they are longer than ours."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.compiled = False  # whether torch compiles its regions
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
        enter, leave = enter_attention, leave_attention
        if self.compiled:
            enter, leave = compiled(enter_attention), compiled(leave_attention)
        predicted, normed, queries, made = enter(self, streams, context.rotary, produces=shared is None)
        if (key_values := shared) is None:
            assert made is not None
            key_values = KeyValues(*made) if past is None else past.then(KeyValues(*made))
        attended = context.kernel(queries, key_values.keys, key_values.values)
        return leave(self, predicted, normed, attended.transpose(1, 2), per_layer_input, width), key_values
