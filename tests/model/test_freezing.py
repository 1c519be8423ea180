# SPDX-License-Identifier: Apache-2.0
"""Parts of a model that training leaves alone."""

from __future__ import annotations

import pytest

from model.errors import ConfigError
from model.freezing import Part, freeze
from tests.tiny import tiny_config, tiny_model, tiny_multimodal_config

PREFIXES = {
    Part.text: ("model.language_model.",),
    Part.vision: ("model.vision_tower.",),
    Part.audio: ("model.audio_tower.",),
    Part.embedders: ("model.embed_vision.", "model.embed_audio."),
}


@pytest.mark.parametrize("parts", [[Part.vision], [Part.audio, Part.embedders], [Part.text], []])
def test_only_the_named_parts_are_frozen(parts: list[Part]) -> None:
    model = tiny_model(tiny_multimodal_config())
    freeze(model, parts)
    prefixes = tuple(prefix for part in parts for prefix in PREFIXES[part])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith(prefixes), name


def test_the_four_parts_are_the_whole_model() -> None:
    names = [name for name, _ in tiny_model(tiny_multimodal_config()).named_parameters()]
    assert all(name.startswith(tuple(prefix for part in Part for prefix in PREFIXES[part])) for name in names)


def test_a_part_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="no vision in this model, which takes in text;"):
        freeze(tiny_model(tiny_config()), [Part.vision])


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="every part of the model is frozen"):
        freeze(tiny_model(tiny_multimodal_config()), list(Part))


def test_parameters_are_frozen_by_expressions_beside_parts() -> None:
    model = tiny_model(tiny_multimodal_config())
    freeze(model, [Part.audio], [r".*\.layers\.[01]\..*", r".*embed_tokens.*"])
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith("model.audio_tower.") or "embed_tokens" in name
        is_frozen |= ".layers.0." in name or ".layers.1." in name
        assert parameter.requires_grad is not is_frozen, name


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("embed_tokens", r"'embed_tokens' matches none of the \d+ parameters, such as 'model\."),
        ("(", "is no regular expression"),
        (".*", "every part of the model is frozen"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_refused(expression: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        freeze(tiny_model(tiny_config()), [], [expression])
