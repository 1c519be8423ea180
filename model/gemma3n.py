# SPDX-License-Identifier: Apache-2.0
"""Gemma 3n: token ids, images and sound to scores, as the full model or any sub-model of it.

The sub-model is an argument of the forward pass, not a mode of the module: activation checkpointing,
several specs in one step and evaluation of many sizes all work on one set of weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.audio.tower import AudioTower
from model.config import ModelConfig
from model.errors import InputError
from model.initialization import initialize_decoder, initialize_embedder, initialize_tower
from model.inputs import Audio, Images, Inputs, Outputs, Read, SoftTokens
from model.layers.embedding import HostTable, MediaEmbedder, RowSource
from model.layers.kernel import AttentionKernel
from model.layers.kv_cache import KVCache
from model.recompute import RecomputeConfig, TowerRecompute
from model.slicing.spec import SliceSpec
from model.soft_tokens import check_media, with_hard_ids, with_soft_tokens
from model.text.decoder import Decoder
from model.tower_config import TowerConfig
from model.vision.tower import VisionTower


class Towers(nn.Module):
    """What the published names call ``model``: the text decoder, and the towers with their embedders beside it.

    A tower that the config does not have is None, and so is its embedder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = Decoder(config.text)
        self.vision_tower = None if config.vision is None else VisionTower(config.vision)
        self.audio_tower = None if config.audio is None else AudioTower(config.audio)
        self.embed_vision = media_embedder(config, config.vision)
        self.embed_audio = media_embedder(config, config.audio)

    def embed(self, inputs: Inputs) -> Float[Tensor, "batch seq dim"]:
        """What stands at each token: its row of the text's or a medium's table, or the soft token it holds open."""
        ids = inputs.ids
        embedded = self.language_model.embed_tokens(ids)
        media = (
            (self.config.vision, self.embed_vision, inputs.images),
            (self.config.audio, self.embed_audio, inputs.audio),
        )
        for tower, embedder, soft in media:
            if tower is not None and embedder is not None and inputs.may_hold(tower.ids):
                embedded = with_hard_ids(embedded, ids, embedder, tower)
                if soft is not None:
                    assert isinstance(soft, SoftTokens)
                    embedded = with_soft_tokens(embedded, ids, soft, embedder, tower)
        return embedded

    def see(self, images: Images) -> SoftTokens:
        """Soft tokens of images; outside autograd one image at a time, so that none depends on the others."""
        assert self.vision_tower is not None
        if learns(self.vision_tower):
            features = self.vision_tower(images.pixels)
        else:
            with torch.no_grad():
                features = torch.cat([self.vision_tower(image) for image in images.pixels.split(1)])
        return SoftTokens(features=features, mask=features.new_ones(features.shape[:2], dtype=torch.bool))

    def hear(self, audio: Audio) -> SoftTokens:
        """Soft tokens of clips; outside autograd one clip at a time, so that none depends on the others."""
        assert self.audio_tower is not None
        lengths = audio.mask.sum(dim=1).tolist()
        if learns(self.audio_tower):
            longest = max(lengths)
            return self.audio_tower(audio.frames[:, :longest], audio.mask[:, :longest])
        with torch.no_grad():
            clips = zip(audio.frames.split(1), audio.mask.split(1), lengths, strict=True)
            return side_by_side([self.audio_tower(frames[:, :n], real[:, :n]) for frames, real, n in clips])


def media_embedder(config: ModelConfig, tower: TowerConfig | None) -> MediaEmbedder | None:
    """The embedder of a tower's soft tokens and ids; None without one."""
    if tower is None:
        return None
    return MediaEmbedder(
        tower.vocab_size, tower.vocab_offset, tower.hidden_size, config.text.hidden_size, eps=tower.rms_norm_eps
    )  # fmt: skip


def learns(tower: nn.Module) -> bool:
    """Whether autograd has to follow a tower: it is on, and something in there asks for a gradient."""
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())


