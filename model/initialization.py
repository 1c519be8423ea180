# SPDX-License-Identifier: Apache-2.0
"""Weights to start training from scratch with: chosen so that small models learn in minutes."""

from __future__ import annotations

import torch
from torch import nn

from model.layers.altup import AltUp
from model.layers.embedding import MediaEmbedder, ScaledEmbedding
from model.layers.norm import RMSNorm
from model.text.decoder import Decoder
from model.text.layer import DecoderLayer

STEM_BIAS_STD = 0.5  # at zero, black would stay exactly zero, where the gradient of a norm is a thousandfold
BRANCH_SCALE = 0.1  # layer scales of the vision tower; at the published 1e-5 its blocks would stay shut for long


@torch.no_grad()
def initialize_decoder(decoder: Decoder, generator: torch.Generator) -> None:
    """Fill the text decoder.

    Matrices and tables are normal with the config's ``initializer_range``, padding rows zero, norms
    one; but what a layer adds begins small, and its queries at the size that other models get by
    dividing scores. Unlike transformers' zeros, AltUp's output scale is one: at zero the per-layer
    embeddings would never receive a gradient.
    """
    config = decoder.config
    for module in decoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, config.initializer_range, generator=generator)
        if isinstance(module, ScaledEmbedding):
            module.weight[module.padding_idx] = 0.0
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        if isinstance(module, AltUp):
            module.correct_output_scale.fill_(1.0)
    for module in decoder.modules():
        if isinstance(module, DecoderLayer):
            module.self_attn.q_norm.weight.fill_(config.head_dim**-0.5)
            for norm in module.added_norms():
                norm.weight.fill_(config.num_hidden_layers**-0.5)


@torch.no_grad()
def initialize_embedder(embedder: MediaEmbedder, std: float, generator: torch.Generator) -> None:
    """Fill an embedder. Its table is normed when it is read, so only the projection's size counts."""
    embedder.embedding.weight.normal_(generator=generator)
    embedder.embedding_projection.weight.normal_(0.0, std, generator=generator)
    for norm in (embedder.hard_embedding_norm, embedder.soft_embedding_norm):
        norm.weight.fill_(1.0)


@torch.no_grad()
def initialize_tower(tower: nn.Module, generator: torch.Generator) -> None:
    """Fill a tower: what it multiplies with keeps the size of its input, norms are one."""
    for name, parameter in tower.named_parameters():
        kind = name.rpartition(".")[2]
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif kind == "bias":  # the vision tower's stem has the only one
            parameter.normal_(0.0, STEM_BIAS_STD, generator=generator)
        elif kind == "per_dim_scale":
            parameter.zero_()
        else:
            parameter.fill_(BRANCH_SCALE if kind == "gamma" else 1.0)
