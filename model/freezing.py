# SPDX-License-Identifier: Apache-2.0
"""Parts of a model that training leaves as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from torch import nn

from model.errors import ConfigError
from model.gemma3n import Gemma3n


class Part(StrEnum):
    """A part of the full model that can be frozen by itself."""

    text = "text"  # the text decoder, token tables included
    vision = "vision"  # the vision tower
    audio = "audio"  # the audio tower
    embedders = "embedders"  # what brings the towers' media into the text's dimension


def freeze(model: Gemma3n, parts: Iterable[Part], matching: Sequence[str] = ()) -> None:
    """Ask for no gradient of these parts and parameters; what is frozen already stays so.

    A tower that is frozen as a whole encodes every item alone and outside autograd, so its soft tokens may be kept.

    Args:
        model: The model, in which it is noted.
        parts: Named parts.
        matching: Expressions for full names of further parameters, such as ``.*\\.embed_tokens.*``.

    Raises:
        ConfigError: The model lacks one of the parts, an expression is none or matches nothing, or nothing is left
            to train.
    """
    for part in parts:
        modules = modules_of(model, part)
        if not modules:
            raise ConfigError(
                f"freeze: there is no {part} in this model, which takes in {', '.join(model.config.modalities)};"
                " leave it out"
            )
        for module in modules:
            module.requires_grad_(False)
    freeze_matching(model, matching)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze: every part of the model is frozen; leave one out, so that something is trained")


def freeze_matching(model: Gemma3n, matching: Sequence[str]) -> None:
    """Ask for no gradient of parameters whose full name matches any of these expressions; raises as ``freeze``."""
    parameters = dict(model.named_parameters())
    for expression in matching:
        try:
            matched = [name for name in parameters if re.fullmatch(expression, name)]
        except re.error as error:
            raise ConfigError(
                f"freeze_matching: '{expression}' is no regular expression ({error}); correct it"
            ) from None
        if not matched:
            raise ConfigError(
                f"freeze_matching: '{expression}' matches none of the {len(parameters)} parameters, such as"
                f" '{next(iter(parameters))}'; it must match a full name, so begin and end it with '.*'"
            )
        for name in matched:
            parameters[name].requires_grad_(False)


def modules_of(model: Gemma3n, part: Part) -> list[nn.Module]:
    """The modules of a part; none where the model has no such part."""
    towers = model.model
    modules: dict[Part, tuple[nn.Module | None, ...]] = {
        Part.text: (towers.language_model,),
        Part.vision: (towers.vision_tower,),
        Part.audio: (towers.audio_tower,),
        Part.embedders: (towers.embed_vision, towers.embed_audio),
    }
    return [module for module in modules[part] if module is not None]