def side_by_side(items: Sequence[SoftTokens]) -> SoftTokens:
    """Items encoded one at a time as one batch."""
    longest = max(item.features.shape[1] for item in items)
    features = [F.pad(item.features, (0, 0, 0, longest - item.features.shape[1])) for item in items]
    mask = [F.pad(item.mask, (0, longest - item.mask.shape[1])) for item in items]
    return SoftTokens(features=torch.cat(features), mask=torch.cat(mask))


class Gemma3n(nn.Module):
    """The model. Parameters carry the names of the published checkpoint; the head is the token table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Towers(config)

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        per_layer_rows: RowSource | None = None,
    ) -> Gemma3n:
        """A model of this shape whose parameters hold nothing yet: load them, or ``initialize``.

        ``per_layer_rows``: where the table of per-layer embeddings lies if it shall not be on the device.
        """
        with torch.device("meta"):
            empty = cls(config).to(dtype)
        if per_layer_rows is not None:
            pinned = torch.device(device).type == "cuda"
            empty.model.language_model.leave_table_at(per_layer_rows, dtype=dtype, pinned=pinned)
        return empty if torch.device(device).type == "meta" else empty.to_empty(device=device)

    @property
    def per_layer_table(self) -> HostTable | None:
        """The table of per-layer embeddings, if it is not on the device: its rows can be gathered ahead."""
        table = self.model.language_model.embed_tokens_per_layer
        return table if isinstance(table, HostTable) else None

    @property
    def recompute(self) -> RecomputeConfig:
        """Which activations are not kept for the backward pass but made again in it."""
        return self.model.language_model.recompute

    @recompute.setter
    def recompute(self, value: RecomputeConfig) -> None:
        self.model.language_model.recompute = value
        towers = ((self.model.vision_tower, value.vision), (self.model.audio_tower, value.audio))
        for tower, policy in towers:
            if tower is not None:
                tower.recompute = policy is TowerRecompute.full

    @property
    def attention(self) -> AttentionKernel:
        """What computes the text decoder's attention, where nothing is decoded step by step."""
        return self.model.language_model.attention

    @attention.setter
    def attention(self, value: AttentionKernel) -> None:
        self.model.language_model.attention = value

    def forward(self, inputs: Inputs, spec: SliceSpec | None = None, *, cache: KVCache | None = None) -> Outputs:
        """Scores for the token after each one, from the sub-model ``spec`` (None: the full model).

        Args:
            inputs: Token ids and which of them are real, and the media that stand among them.
            spec: A part of this model. Layers it skips get no gradient, neurons it leaves out a gradient of zero.
            cache: To decode step by step: start with ``KVCache.empty``, then pass on each result's cache.

        Raises:
            SliceError: The spec was resolved for another parent.
            InputError: An id is not in the vocabulary, or media and placeholders do not belong together.
        """
        hidden, cache = self.hidden(inputs, spec, cache=cache)
        return Outputs(logits=self.head(hidden), cache=cache)

    def hidden(
        self, inputs: Inputs, spec: SliceSpec | None = None, *, cache: KVCache | None = None
    ) -> tuple[Float[Tensor, "batch seq dim"], KVCache | None]:
        """Hidden states after the final norm, and the next cache; for callers that want few scores or none."""
        if spec is None:
            spec = SliceSpec.full(self.config.text)
        else:
            spec.check(self.config.text)
        if cache is not None:
            check_undivided(inputs)
        inputs = self.ready(inputs)
        return self.model.language_model(self.model.embed(inputs), inputs, spec, cache)

    def hidden_of_each(
        self, inputs: Inputs, specs: Sequence[SliceSpec], *, kept_bytes: int
    ) -> Iterator[tuple[int, Float[Tensor, "batch seq dim"]]]:
        """What ``hidden`` gives for each of several sub-models, with its number, to the last bit; for measuring.

        Media and embeddings are computed once, and so are layers that sub-models begin with alike.

        Args:
            inputs: Token ids and which of them are real, and the media that stand among them.
            specs: Parts of this model; the first comes first, unless another ends where it goes on.
            kept_bytes: About how much may be kept between layers for sub-models whose turn is to come; beyond it,
                layers are run again.
        """
        for number, hidden, _ in self.each(inputs, specs, kept_bytes=kept_bytes, cached=False):
            yield number, hidden
            del hidden  # not to be in memory while the next sub-model is run

    def read_each(self, inputs: Inputs, specs: Sequence[SliceSpec], *, kept_bytes: int) -> Iterator[tuple[int, Read]]:
        """Prompts read by each of several sub-models, with its number, to the last bit as if it read them alone.

        What is computed once, and the arguments, are those of ``hidden_of_each``. Of what is kept, keys and values
        are a part, so let each sub-model go on to its end before the next one is asked for.
        """
        check_undivided(inputs)
        for number, hidden, cache in self.each(inputs, specs, kept_bytes=kept_bytes, cached=True):
            assert cache is not None
            yield number, Read(hidden=hidden[:, -1], cache=cache)
            del hidden, cache  # likewise

    def each(
        self, inputs: Inputs, specs: Sequence[SliceSpec], *, kept_bytes: int, cached: bool
    ) -> Iterator[tuple[int, Float[Tensor, "batch seq dim"], KVCache | None]]:
        """What ``hidden`` gives for each of several sub-models, with its number; with a cache or without."""
        for spec in specs:
            spec.check(self.config.text)
        with torch.no_grad():  # never around a yield, where it would reach the caller
            inputs = self.ready(inputs)
            embedded = self.model.embed(inputs)
        decoder = self.model.language_model
        yield from decoder.forward_each(embedded, inputs, specs, kept_bytes=kept_bytes, cached=cached)

    def ready(self, inputs: Inputs) -> Inputs:
        """The same inputs, looked at, with soft tokens for their media."""
        if inputs.ids.device.type == "cpu":  # elsewhere a look at the values would stop the device's queue
            check_ids(inputs.ids, self.config.text.vocab_size)
        return self.soft_tokens(inputs)

    def soft_tokens(self, inputs: Inputs) -> Inputs:
        """The same inputs with images and sound already through their towers; sub-models share the result.

        A tower of which nothing is trained, or any tower under ``torch.no_grad``, sees every item alone and outside
        autograd: the soft tokens of an item do not depend, to the last bit, on what else is in the batch, and may
        be kept.

        Raises:
            InputError: Media and placeholders do not belong together, or the model has no tower for them.
        """
        check_media(inputs, self.config)
        images = self.model.see(inputs.images) if isinstance(inputs.images, Images) else inputs.images
        audio = self.model.hear(inputs.audio) if isinstance(inputs.audio, Audio) else inputs.audio
        return dataclasses.replace(inputs, images=images, audio=audio)

    @property
    def head_weight(self) -> Float[Tensor, "vocab dim"]:
        """The head's matrix: the token table."""
        return self.model.language_model.embed_tokens.weight

    def head(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        """Scores of hidden states: the token table again, soft-capped in the model's dtype, then float32."""
        cap = self.config.text.final_logit_softcapping
        scores = F.linear(hidden, self.head_weight)
        return (torch.tanh(scores / cap) * cap).float()

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill every parameter for training from scratch; the same seed gives the same weights."""
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        initialize_decoder(self.model.language_model, generator)
        for embedder in (self.model.embed_vision, self.model.embed_audio):
            if embedder is not None:
                initialize_embedder(embedder, self.config.text.initializer_range, generator)
        for tower in (self.model.vision_tower, self.model.audio_tower):
            if tower is not None:
                initialize_tower(tower, generator)


def check_undivided(inputs: Inputs) -> None:
    """Raise InputError for inputs that a cache cannot be made of."""
    if inputs.documents is not None:
        raise InputError("inputs: rows of several documents cannot be decoded step by step; leave cache out")


def check_ids(ids: Int[Tensor, "batch seq"], vocab_size: int) -> None:
    """Raise InputError for ids that the token table has no row for."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"inputs: token ids reach from {low} to {high}, but this model has 0 to {vocab_size - 1};"
            " use the tokenizer that came with it"
        )
