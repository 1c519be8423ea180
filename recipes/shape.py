# SPDX-License-Identifier: Apache-2.0
"""The shape of a model as written in ``conf/model/*.yaml``: the fields of a published ``config.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from model.config import LayerType, ModelConfig, TextConfig
from model.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ShapeConfig:
    """A text decoder to build from nothing, or to hold a checkpoint against.

    Per-layer fields have one entry per layer; ``intermediate_size`` may have one entry for all.
    """

    num_hidden_layers: int
    intermediate_size: list[int]  # neurons of each layer's feed-forward network
    activation_sparsity_pattern: list[float]  # share of neurons silenced in each layer
    num_kv_shared_layers: int  # the last layers that read an earlier layer's keys and values
    layer_types: list[LayerType] = field(default_factory=list)  # empty: every fifth layer is global, as published
    hidden_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 256
    sliding_window: int = 512  # tokens
    max_position_embeddings: int = 32_768  # tokens
    vocab_size: int = 262_400
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    laurel_rank: int = 64
    initializer_range: float = 0.02  # standard deviation of weights that are drawn, not loaded

    def to_model_config(self) -> ModelConfig:
        """The checked, frozen form.

        Raises:
            ConfigError: Fields contradict one another.
        """
        published = dataclasses.asdict(self)
        published["layer_types"] = [kind.value for kind in self.layer_types]
        if len(self.intermediate_size) == 1:
            published["intermediate_size"] = self.intermediate_size[0]
        try:
            return ModelConfig(text=TextConfig.parse(published))
        except ConfigError as error:
            raise ConfigError(f"model: {error}") from None

    def check(self, found: ModelConfig, where: str) -> None:
        """Raise ConfigError unless the model in ``where`` has this shape."""
        wanted = self.to_model_config().text
        different = [
            f"{known.name} is {getattr(found.text, known.name)}, not {getattr(wanted, known.name)}"
            for known in dataclasses.fields(self)
            if known.name != "initializer_range"  # of a model that has weights it says nothing
            and getattr(found.text, known.name) != getattr(wanted, known.name)
        ]
        if different:
            raise ConfigError(
                f"model: the checkpoint in '{where}' has another shape than model= says: {'; '.join(different)};"
                " leave model= out to take the checkpoint as it is"
            )
