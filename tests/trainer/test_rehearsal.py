# SPDX-License-Identifier: Apache-2.0
"""What can be counted by hand of a run that is gone through without memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from model.adapter.lora import AdapterConfig
from model.config import LayerType, ModelConfig
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_AUDIO, TINY_PICTURE_PX, TINY_VISION, tiny_config
from trainer.average import AverageConfig
from trainer.config import TrainerConfig
from trainer.ledger import Part
from trainer.optimizers.config import OptimConfig
from trainer.planned import Planned
from trainer.rehearsal import peak_of_run

CONFIG = tiny_config(
    layer_types=(LayerType.full_attention,) * 2, intermediate_size=(48,) * 2, activation_sparsity_pattern=(0.9, 0.0),
    num_kv_shared_layers=1,
)  # fmt: skip
SEEING = ModelConfig(text=CONFIG.text, vision=TINY_VISION, audio=TINY_AUDIO)


def planned(config: ModelConfig = CONFIG, adapter: AdapterConfig | None = None, **trainer: Any) -> Planned:
    """A run of two layers on rows of 40 tokens."""
    return Planned(
        config=config, adapter=adapter, optim=OptimConfig(learning_rate=1e-4), width=40, document=40,
        trainer=TrainerConfig(**{"output": Path("run"), "batch_size": 2, "max_steps": 1, **trainer}),
        picture_px=(TINY_PICTURE_PX, TINY_PICTURE_PX),
    )  # fmt: skip


def peak(run: Planned) -> dict[Part, int]:
    """What tensors alone take."""
    return dict(peak_of_run(run, on_processor=False))


def test_weights_states_and_the_average_are_counted_to_the_byte() -> None:
    parameters = list(Gemma3n.build(CONFIG, device="meta").parameters())
    nbytes = sum(own.numel() * 4 for own in parameters)
    found = peak(planned(average=AverageConfig(decay=0.9)))
    assert found[Part.trained] == found[Part.average] == nbytes
    assert found[Part.states] == 2 * nbytes + 4 * len(parameters)
    assert Part.weights not in found


@pytest.mark.slow
def test_the_average_is_applied_to_be_measured_and_saved_when_that_takes_most() -> None:
    small = {"batch_size": 1, "average": AverageConfig(decay=0.9)}
    run = dataclasses.replace(planned(**small), width=2, document=2)
    nbytes = peak(run)[Part.trained]
    more = sum(peak(dataclasses.replace(run, is_measured=True)).values()) - sum(peak(run).values())
    assert 0 <= more < nbytes  # the copy of the trained weights is there in both, what measuring makes in one


@pytest.mark.slow
def test_several_sub_models_of_a_step_add_to_the_same_gradients() -> None:
    spec = SliceSpec.full(CONFIG.text)
    one, two = (peak(dataclasses.replace(planned(), specs=(spec,) * count)) for count in (1, 2))
    assert sum(two.values()) > sum(one.values())
    assert sum(two.values()) - sum(one.values()) <= one[Part.trained]


def test_micro_batches_wait_for_their_turn() -> None:
    batches = {count: peak(planned(gradient_accumulation=count))[Part.batch] for count in (1, 5)}
    assert batches[5] == 5 * batches[1]


@pytest.mark.slow
def test_pictures_and_sound_are_counted_with_what_towers_make_of_them() -> None:
    plain = peak(planned(SEEING))
    seeing = peak(dataclasses.replace(planned(SEEING), images=1, clips=1))
    pixels = 2 * 3 * TINY_PICTURE_PX**2 * 4
    frames = 2 * TINY_AUDIO.max_frames * TINY_AUDIO.input_feat_size * 4
    assert seeing[Part.batch] - plain[Part.batch] == pixels + frames
    assert seeing[Part.activations] > 2 * plain[Part.activations]  # the towers' are kept for their gradients


@pytest.mark.slow
def test_frozen_towers_keep_nothing_but_soft_tokens() -> None:
    adapter = AdapterConfig(rank=4, alpha=8)
    with_media = dataclasses.replace(planned(SEEING, adapter), images=1, clips=1)
    learning = dataclasses.replace(planned(SEEING), images=1, clips=1)
    assert peak(with_media)[Part.activations] < 0.8 * peak(learning)[Part.activations]


def test_what_a_processor_frees_and_keeps_is_counted_beside_the_same_parts() -> None:
    # The token table is too large for a heap in any case: of small pieces, this process may have enough left over.
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=400_000))
    alone, kept = peak(planned(config)), peak_of_run(planned(config), on_processor=True)
    assert Part.free not in alone
    assert kept[Part.trained] == alone[Part.trained]
    assert kept[Part.states] == alone[Part.states]
