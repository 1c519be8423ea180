# SPDX-License-Identifier: Apache-2.0
"""The table of per-layer embeddings off the device: the same bits, fewer bytes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapter.lora import AdapterConfig, attach, load_adapter, merge, save_adapter
from model.checkpoint.load import load
from model.checkpoint.saving import save
from model.errors import CheckpointError, InputError
from model.gemma3n import Gemma3n
from model.layers.embedding import TablePlacement
from model.recompute import RecomputeConfig
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

DEVICE, HOST, MMAP = TablePlacement.device, TablePlacement.host, TablePlacement.mmap
NAME = "model.language_model.embed_tokens_per_layer.weight"
SMALL = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
BOTH = pytest.mark.parametrize("placement", [HOST, MMAP])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Path]:
    directory = tmp_path_factory.mktemp("models")
    for dtype in (torch.float32, torch.bfloat16):
        save(tiny_model(dtype=dtype), directory / str(dtype))
    return lambda dtype: directory / str(dtype)


Saved = Callable[[torch.dtype], Path]


def result(model: Gemma3n, spec: SliceSpec | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores and gradients, on tokens of which some are beyond the table and some are padding."""
    model.zero_grad(set_to_none=True)
    inputs = tiny_inputs(tiny_config(), padding="left")
    assert int(inputs.ids.max()) >= TINY_TEXT.vocab_size_per_layer_input
    scores = model(inputs, spec).logits
    scores.square().mean().backward()
    return scores.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@BOTH
@pytest.mark.parametrize("spec", [None, SMALL], ids=["full", "sub-model"])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32),
     (torch.bfloat16, torch.bfloat16)],
)  # fmt: skip
def test_scores_and_gradients_are_the_same_to_the_last_bit(
    saved: Saved, placement: TablePlacement, stored: torch.dtype, dtype: torch.dtype, spec: SliceSpec | None
) -> None:
    scores, gradients = result(load(saved(stored), dtype=dtype), spec)
    aside = load(saved(stored), dtype=dtype, per_layer_table=placement)
    assert NAME not in dict(aside.named_parameters())
    found_scores, found = result(aside, spec)
    assert torch.equal(found_scores, scores)
    assert set(gradients) - set(found) == {NAME}
    assert [name for name, gradient in found.items() if not torch.equal(gradient, gradients[name])] == []


@BOTH
def test_a_sub_model_is_read_with_its_columns_of_the_table(saved: Saved, placement: TablePlacement) -> None:
    expected = load(saved(torch.float32), dtype=torch.float32, spec=SMALL)
    found = load(saved(torch.float32), dtype=torch.float32, spec=SMALL, per_layer_table=placement)
    assert found.per_layer_table is not None
    assert found.per_layer_table.source.shape == (80, 6 * 6)
    assert torch.equal(result(found)[0], result(expected)[0])


@BOTH
def test_rows_gathered_ahead_are_used_and_each_is_gathered_once(saved: Saved, placement: TablePlacement) -> None:
    model = load(saved(torch.float32), dtype=torch.float32, per_layer_table=placement)
    inputs = tiny_inputs(tiny_config(), batch=4, seq=60)
    table = model.per_layer_table
    assert table is not None
    gathered = table.gather(inputs.ids)
    assert len(gathered.rows) == len(inputs.ids.where(inputs.ids < 80, 0).unique()) < inputs.ids.numel() / 2
    expected = model(inputs).logits
    ahead = dataclasses.replace(inputs, per_layer_rows=gathered).to("cpu")
    del table.source  # nothing is read again
    assert torch.equal(model(ahead).logits, expected)


def test_rows_gathered_for_other_tokens_are_refused(saved: Saved) -> None:
    table = load(saved(torch.float32), dtype=torch.float32, per_layer_table=MMAP).per_layer_table
    assert table is not None
    inputs = tiny_inputs(tiny_config())
    with pytest.raises(InputError, match=r"gathered for tokens of shape \(3, 20\), but the ids have \(3, 21\)"):
        dataclasses.replace(inputs, per_layer_rows=table.gather(inputs.ids[:, 1:]))


def test_rows_for_a_model_with_the_table_on_its_device_are_refused(saved: Saved) -> None:
    table = load(saved(torch.float32), dtype=torch.float32, per_layer_table=MMAP).per_layer_table
    assert table is not None
    inputs = tiny_inputs(tiny_config())
    with pytest.raises(InputError, match="this model has the table on its device; leave per_layer_rows out"):
        tiny_model()(dataclasses.replace(inputs, per_layer_rows=table.gather(inputs.ids)))


