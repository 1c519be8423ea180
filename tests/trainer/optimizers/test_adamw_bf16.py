# SPDX-License-Identifier: Apache-2.0
"""Moments and weights in bfloat16: right on average, and nothing small is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from tests.trainer.optimizers.gradients import give_gradients
from trainer.optimizers import adamw_bf16
from trainer.optimizers.adamw_bf16 import LOST, LOST_BITS, AdamWBf16States, rounded

BFLOAT16 = torch.bfloat16
EVERY_NOISE = torch.arange(2**LOST_BITS)


def bf16_adamw(
    *parameters: nn.Parameter, lr: float = 1e-2, weight_decay: float = 0.0, seed: int = 0
) -> AdamWBf16States:
    named = [(str(number), parameter) for number, parameter in enumerate(parameters)]
    return AdamWBf16States(
        [{"params": named}], lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, seed=seed
    )  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_bfloat16_can_hold_stays_as_it_is_whatever_the_noise() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(BFLOAT16)
    every = every[~every.isnan()]
    for noise in (0, 1, LOST):
        found = rounded(every.float(), torch.full(every.shape, noise), 0)
        assert torch.equal(found.view(torch.int16), every.view(torch.int16))  # signs of zeros too


@pytest.mark.parametrize("value", [1.0 + 2**-12, -1.7e-3, 3.3e20, 1 / 3, 2.0 - 2**-20, 5e-39])
def test_over_all_noise_the_mean_is_the_value_and_no_other_than_its_neighbours_occurs(value: float) -> None:
    exact = torch.full(EVERY_NOISE.shape, value)
    found = rounded(exact, EVERY_NOISE, 0).double()
    assert found.mean().item() == exact[0].double().item()
    assert found.unique().numel() == 2
    assert found.min() < exact[0].double() < found.max()
    nearest = exact[:1].to(BFLOAT16).double()
    assert nearest in found


@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_part_of_the_noise_is_even_and_unlike_the_others(part: int) -> None:
    noise = torch.empty(200_000, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))
    pieces = [((noise >> (LOST_BITS * number)) & LOST).double() for number in range(3)]
    assert pieces[part].mean().item() == pytest.approx(LOST / 2, rel=0.01)  # of 200,000 draws it is off by 0.0013
    assert pieces[part].std().item() == pytest.approx(LOST / 12**0.5, rel=0.01)
    other = pieces[(part + 1) % 3]
    assert abs(torch.corrcoef(torch.stack([pieces[part], other]))[0, 1].item()) < 0.02


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (4, 3, 2)], ids=str)
def test_the_first_step_is_that_of_torch(shape: tuple[int, ...], weight_decay: float) -> None:
    ours, theirs = (nn.Parameter(drawn(*shape)) for _ in range(2))
    optimizer = bf16_adamw(ours, weight_decay=weight_decay)
    reference = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=weight_decay)
    for parameter, one in ((ours, optimizer), (theirs, reference)):
        give_gradients({"parameter": parameter}, 1)
        one.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # operations in another order
    for moment in ("exp_avg", "exp_avg_sq"):
        kept = optimizer.state[ours][moment]
        assert kept.dtype == BFLOAT16
        torch.testing.assert_close(kept.float(), reference.state[theirs][moment], rtol=2**-7, atol=0)


def test_rows_are_moved_in_turn_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_turn = (nn.Parameter(drawn(9, 4)) for _ in range(2))
    give_gradients({"parameter": at_once}, 1)
    give_gradients({"parameter": in_turn}, 1)
    bf16_adamw(at_once).step()
    monkeypatch.setattr(adamw_bf16, "CHUNK", 8)  # two rows of four
    bf16_adamw(in_turn).step()
    assert torch.equal(at_once, in_turn)


def test_many_steps_stay_near_torchs_without_drifting_to_one_side() -> None:
    ours, theirs = (nn.Parameter(drawn(20_000)) for _ in range(2))
    optimizer, reference = bf16_adamw(ours, lr=1e-3), torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.0)
    before = drawn(20_000)
    for step in range(50):
        for parameter, one in ((ours, optimizer), (theirs, reference)):
            give_gradients({"parameter": parameter}, step)
            one.step()
    way, difference = (theirs - before).detach(), (ours - theirs).detach()
    assert difference.norm() < 0.02 * way.norm()
    assert abs(difference.mean()) < 1e-3 * way.abs().mean()


def test_small_steps_of_bfloat16_weights_add_up_where_rounding_to_the_nearest_loses_them() -> None:
    steps, rate = 200, 1e-4  # the neighbour of 1 is 39 such steps away
    ours, theirs = (nn.Parameter(torch.ones(4_000, dtype=BFLOAT16)) for _ in range(2))
    optimizer, plain = bf16_adamw(ours, lr=rate), torch.optim.AdamW([theirs], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        for parameter, one in ((ours, optimizer), (theirs, plain)):
            parameter.grad = torch.ones_like(parameter)
            one.step()
    assert (theirs == 1).all()
    assert ours.float().mean().item() == pytest.approx(1 - steps * rate, abs=2e-4)


def test_the_second_moment_follows_slow_changes_that_rounding_to_the_nearest_loses() -> None:
    parameter = nn.Parameter(torch.zeros(4_000))
    optimizer = bf16_adamw(parameter)
    nearest = torch.tensor(1.0, dtype=BFLOAT16)
    parameter.grad = torch.full_like(parameter, 1000**0.5)
    optimizer.step()  # v is 1 now, and 0.001 of it is lost in a step that rounds to the nearest
    for _ in range(300):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        nearest = nearest * 0.999
    assert nearest == 1
    assert optimizer.state[parameter]["exp_avg_sq"].float().mean().item() == pytest.approx(0.999**300, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_regression_is_learnt_as_well_as_in_float32(dtype: torch.dtype) -> None:
    inputs, truth = drawn(256, 16), drawn(16, 4, seed=1)
    targets = inputs @ truth

    def loss_of(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * (1 - step / 300)
            optimizer.zero_grad()
            ((inputs @ weight.float() - targets) ** 2).mean().backward()
            optimizer.step()
        return ((inputs @ weight.float() - targets) ** 2).mean().item()

    ours, theirs = nn.Parameter(torch.zeros(16, 4, dtype=dtype)), nn.Parameter(torch.zeros(16, 4))
    found = loss_of(ours, bf16_adamw(ours))
    expected = loss_of(theirs, torch.optim.AdamW([theirs], weight_decay=0.0))
    begun = (targets**2).mean().item()
    # Of what there was to learn, float32 leaves nothing; bfloat16 weights leave what eight bits cannot say.
    assert max(expected, found if dtype == torch.float32 else 0.0) < 1e-10 * begun
    assert found < 2e-5 * begun


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_neuron_without_gradient_never_moves(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(drawn(6, 5).to(dtype))
    before, optimizer = parameter.detach().clone(), bf16_adamw(parameter)
    for step in range(3):
        give_gradients({"parameter": parameter}, step)
        assert parameter.grad is not None
        parameter.grad[2:4] = 0
        optimizer.step()
    assert (parameter != before).any(dim=1).tolist() == [True, True, False, False, True, True]
    assert all(not optimizer.state[parameter][moment][2:4].any() for moment in ("exp_avg", "exp_avg_sq"))


def test_a_parameter_without_gradient_is_left_alone_and_changes_nothing_for_others() -> None:
    both, alone = ([nn.Parameter(drawn(40)), nn.Parameter(drawn(40))] for _ in range(2))
    for parameters, used in ((both, (0, 1)), (alone, (1,))):
        optimizer = bf16_adamw(*parameters)
        for step in range(3):
            for number in used:
                give_gradients({"parameter": parameters[number]}, step)
            optimizer.step()
    assert torch.equal(both[1], alone[1])
    assert torch.equal(alone[0], drawn(40))


def test_the_noise_is_decided_by_the_seed() -> None:
    def moved(seed: int) -> Tensor:
        parameter = nn.Parameter(drawn(200).to(BFLOAT16))
        torch.randn(seed + 1)  # whoever else draws does not matter
        give_gradients({"parameter": parameter}, 0)
        bf16_adamw(parameter, lr=1e-4, seed=seed).step()
        return parameter.detach()

    assert torch.equal(moved(3), moved(3))
    assert not torch.equal(moved(3), moved(4))


def test_weights_of_several_processes_are_moved_like_plain_ones(tmp_path: Any) -> None:
    """What a process holds of a sharded weight is moved in place."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        plain = nn.Parameter(drawn(6, 5).to(BFLOAT16))
        spread = nn.Parameter(DTensor.from_local(plain.detach().clone(), mesh, [Replicate()]))
        plain.grad = drawn(6, 5, seed=1).to(BFLOAT16)
        spread.grad = DTensor.from_local(plain.grad.clone(), mesh, [Replicate()])
        one, other = bf16_adamw(plain), bf16_adamw(spread)
        one.step()
        other.step()
        assert isinstance(spread, DTensor)
        assert isinstance(other.state[spread]["exp_avg"], DTensor)
        assert torch.equal(spread.to_local(), plain)
    finally:
        torch.distributed.destroy_process_group()
