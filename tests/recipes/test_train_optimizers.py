# SPDX-License-Identifier: Apache-2.0
"""Optimizers as a user chooses them: what they refuse, what they tell, and runs that go on with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.trained import OPTIMIZER_FILE, WEIGHTS

Train = Callable[..., int]
GROUP = "{match: q_proj, learning_rate_scale: 0.5}"


def stored(checkpoint: Path) -> dict[str, Tensor]:
    return {
        name: value
        for path in (checkpoint / WEIGHTS).glob("*.safetensors")
        for name, value in load_file(path).items()
    }  # fmt: skip


BF16_WORDS = ["adapter=none", "optim=adamw_bf16_states", "optim.learning_rate=1e-3", "trainer.precision=bf16"]
ADAFACTOR_WORDS = ["adapter=none", "optim=adafactor", "schedule=wsd", "schedule.warmup_steps=0"]
GROUP_WORDS = [
    "optim.lora_plus_ratio=8", f"optim.groups=[{GROUP}]", "schedule.warmup_steps=null", "schedule.warmup_share=0.3",
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(BF16_WORDS, id="bfloat16 weights"),
        pytest.param(ADAFACTOR_WORDS, id="adafactor", marks=pytest.mark.slow),
        pytest.param(GROUP_WORDS, id="groups", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_lost_its_last_steps_takes_them_again_bit_for_bit(
    train: Train, tmp_path: Path, words: list[str]
) -> None:
    words = [*words, "trainer.max_steps=4", "trainer.save_every=2"]
    assert train(*words) == 0
    last = tmp_path / "run" / "checkpoints" / "step_000004"
    kept = shutil.copytree(last, tmp_path / "kept")
    shutil.rmtree(last)
    assert train(*words, "trainer.resume=true") == 0
    before, after = stored(kept), stored(last)
    assert before.keys() == after.keys()
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (kept / OPTIMIZER_FILE).read_bytes() == (last / OPTIMIZER_FILE).read_bytes()
    earlier = stored(last.with_name("step_000002"))
    assert any(not torch.equal(value, earlier[name]) for name, value in before.items())


def test_bfloat16_weights_are_trained_by_an_optimizer_that_does_not_lose_their_steps(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("adapter=none", "trainer.precision=bf16") != 0
    told = capsys.readouterr().err
    assert "trainer.precision is bf16, but without an adapter" in told
    assert "optim=adamw_bf16_states" in told


def test_groups_are_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("optim.lora_plus_ratio=8", f"optim.groups=[{GROUP}]") == 0
    told = capsys.readouterr().err
    for scale in ("0.5", "4", "1", "8"):
        assert f"parameters: learning rate × {scale}, weight decay 0\n" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.groups=[{match: vision, weight_decay: 0.1}]"], "'vision' matches nothing that is trained (model."),
        (["optim.groups=[{match: q_proj}]"], "optim.groups: 'q_proj' changes nothing"),
        (["adapter=none", "optim.lora_plus_ratio=8"], "no adapter of a linear layer is trained"),
        (["optim=adamw_8bit"], "optim.name is adamw_8bit, but "),
        (["schedule=wsd", "schedule.decay_share=null"], "schedule.decay_share is None; wsd falls in a share"),
    ],
    ids=["no match", "no change", "no adapter", "8 bits", "wsd"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="8 bits may be at hand")
def test_what_cannot_be_is_refused_before_there_is_a_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(*words) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
