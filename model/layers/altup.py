# SPDX-License-Identifier: Apache-2.0
"""AltUp: several copies ("streams") of the hidden state, of which a layer computes only the first.

Each layer *predicts* all streams by a small learned mix of them, runs on the first, and *corrects*
all of them by what it learned there. Streams lie next to each other (batch, seq, streams, dim), so
that mixing is one small matrix product per token. Source: arXiv 2301.13310; Gemma 3n.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.layers.norm import RMSNorm

SMALLEST_MEAN_SQUARE = 1e-5  # of a projected stream, before it is rescaled; Gemma 3n


class AltUp(nn.Module):
    """The learned mixes around one layer.

    Coefficients are clipped by value in every forward pass, in training and after it: the reference
    clips only while training, and partly by overwriting its weights.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        streams, dim = config.altup_num_inputs, config.hidden_size
        self.num_streams, self.clip = streams, config.altup_coef_clip
        self.router_scale = 1.0 / dim
        self.scales_output = config.altup_correct_scale
        self.correct_output_scale = nn.Parameter(torch.ones(dim))
        self.correction_coefs = nn.Linear(streams, streams, bias=False)
        self.prediction_coefs = nn.Linear(streams, streams * streams, bias=False)
        self.modality_router = nn.Linear(dim, streams, bias=False)
        self.router_norm = RMSNorm(dim, config.rms_norm_eps)

    def predict(self, streams: Float[Tensor, "batch seq streams dim"]) -> Float[Tensor, "batch seq streams dim"]:
        """What the streams are expected to be after the layer."""
        routed = self.route(streams[:, :, 0])
        mix = F.linear(routed, self.clipped(self.prediction_coefs)).unflatten(-1, (self.num_streams, -1))
        return mix @ streams + streams

    def correct(
        self, predicted: Float[Tensor, "batch seq streams dim"], activated: Float[Tensor, "batch seq dim"]
    ) -> Float[Tensor, "batch seq streams dim"]:
        """The predicted streams, moved by what the layer's result says of the first one."""
        coefs = F.linear(self.route(activated), self.clipped(self.correction_coefs)) + 1.0
        innovation = activated - predicted[:, :, 0]
        return innovation[:, :, None] * coefs[..., None] + predicted

    def scale_output(self, first: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """The first stream as the per-layer gate sees it."""
        return first * self.correct_output_scale if self.scales_output else first

    def route(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq streams"]:
        """How much of each mix a token gets, in (-1, 1)."""
        routed = self.modality_router(self.router_norm(x) * self.router_scale)
        return torch.tanh(routed.to(torch.promote_types(x.dtype, torch.float32))).type_as(x)

    def clipped(self, coefs: nn.Linear) -> Float[Tensor, "coefs streams"]:
        """A coefficient matrix within the clip, without touching the weight."""
        return coefs.weight if self.clip is None else coefs.weight.clamp(-self.clip, self.clip)


def expand(
    first: Float[Tensor, "batch seq dim"], projections: Iterable[nn.Module]
) -> Float[Tensor, "batch seq streams dim"]:
    """Make the streams a model starts with: the embedding, and projections of it at its magnitude."""
    magnitude = root_mean_square(first)
    return torch.stack((first, *(at_magnitude(project(first), magnitude) for project in projections)), dim=2)


def collapse(
    streams: Float[Tensor, "batch seq streams dim"], projections: Iterable[nn.Module]
) -> Float[Tensor, "batch seq dim"]:
    """Make one hidden state of the streams: the mean of them, projected back to the first one's magnitude."""
    first, *others = streams.unbind(dim=2)
    magnitude = root_mean_square(first)
    back = (at_magnitude(project(x), magnitude) for project, x in zip(projections, others, strict=True))
    return torch.stack((first, *back)).mean(dim=0)


def root_mean_square(x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 1"]:
    """Magnitude of each token. The smallest normal number stands in for zero, whose root has no gradient."""
    return x.square().mean(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def at_magnitude(
    x: Float[Tensor, "batch seq dim"], magnitude: Float[Tensor, "batch seq 1"]
) -> Float[Tensor, "batch seq dim"]:
    """``x`` rescaled to ``magnitude``, unless it is nearly zero."""
    return x * magnitude / x.square().mean(-1, keepdim=True).clamp(min=SMALLEST_MEAN_SQUARE).sqrt()
