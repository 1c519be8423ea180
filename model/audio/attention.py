# SPDX-License-Identifier: Apache-2.0
"""Local attention of the audio tower: every frame attends to a fixed span around itself.

Frames are cut into chunks, and each chunk sees one stretch of keys that covers the spans of all its
frames: scores are then small dense matrices, made for all chunks at once. A learned term for the
distance between query and key is added, as in Transformer-XL (https://arxiv.org/abs/1901.02860).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from model.audio.sizes import head_dim
from model.tower_config import AudioConfig

LONGEST_PERIOD = 1e4  # of the sinusoids, in frames per radian; the shortest is 1


@dataclass(frozen=True)
class Window:
    """How frames are chunked, and how many frames before and after itself each one sees."""

    chunk: int
    past: int
    future: int

    @classmethod
    def of(cls, config: AudioConfig) -> Window:
        """The window of a config, whose left context counts the attending frame itself."""
        past = max(0, config.conf_attention_context_left - 1)
        return cls(config.conf_attention_chunk_size, past, config.conf_attention_context_right)

    @property
    def span(self) -> int:
        """How many frames a frame sees."""
        return self.past + 1 + self.future

    @property
    def stretch(self) -> int:
        """How many frames a chunk sees."""
        return self.past + self.chunk + self.future

    def chunks(self, x: Shaped[Tensor, "clips frames heads last"]) -> Shaped[Tensor, "clips chunks heads chunk last"]:
        """Frames as whole chunks, zeros behind the last."""
        missing = -x.shape[1] % self.chunk
        return F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, self.chunk)).transpose(2, 3)

    def stretches(self, x: Shaped[Tensor, "clips frames *rest"]) -> Shaped[Tensor, "clips chunks *rest stretch"]:
        """For every chunk the frames it sees, zeros (or False) where there are none."""
        beyond = self.future - x.shape[1] % -self.chunk
        padded = F.pad(x, (*(0, 0) * (x.ndim - 2), self.past, beyond))
        return padded.unfold(1, self.stretch, self.chunk)

    def visible(self, real: Bool[Tensor, "clips frames"]) -> Bool[Tensor, "clips chunks 1 chunk stretch"]:
        """Which frames of its chunk's stretch each frame attends to: those of its span that are real."""
        near = torch.ones(self.chunk, self.stretch, dtype=torch.bool, device=real.device).triu().tril(self.span - 1)
        return near & self.stretches(real)[:, :, None, None, :]

    def place(self, scores: Float[Tensor, "*axes chunk span"]) -> Float[Tensor, "*axes chunk stretch"]:
        """Move each frame's scores of its span to where the span lies in the stretch: by the frame's own index.

        Rows one longer than the stretch, read as rows of its length, shift by one more from row to row.
        Outside of the span stand zeros or other rows' scores; ``visible`` says where.
        """
        rows = F.pad(scores, (0, self.stretch + 1 - self.span)).flatten(-2)
        return rows[..., : self.chunk * self.stretch].unflatten(-1, (self.chunk, self.stretch))


@dataclass(frozen=True)
class Surroundings:
    """What all layers share in one forward pass: who sees whom, and how far they are."""

    visible: Bool[Tensor, "clips chunks 1 chunk stretch"]
    distances: Float[Tensor, "span dim"]  # sinusoids, in float32

    @classmethod
    def of(cls, real: Bool[Tensor, "clips frames"], config: AudioConfig) -> Surroundings:
        """Those of a batch of clips."""
        window = Window.of(config)
        return cls(window.visible(real), sinusoids(window, config.hidden_size, real.device))


def sinusoids(window: Window, dim: int, device: torch.device) -> Float[Tensor, "span dim"]:
    """Sines, then cosines, of the distance back to each frame of a span, in float32.

    Source: Gemma 3n, which counts from ``past`` down to ``-future`` and spaces the periods by their number less one.
    """
    waves = dim // 2
    step = math.log(LONGEST_PERIOD) / max(waves - 1, 1)
    frequencies = torch.exp(torch.arange(waves, device=device).float() * -step)
    distances = torch.arange(window.past, -window.future - 1, -1, device=device).float()
    angles = distances[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class DistanceScores(nn.Module):
    """Scores of queries with distances instead of keys."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.heads = config.conf_num_attention_heads
        self.pos_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, queries: Float[Tensor, "clips frames heads head_dim"], distances: Float[Tensor, "span dim"]
    ) -> Float[Tensor, "clips frames heads span"]:
        """One score per distance, the longest way back first."""
        keys = self.pos_proj(distances.type_as(queries)).unflatten(-1, (self.heads, -1))
        return torch.einsum("cfhd,shd->cfhs", queries, keys)


class LocalAttention(nn.Module):
    """One layer's attention, without its output projection.

    Scores are capped by a tanh before anything is masked; the softmax is in float32.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.conf_num_attention_heads
        self.window, self.cap = Window.of(config), config.conf_attention_logit_cap
        self.per_dim_scale = nn.Parameter(torch.zeros(head_dim(config)))
        self.relative_position_embedding = DistanceScores(config)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "clips frames dim"], surroundings: Surroundings
    ) -> Float[Tensor, "clips frames dim"]:
        """What each frame gathers from its span; frames without a visible one gather something finite."""
        heads = (self.heads, -1)
        queries = self.q_proj(x).unflatten(-1, heads)
        queries = queries * self.query_scale().type_as(queries)  # under autocast, not the dtype of x
        keys = self.window.stretches(self.k_proj(x).unflatten(-1, heads))  # clips chunks heads head_dim stretch
        values = self.window.stretches(self.v_proj(x).unflatten(-1, heads))

        by_distance = self.relative_position_embedding(queries, surroundings.distances)
        scores = self.window.chunks(queries) @ keys + self.window.place(self.window.chunks(by_distance))
        capped = torch.tanh(scores / self.cap) * self.cap
        hidden = capped.masked_fill(~surroundings.visible, torch.finfo(capped.dtype).min)
        weights = hidden.float().softmax(-1).type_as(values)
        gathered = weights @ values.transpose(-1, -2)  # clips chunks heads chunk head_dim
        return gathered.transpose(2, 3).flatten(1, 2)[:, : x.shape[1]].flatten(2)

    def query_scale(self) -> Float[Tensor, " head_dim"]:
        """The usual 1/√head_dim at ``per_dim_scale`` zero, learned per dimension."""
        usual = self.per_dim_scale.shape[0] ** -0.5
        return F.softplus(self.per_dim_scale.float()) * (usual / math.log(2.0))  # softplus of zero
