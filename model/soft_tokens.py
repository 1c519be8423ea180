# SPDX-License-Identifier: Apache-2.0
"""Media among the tokens of a text: which places are whose, and what stands there.

A medium has ids of its own, a range behind the text's. One of them, the placeholder, says that a soft token
stands here; the others have rows in the medium's own table. Places are found by id, never by comparing vectors,
and an id of no medium is the text's, wherever it lies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.config import ModelConfig
from model.errors import InputError, counted
from model.inputs import Audio, Inputs, SoftTokens, has_padding_before_frames
from model.layers.embedding import MediaEmbedder
from model.tower_config import AudioConfig, MediaTokens, TowerConfig, VisionConfig


def with_hard_ids(
    embedded: Float[Tensor, "batch seq dim"],
    ids: Int[Tensor, "batch seq"],
    embedder: MediaEmbedder,
    config: TowerConfig,
) -> Float[Tensor, "batch seq dim"]:
    """``embedded`` with the medium's own rows at its ids; placeholders are left for ``with_soft_tokens``."""
    places = (ids >= config.ids.start) & (ids < config.ids.stop) & (ids != config.tokens.placeholder_id)
    if not bool(places.any()):  # a text-only step has nothing to do with the medium's weights
        return embedded
    return fill(embedded, places, embedder.hard(ids[places]))


def with_soft_tokens(
    embedded: Float[Tensor, "batch seq dim"],
    ids: Int[Tensor, "batch seq"],
    soft: SoftTokens,
    embedder: MediaEmbedder,
    config: TowerConfig,
) -> Float[Tensor, "batch seq dim"]:
    """``embedded`` with soft tokens at the medium's placeholders, item after item, row after row.

    Source: Gemma 3n, which scales the vision tower's soft tokens up but not the audio tower's, and fills what
    a clip leaves of its run with the embedding of the last id of the audio's vocabulary.
    """
    features = soft.features.to(embedder.embedding_projection.weight.dtype)  # kept ones may be of another
    if isinstance(config, VisionConfig):
        values = embedder.soft(features * config.hidden_size**0.5)
    else:
        values = embedder.soft(features)
        filler = embedder.hard(torch.tensor([[config.padding_id]], device=ids.device))  # 1 1 dim
        values = torch.where(soft.mask[..., None], values, filler)
        left = config.tokens.per_item - values.shape[1]
        values = torch.cat((values, filler.expand(len(soft), left, -1)), dim=1)
    return fill(embedded, ids == config.tokens.placeholder_id, values.flatten(0, 1))


def fill(
    embedded: Float[Tensor, "batch seq dim"], places: Bool[Tensor, "batch seq"], values: Float[Tensor, "places dim"]
) -> Float[Tensor, "batch seq dim"]:
    """``embedded`` with ``values`` at ``places``, in order."""
    return embedded.masked_scatter(places[..., None], values.to(embedded.dtype))


def check_media(inputs: Inputs, config: ModelConfig) -> None:
    """Raise InputError where the media of a batch do not fit its text, or not the model."""
    media = (("image", inputs.images, config.vision), ("audio clip", inputs.audio, config.audio))
    for name, given, tower in media:
        if tower is None and given is not None:
            raise InputError(
                f"inputs: the batch has {counted(len(given), name)}, but this model has no tower for them;"
                " load a checkpoint with all its modalities, or leave the media out"
            )
        # Without media, a look at the ids is worth while only where it does not stop a device's queue.
        if tower is None or (given is None and inputs.ids.device.type != "cpu"):
            continue
        check_runs(name, 0 if given is None else len(given), inputs.ids, tower.tokens)
        if isinstance(given, Audio) and isinstance(tower, AudioConfig):
            check_clips(given, tower)
        if isinstance(given, SoftTokens):
            check_soft_tokens(name, given, tower)


def check_runs(name: str, items: int, ids: Int[Tensor, "batch seq"], tokens: MediaTokens) -> None:
    """Raise InputError unless the text has one whole run of placeholders for every item."""
    held = F.pad(ids == tokens.placeholder_id, (1, 1))
    begins = (held[:, 1:] & ~held[:, :-1]).nonzero()
    ends = (held[:, :-1] & ~held[:, 1:]).nonzero()  # as many, and in the same order
    lengths = ends[:, 1] - begins[:, 1]
    if bool((lengths != tokens.per_item).any()):
        wrong = int((lengths != tokens.per_item).int().argmax())
        row, start = begins[wrong].tolist()
        raise InputError(
            f"inputs: row {row} has a run of {int(lengths[wrong])} {name} placeholders (id {tokens.placeholder_id})"
            f" from token {start} on, but an item has {tokens.per_item}; keep runs whole, with their delimiters between"
        )
    if len(lengths) != items:
        raise InputError(
            f"inputs: the batch has {counted(items, name)}, but its text has {counted(len(lengths), 'run')} of"
            f" {tokens.per_item} {name} placeholders (id {tokens.placeholder_id}); each item needs its own run"
        )


def check_clips(audio: Audio, config: AudioConfig) -> None:
    """Raise InputError for clips that the audio tower cannot take."""
    if audio.frames.shape[2] != config.input_feat_size:
        raise InputError(
            f"inputs: audio frames have {audio.frames.shape[2]} mels, but the tower takes {config.input_feat_size}"
            " (input_feat_size); read the audio with this model's processor"
        )
    lengths, most = audio.mask.sum(dim=1), config.max_frames
    wrong = (lengths < 1) | (lengths > most) | has_padding_before_frames(audio.mask)
    if bool(wrong.any()):
        clip = int(wrong.int().argmax())
        found = int(lengths[clip])
        where = " and padding between them" if 0 < found <= most else ""
        raise InputError(
            f"inputs: audio clip {clip} has {counted(found, 'real frame')}{where}; a clip has 1 to {most}"
            f" ({config.tokens.per_item} soft tokens of {most // config.tokens.per_item}), real frames first, padding"
            " behind them: leave an empty clip out, cut a longer one"
        )


def check_soft_tokens(name: str, soft: SoftTokens, config: TowerConfig) -> None:
    """Raise InputError for soft tokens of another model than this one."""
    _, tokens, channels = soft.features.shape
    if channels != config.hidden_size:
        raise InputError(
            f"inputs: soft tokens of kind {name} have {channels} channels, but this model's have"
            f" {config.hidden_size}; make them with this model's tower"
        )
    fewest = config.tokens.per_item if isinstance(config, VisionConfig) else 1
    if not fewest <= tokens <= config.tokens.per_item:
        raise InputError(
            f"inputs: items of kind {name} have {counted(tokens, 'soft token')} each, but the text has"
            f" {config.tokens.per_item} places for them; make them with this model's tower"
        )
