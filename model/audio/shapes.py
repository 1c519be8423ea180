# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the audio tower's tensors, from its config alone: nothing is built, torch is not needed."""

from __future__ import annotations

from model.audio.sizes import check_even, feed_forward_width, head_dim, subsample_channels, subsampled_features
from model.tower_config import AudioConfig

Shapes = dict[str, tuple[int, ...]]


def audio_shapes(config: AudioConfig) -> Shapes:
    """Shapes by name, as ``AudioTower(config).named_parameters()`` has them.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    check_even(config)
    front = "subsample_conv_projection"
    shapes: Shapes = {}
    for index, kernel in enumerate(config.sscp_conv_kernel_size):
        inputs, outputs = subsample_channels(config, index)
        shapes[f"{front}.conv_{index}.conv.weight"] = (outputs, inputs, *kernel)
        shapes[f"{front}.conv_{index}.norm.weight"] = (outputs,)
    shapes[f"{front}.input_proj_linear.weight"] = (config.hidden_size, subsampled_features(config))
    block = block_shapes(config)
    for layer in range(config.conf_num_hidden_layers):
        shapes |= {f"conformer.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def block_shapes(config: AudioConfig) -> Shapes:
    """Shapes by name of one conformer block; all have the same."""
    dim, attention, convolution = config.hidden_size, "attention.attn", "lconv1d"
    return {
        **feed_forward_shapes("ffw_layer_start", config),
        "attention.pre_attn_norm.weight": (dim,),
        f"{attention}.per_dim_scale": (head_dim(config),),
        f"{attention}.relative_position_embedding.pos_proj.weight": (dim, dim),
        f"{attention}.q_proj.weight": (dim, dim),
        f"{attention}.k_proj.weight": (dim, dim),
        f"{attention}.v_proj.weight": (dim, dim),
        "attention.post.weight": (dim, dim),
        "attention.post_norm.weight": (dim,),
        f"{convolution}.pre_layer_norm.weight": (dim,),
        f"{convolution}.linear_start.weight": (2 * dim, dim),  # values and their gates
        f"{convolution}.depthwise_conv1d.weight": (dim, 1, config.conf_conv_kernel_size),
        f"{convolution}.conv_norm.weight": (dim,),
        f"{convolution}.linear_end.weight": (dim, dim),
        **feed_forward_shapes("ffw_layer_end", config),
        "norm.weight": (dim,),
    }


def feed_forward_shapes(name: str, config: AudioConfig) -> Shapes:
    """Shapes by name of the feed-forward network called ``name``."""
    dim, width = config.hidden_size, feed_forward_width(config)
    return {
        f"{name}.pre_layer_norm.weight": (dim,),
        f"{name}.ffw_layer_1.weight": (width, dim),
        f"{name}.ffw_layer_2.weight": (dim, width),
        f"{name}.post_layer_norm.weight": (dim,),
    }