@BOTH
def test_a_model_is_saved_with_its_table(saved: Saved, placement: TablePlacement, tmp_path: Path) -> None:
    for stored, dtype in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        save(load(saved(stored), dtype=dtype, per_layer_table=placement), tmp_path / str(stored))
        expected = load(saved(stored), dtype=dtype).state_dict()
        found = load(tmp_path / str(stored), dtype=dtype).state_dict()
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_model_is_saved_over_the_checkpoint_its_table_is_mapped_from(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model")
    expected = result(load(tmp_path / "model", dtype=torch.float32))[0]
    mapped = load(tmp_path / "model", dtype=torch.float32, per_layer_table=MMAP)
    save(mapped, tmp_path / "model", overwrite=True)
    assert torch.equal(result(mapped)[0], expected)
    assert torch.equal(result(load(tmp_path / "model", dtype=torch.float32))[0], expected)


@BOTH
def test_an_adapter_is_trained_saved_and_merged_beside_it(
    saved: Saved, placement: TablePlacement, tmp_path: Path
) -> None:
    found = {}
    for name, where in (("device", DEVICE), ("aside", placement)):
        base = load(saved(torch.float32), dtype=torch.float32, per_layer_table=where)
        base.recompute = RecomputeConfig.everything()
        torch.manual_seed(0)
        adapted = attach(base, AdapterConfig(rank=2, alpha=4))
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            result(base)
            optimizer.step()
        save_adapter(adapted, tmp_path / name)
        again = load(saved(torch.float32), dtype=torch.float32, per_layer_table=where)
        found[name] = (
            {key: p.detach() for key, p in adapted.named_parameters() if p.requires_grad},
            result(merge(load_adapter(again, tmp_path / name)))[0],
        )
    (factors, scores), (other_factors, other_scores) = found["device"], found["aside"]
    assert factors.keys() == other_factors.keys()
    assert all(torch.equal(factors[key], other_factors[key]) for key in factors)
    assert torch.equal(scores, other_scores)


def test_a_live_model_without_its_table_is_not_sliced(saved: Saved) -> None:
    model = load(saved(torch.float32), dtype=torch.float32, per_layer_table=HOST)
    with pytest.raises(CheckpointError, match=r"slice 'small': the model's per-layer table is not on its device"):
        slice_module(model, SubModel(SMALL))


@BOTH
def test_it_serves_a_model_with_towers(placement: TablePlacement, tmp_path: Path) -> None:
    config = tiny_multimodal_config()
    save(tiny_model(config), tmp_path / "model")
    inputs = tiny_multimodal_inputs(config, "text image text audio", "audio text image")
    with torch.no_grad():
        expected = load(tmp_path / "model", dtype=torch.float32)(inputs).logits
        model = load(tmp_path / "model", dtype=torch.float32, per_layer_table=placement)
        assert torch.equal(model(inputs).logits, expected)


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 100_000)
    with pytest.raises(CheckpointError):
        load(tmp_path / "model", dtype=torch.float32, per_layer_table=MMAP)


RESIDENT = """
import sys
from pathlib import Path
import torch
from model.checkpoint.load import load
from model.inputs import Inputs
from model.layers.embedding import TablePlacement

def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024

before = resident()
model = load(sys.argv[1], dtype=torch.float32, per_layer_table=TablePlacement(sys.argv[2]))
loaded = resident()
with torch.no_grad():
    model(Inputs.of(torch.arange(1, 65)[None]))
print(loaded - before, resident() - before)
"""


def test_what_is_mapped_is_not_in_memory_until_its_rows_are_read(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=60_000, vocab_size_per_layer_input=60_000, hidden_size_per_layer_input=128)
    save(Gemma3n.build(config), tmp_path / "model")
    table_bytes = 60_000 * 9 * 128 * 4
    assert table_bytes > 250e6

    def taken(placement: TablePlacement) -> list[int]:
        command = [sys.executable, "-c", RESIDENT, str(tmp_path / "model"), placement]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        return [int(number) for number in done.stdout.split()]

    on_device, mapped = taken(DEVICE), taken(MMAP)
    assert on_device[0] - mapped[0] > 0.95 * table_bytes
    assert on_device[1] - mapped[1] > 0.9 * table_bytes  # 64 rows are 18 MB at most, with the pages around them
