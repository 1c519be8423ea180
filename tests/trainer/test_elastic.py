# SPDX-License-Identifier: Apache-2.0
"""Every process, and every resumed run, draws the same sub-models."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError, SliceError
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import TINY_TEXT
from tests.trainer.parts import SLICES, elastic
from trainer.elastic import ElasticConfig, ElasticPolicy, SliceSampler


def sampler(policy: ElasticPolicy, *, seed: int = 0, **changes: Any) -> SliceSampler:
    config = elastic(policy) if not changes else ElasticConfig(policy=policy, slices=SLICES, **changes)
    return SliceSampler(config, TINY_TEXT, seed=seed)


@given(policy=st.sampled_from(list(ElasticPolicy)), seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
def test_the_specs_of_a_step_depend_on_seed_and_step_alone(policy: ElasticPolicy, seed: int, step: int) -> None:
    used = sampler(policy, seed=seed)
    for earlier in range(3):
        used.at(earlier)
    assert used.at(step) == sampler(policy, seed=seed).at(step)


def test_without_elastic_training_every_step_trains_the_whole_model() -> None:
    assert sampler(ElasticPolicy.off).at(7) == (SliceSpec.full(TINY_TEXT),)


def test_sampling_draws_one_spec_with_equal_chances() -> None:
    used = sampler(ElasticPolicy.sample, seed=1)
    drawn = [used.at(step) for step in range(3000)]
    assert {len(specs) for specs in drawn} == {1}
    counts = Counter(specs[0].name for specs in drawn)
    # Standard deviation of each count is 26.
    assert all(abs(counts[name] - 1000) < 110 for name in SLICES)


def test_sampling_follows_the_probabilities() -> None:
    weighted = sampler(ElasticPolicy.sample, probabilities={"full": 3.0, "narrow": 1.0, "short": 0.0})
    counts = Counter(weighted.at(step)[0].name for step in range(2000))
    assert counts["short"] == 0
    assert abs(counts["full"] - 1500) < 80  # standard deviation 19


def test_neighbouring_seeds_do_not_give_the_same_draws_one_step_apart() -> None:
    first, second = (sampler(ElasticPolicy.sample, seed=seed) for seed in (0, 1))
    agreeing = sum(first.at(step + 1) == second.at(step) for step in range(300))
    assert agreeing < 150  # 100 by chance


def test_a_sandwich_is_the_largest_the_smallest_and_one_drawn_each_once() -> None:
    used = sampler(ElasticPolicy.sandwich)
    drawn = [[spec.name for spec in used.at(step)] for step in range(50)]
    assert all(names[:2] == ["full", "short"] for names in drawn)
    assert {tuple(names[2:]) for names in drawn} == {(), ("narrow",)}


def test_the_sampler_knows_whether_a_step_may_skip_layers() -> None:
    narrow, short = (SliceSampler(elastic(ElasticPolicy.sample, ["full", name]), TINY_TEXT, seed=0)
                     for name in ("narrow", "short"))  # fmt: skip
    assert not narrow.may_skip_layers
    assert short.may_skip_layers


def test_a_slice_that_does_not_fit_is_refused_when_the_sampler_is_made() -> None:
    config = ElasticConfig(policy=ElasticPolicy.sample, slices={"wide": SliceConfig(name="wide", ffn_widths=[49])})
    with pytest.raises(SliceError, match=r"layer 0 asks for width 49"):
        SliceSampler(config, TINY_TEXT, seed=0)


def test_a_policy_without_slices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"elastic\.slices is empty"):
        ElasticConfig(policy=ElasticPolicy.sandwich)


def test_probabilities_must_name_the_slices() -> None:
    with pytest.raises(ConfigError, match=r"names \['fall'\], but elastic\.slices has \['full', 'narrow', 'short'\]"):
        sampler(ElasticPolicy.sample, probabilities={"fall": 1.0})


def test_a_slice_is_listed_under_its_own_name() -> None:
    config = ElasticConfig(policy=ElasticPolicy.sample, slices={"half": SLICES["narrow"]})
    with pytest.raises(ConfigError, match=r"elastic\.slices\.half is named 'narrow'"):
        SliceSampler(config, TINY_TEXT, seed=0)


def test_a_policy_that_would_only_ever_train_the_whole_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"elastic\.policy is sample, but sizes has only 'full'.*give sizes="):
        SliceSampler(elastic(ElasticPolicy.sample, ["full"]), TINY_TEXT, seed=0)


def test_without_elastic_training_probabilities_are_ignored() -> None:
    config = ElasticConfig(policy=ElasticPolicy.off, probabilities={"narrow": -1.0})
    assert SliceSampler(config, TINY_TEXT, seed=0).at(0) == (SliceSpec.full(TINY_TEXT),)
