# SPDX-License-Identifier: Apache-2.0
"""Media among the tokens of a text: which places are whose, and what stands there.

A medium has ids of its own, a range behind the text's. One of them, the placeholder, says that a soft token
stands here; the others have rows in the medium's own table. Places are found by id, never by comparing vectors.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.config import ModelConfig
from model.errors import InputError
from model.inputs import Audio, Images, Inputs, SoftTokens
from model.layers.embedding import MediaEmbedder
from model.tower_config import AudioConfig, TowerConfig, VisionConfig


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
    """``embedded`` with soft tokens at the medium's placeholders, item after item, row after row."""
    if isinstance(config, VisionConfig):
        values = embedder.soft(soft.features * config.hidden_size**0.5)
    else:
        values = embedder.soft(soft.features)
        # A run is as long as the longest clip needs. What a shorter one leaves has an id of its own.
        padding = embedder.hard(torch.tensor([[config.padding_id]], device=ids.device)).to(values.dtype)
        missing = config.tokens.per_item - values.shape[1]
        values = torch.where(soft.mask[..., None], values, padding)
        values = torch.cat((values, padding.expand(len(soft), missing, -1)), dim=1)
    return fill(embedded, ids == config.tokens.placeholder_id, values.flatten(0, 1))


def fill(
    embedded: Float[Tensor, "batch seq dim"], places: Bool[Tensor, "batch seq"], values: Float[Tensor, "places dim"]
) -> Float[Tensor, "batch seq dim"]:
    """``embedded`` with ``values`` at ``places``, in order."""
    return embedded.masked_scatter(places[..., None], values.to(embedded.dtype))


def check_media(inputs: Inputs, config: ModelConfig) -> None:
    """Raise InputError where the media of a batch and the placeholders in its text do not belong together."""
    media = (("image", inputs.images, config.vision), ("audio clip", inputs.audio, config.audio))
    for name, given, tower in media:
        if given is not None and tower is None:
            raise InputError(
                f"inputs: there are {len(given)} items of kind {name}, but this model has no tower for them;"
                " load a checkpoint with all its modalities, or leave the media out"
            )
        # Without media, a look at the ids is worth while only where it does not stop a device's queue.
        if tower is None or (given is None and inputs.ids.device.type != "cpu"):
            continue
        check_count(name, 0 if given is None else len(given), inputs.ids, tower)
        check_shape(given, tower)


def check_count(name: str, items: int, ids: Int[Tensor, "batch seq"], tower: TowerConfig) -> None:
    """Raise InputError unless every item has its run of placeholders."""
    found = int((ids == tower.tokens.placeholder_id).sum())
    if found != items * tower.tokens.per_item:
        raise InputError(
            f"inputs: the batch has {items} items of kind {name}, but its text has {found} placeholders"
            f" (id {tower.tokens.placeholder_id}); each item needs a run of {tower.tokens.per_item}"
        )


def check_shape(given: Images | Audio | SoftTokens | None, tower: TowerConfig | None) -> None:
    """Raise InputError for items that a tower or its embedder cannot take."""
    if isinstance(given, Audio) and isinstance(tower, AudioConfig) and given.frames.shape[2] != tower.input_feat_size:
        raise InputError(
            f"inputs: audio frames have {given.frames.shape[2]} mels; the tower takes {tower.input_feat_size}"
            " (input_feat_size)"
        )
    if isinstance(given, SoftTokens) and tower is not None:
        if given.features.shape[2] != tower.hidden_size:
            raise InputError(
                f"inputs: soft tokens have {given.features.shape[2]} channels, but those of this tower have"
                f" {tower.hidden_size}; they are of another model"
            )
        exact = isinstance(tower, VisionConfig)
        if given.features.shape[1] > tower.tokens.per_item or (
            exact and given.features.shape[1] < tower.tokens.per_item
        ):
            raise InputError(
                f"inputs: an item has {given.features.shape[1]} soft tokens, but the text has {tower.tokens.per_item}"
                " places for it; give images of the model's size, and clips no longer than it can hear"
            )
