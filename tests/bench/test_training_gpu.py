# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark with toys on the processor: every way it goes but flex attention's, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.layers.embedding import TablePlacement
from model.recompute import TextRecompute
from tests.bench import training_gpu
from tests.bench.training_gpu import SCALES, main
from tests.bench.training_gpu_measures import OUT_OF_MEMORY, Cost, attempted, whole_loss
from tests.bench.training_gpu_report import GIB, Steps
from tests.bench.training_gpu_sides import IGNORED, Ours, Packs, Setting, Who, random_model, seen_pairs, side_of
from trainer.loss import linear_cross_entropy_sum

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CPU = torch.device("cpu")
SMALL = SCALES["small"]


@pytest.mark.slow
def test_all_of_it_is_gone_through_in_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_gpu, "loss_cost", refusing(training_gpu.loss_cost, 2 << 20))
    page = tmp_path / "page.md"
    words = ["--scale", "small", "--device", "cpu", "--models", "e4b", "--rounds", "1", "--document", str(page)]
    assert main(words) == 0
    told = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out == told + "\n"
    lines = [line for line in told.splitlines() if line.startswith(("| ours,", "| theirs,"))]
    assert len(lines) == 12
    assert not [line for line in lines if "failed" in line or OUT_OF_MEMORY in line]
    assert len({line.split("|")[-2] for line in lines}) == 1  # all train as many parameters
    assert f"| 2 MiB | {OUT_OF_MEMORY} |" in told
    assert "sides' losses differ by" in told


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_all_of_it_is_gone_through_in_small_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scale", "small", "--models", "e4b", "--rounds", "2"]) == 0
    told = capsys.readouterr().out
    assert "attention flex" in told
    assert "failed" not in told


def refusing(measure: Callable[..., Cost], chunk_bytes: int) -> Callable[..., Cost]:
    """The same measurement, with too little memory for one size of chunks."""

    def measured(*arguments: Any) -> Cost:
        if chunk_bytes in arguments:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return measure(*arguments)

    return measured


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in ([], ["--device", "cpu"]):
        assert main(words) == 2
        assert "--scale small --device cpu" in capsys.readouterr().err


def test_a_measurement_that_fails_costs_only_itself() -> None:
    def broken() -> Cost:
        raise RuntimeError("no kernel\n  for this")

    assert attempted(broken).problem == "failed: no kernel for this"
    assert attempted(lambda: Cost([1.0])).middle == 1.0


def test_the_full_scale_is_the_one_that_is_promised() -> None:
    scale = SCALES["full"]
    e4b, e2b = (scale.config(model).text for model in ("e4b", "e2b"))
    assert (e4b.num_hidden_layers, e2b.num_hidden_layers, e4b.vocab_size) == (35, 30, 262_400)
    packs = scale.packs("e4b")
    assert packs.ids.shape == (4, 4096)
    assert [sum(row) for row in packs.lengths] == [4096] * 4
    assert len(set(packs.lengths[0])) > 3
    # About four operations for each of the 4.5 billion weights that a token meets.
    assert packs.flops(e4b) == pytest.approx(16_384 * 4 * 4.5e9, rel=0.1)


def test_pairs_that_see_each_other_are_those_of_a_mask() -> None:
    for length, window in ((7, None), (7, 3), (3, 5), (1, 1)):
        mask = torch.ones(length, length).tril()
        assert seen_pairs(length, window) == (mask if window is None else mask.triu(1 - window)).sum()


def test_labels_end_where_documents_end() -> None:
    packs = Packs(torch.tensor([[5, 6, 7, 8, 9]]), ((2, 3),))
    assert packs.labels.tolist() == [[6, IGNORED, 8, 9, IGNORED]]
    assert packs.inputs.known_lengths() == ((2, 3),)
    assert [each.tolist() for each in packs.documents] == [[5, 6], [7, 8, 9]]


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_do_not_depend_on_how_a_step_is_divided_and_both_sides_have_the_same(padded: bool) -> None:  # noqa: FBT001
    config, packs = SMALL.config("e4b"), SMALL.packs("e4b")
    if not padded:  # for theirs a row is a document
        packs = Packs(packs.ids, ((packs.ids.shape[1],),) * len(packs.ids))
    found = []
    for who, at_once, keep in (
        (Who.ours, 2, True),
        (Who.ours, 1, False),
        (Who.theirs, 2, False),
        (Who.theirs, 1, True),
    ):
        recompute = TextRecompute.none if keep else TextRecompute.full
        setting = Setting(who=who, rows_at_once=at_once, recompute=recompute, padded=padded and who is Who.theirs)
        torch.manual_seed(0)
        side = side_of(config, packs, setting, CPU, torch.float32)
        for name, parameter in side.module.named_parameters():
            if "lora_A" in name:  # the same factors for both, and a second one that is not zero
                torch.nn.init.constant_(parameter, 0.01)
            elif "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.02)
        side.backward()
        found.append(sum((p.grad.norm() ** 2).item() for p in side.module.parameters() if p.grad is not None))
    assert found == pytest.approx([found[0]] * 4, rel=1e-3)


def test_a_table_on_the_host_trains_the_same_shape() -> None:
    config, packs = SMALL.config("e4b"), SMALL.packs("e4b")
    model = random_model(config, CPU, torch.float32, TablePlacement.host)
    assert model.per_layer_table is not None
    side = Ours(model, packs, Setting(who=Who.ours, rows_at_once=1, table=TablePlacement.host))
    assert all(inputs.per_layer_rows is not None for inputs, _ in side.batches)
    side.backward()
    assert all(p.grad is not None for p in side.module.parameters() if p.requires_grad)


def test_the_loss_in_one_piece_is_the_loss_in_chunks() -> None:
    hidden, weight, labels = torch.randn(2, 5, 8), torch.randn(30, 8), torch.randint(0, 30, (2, 5))
    whole = whole_loss(hidden, weight, labels, softcap=30.0)
    assert linear_cross_entropy_sum(hidden, weight, labels, softcap=30.0, chunk_bytes=1) == pytest.approx(whole.item())


def test_what_is_held_against_an_aim_keeps_to_its_memory_and_a_table_is_compared_with_its_like() -> None:
    plain = Setting(who=Who.ours, rows_at_once=4)
    host = Setting(who=Who.ours, rows_at_once=4, table=TablePlacement.host)
    quick = Setting(who=Who.ours, rows_at_once=4, recompute=TextRecompute.none)
    broken = Setting(who=Who.ours, rows_at_once=1)
    costs = {plain: Cost([2.0], 30 * GIB), quick: Cost([1.0], 60 * GIB), host: Cost([2.5], 25 * GIB)}
    steps = Steps(1.0, None, costs | {broken: Cost(problem=OUT_OF_MEMORY)})
    assert steps.fastest(Who.ours) == quick
    assert steps.fastest(Who.ours, 40 * GIB) == plain
    assert steps.fastest(Who.theirs) is None
    assert steps.saved() == (host, 5 * GIB)
