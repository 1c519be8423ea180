# SPDX-License-Identifier: Apache-2.0
"""Costs add up over groups to what a plan of the whole sub-model says, and budgets below the floor are refused."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.errors import ConfigError
from model.slicing.plan import Plan, StoredAs
from model.slicing.submodel import SubModel
from tests.tiny import tiny_config, tiny_multimodal_config
from tests.trainer.search.spaces import priced, space_of, spaces, tables
from trainer.search.cost import CostConfig, Resource, exact_costs
from trainer.search.space import Space, SpaceConfig
from trainer.sweep.row import sizes_of

CONTEXT = 20
COUNTED = [resource for resource in Resource if resource is not Resource.latency_seconds]


def planned(plan: Plan, written: CostConfig) -> int:
    """What ``matslice plan`` says of the resource."""
    return {
        Resource.effective_parameters: plan.used.effective,
        Resource.total_parameters: plan.used.total,
        Resource.weight_bytes: plan.weight_bytes[written.dtype],
        Resource.kv_bytes: plan.cache_bytes[written.cache_dtype],
        Resource.flops_per_token: plan.work_per_token.total,
    }[written.resource]


@settings(max_examples=25, deadline=None)
@given(
    spaces(), st.sampled_from(COUNTED), st.sampled_from((StoredAs.bf16, StoredAs.fp32)),
    st.sampled_from((tiny_config(), tiny_multimodal_config())),
    st.integers(0, 1000),
)  # fmt: skip
def test_costs_are_those_of_a_plan(
    space: Space, resource: Resource, dtype: StoredAs, whole: ModelConfig, seed: int
) -> None:
    config = dataclasses.replace(whole, text=space.config)
    written = CostConfig(resource=resource, context_tokens=CONTEXT, dtype=dtype)
    costs = exact_costs(space, config, written)
    for point in (costs.floor, space.top, space.draw(random.Random(seed))):
        plan = Plan.of(config, SubModel(space.spec(point)), context_tokens=CONTEXT)
        assert costs.at(point) == planned(plan, written)


@pytest.mark.parametrize("whole", [tiny_config(), tiny_multimodal_config()])
def test_a_budget_is_compared_with_what_rows_of_a_sweep_say(whole: ModelConfig) -> None:
    space = space_of(SpaceConfig())
    assert any(layer >= space.config.first_shared_layer for layer in range(space.config.num_hidden_layers))
    for resource, name in (
        (Resource.effective_parameters, "effective_parameters"), (Resource.total_parameters, "parameters"),
        (Resource.weight_bytes, "weight_bytes"),
    ):  # fmt: skip
        costs = exact_costs(space, whole, CostConfig(resource=resource))
        for point in (costs.floor, space.top):
            assert costs.at(point) == getattr(sizes_of(whole, space.spec(point)), name)


def test_a_resource_of_which_all_need_the_same_is_refused() -> None:
    space, written = space_of(SpaceConfig()), CostConfig(resource=Resource.kv_bytes, context_tokens=CONTEXT)
    costs = exact_costs(space, tiny_config(), written)
    assert costs.at(costs.floor) == costs.ceiling  # of producers none may be left out
    with pytest.raises(ConfigError, match=r"widths change no keys and values.*layers 0-2; .*space\.skip=\[\[0\]\]"):
        costs.check(costs.ceiling)
    named = exact_costs(space_of(SpaceConfig(skip=[[0]])), tiny_config(), written)
    assert named.at(named.floor) < named.ceiling
    named.check(named.ceiling)
    one = exact_costs(space_of(SpaceConfig(widths=[24], skip=[])), tiny_config(), CostConfig())
    with pytest.raises(ConfigError, match=r"give layers more widths"):
        one.check(one.ceiling)


def test_bytes_that_do_not_add_up_over_layers_are_refused() -> None:
    written = CostConfig(resource=Resource.weight_bytes, context_tokens=CONTEXT, dtype=StoredAs.int4)
    with pytest.raises(ConfigError, match=r"set cost\.dtype=bf16, or space\.skip=\[\]"):
        exact_costs(space_of(SpaceConfig()), tiny_config(), written)
    costs = exact_costs(space := space_of(SpaceConfig(skip=[])), tiny_config(), written)
    plan = Plan.of(tiny_config(), SubModel(space.spec(costs.floor)), context_tokens=CONTEXT)
    assert costs.at(costs.floor) == plan.weight_bytes[StoredAs.int4]


@settings(max_examples=40, deadline=None)
@given(st.data(), spaces())
def test_floor_and_ceiling_are_the_extremes(data: st.DataObject, space: Space) -> None:
    costs = priced(space, data.draw(tables(space)))
    every = [costs.at(point) for point in space]
    assert costs.at(costs.floor) == min(every)
    assert costs.of_each(np.array(list(space))).tolist() == every
    assert costs.ceiling == max(every)


def test_a_budget_below_the_floor_is_refused_and_the_floor_named() -> None:
    config = tiny_config()
    costs = exact_costs(space_of(SpaceConfig()), config, CostConfig(context_tokens=CONTEXT))
    floor = costs.at(costs.floor)
    costs.check(floor)
    with pytest.raises(ConfigError) as error:
        costs.check(floor - 1)
    message = str(error.value)
    assert f"budget of {floor - 1:,} effective parameters" in message
    assert f"keeps layers 0-2, 6-8, of widths 24, and costs {floor:,} effective parameters" in message


def test_budgets_are_spread_up_to_the_ceiling() -> None:
    costs = priced(space_of(SpaceConfig(widths=[8, 24], skip=[])))
    budgets = costs.spread(4)
    assert budgets[-1] == costs.ceiling
    assert budgets == sorted(budgets)
    assert budgets[0] > costs.at(costs.floor)


@pytest.mark.parametrize("resource", [Resource.kv_bytes, Resource.flops_per_token])
def test_a_context_that_the_model_cannot_have_is_refused_where_it_matters(resource: Resource) -> None:
    space = space_of(SpaceConfig())
    with pytest.raises(ConfigError, match="context is 4096 tokens"):
        exact_costs(space, tiny_config(), CostConfig(resource=resource))
    exact_costs(space, tiny_config(), CostConfig())
