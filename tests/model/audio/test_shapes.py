# SPDX-License-Identifier: Apache-2.0
"""Shapes read from a config are those of the tower built from it."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.audio.shapes import audio_shapes
from model.audio.tower import AudioTower
from model.errors import ConfigError
from model.tower_config import AudioConfig
from tests.model.audio.towers import TINY_AUDIO, tiny_audio

Outcome = dict[str, tuple[int, ...]] | str
PAIRS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def configs(draw: st.DrawFn) -> AudioConfig:
    """Any config that can be written: some have an odd hidden size, or kernels wider than what they slide along."""
    heads = draw(st.integers(1, 5))
    return tiny_audio(
        conf_num_attention_heads=heads,
        hidden_size=heads * draw(st.integers(1, 8)),
        conf_num_hidden_layers=draw(st.integers(1, 4)),
        conf_conv_kernel_size=draw(st.integers(1, 7)),
        sscp_conv_channel_size=draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        sscp_conv_kernel_size=draw(st.tuples(PAIRS, PAIRS)),
        sscp_conv_stride_size=draw(st.tuples(PAIRS, PAIRS)),
        input_feat_size=draw(st.integers(1, 40)),
    )


def built(config: AudioConfig) -> Outcome:
    """Shapes by name of the tower of a config, or why there can be none."""
    try:
        with torch.device("meta"):
            return {name: tuple(parameter.shape) for name, parameter in AudioTower(config).named_parameters()}
    except ConfigError as error:
        return str(error)


def counted(config: AudioConfig) -> Outcome:
    """The same, with nothing built."""
    try:
        return audio_shapes(config)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("config", [AudioConfig(), TINY_AUDIO], ids=["published", "tiny"])
def test_shapes_are_those_of_the_built_tower(config: AudioConfig) -> None:
    assert audio_shapes(config) == built(config)
    with torch.device("meta"):
        assert audio_shapes(config).keys() == AudioTower(config).state_dict().keys()  # nothing else is saved


@given(config=configs())
def test_shapes_of_any_config_are_those_of_the_built_tower_and_neither_is_had_without_the_other(
    config: AudioConfig,
) -> None:
    assert counted(config) == built(config)


def test_shapes_of_the_published_tower_hold_as_many_numbers_as_were_published() -> None:
    assert sum(map(prod, audio_shapes(AudioConfig()).values())) == 681_348_640


def test_configs_that_no_tower_can_be_built_of_have_no_shapes() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 33; it must be even"):
        audio_shapes(tiny_audio(hidden_size=33, conf_num_attention_heads=3))
    with pytest.raises(ConfigError, match="is wider than what is left of 2 mels"):
        audio_shapes(tiny_audio(input_feat_size=2, sscp_conv_kernel_size=((3, 5), (3, 3))))


@pytest.mark.parametrize("module", ["sizes", "shapes"])
def test_what_is_known_of_the_tower_without_building_it_does_not_need_torch(module: str) -> None:
    program = f"import sys, model.audio.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
