# SPDX-License-Identifier: Apache-2.0
"""E4B on a small scale, its official sub-models and random ones, and what transformers makes of them.

The parent has E4B's 35 layers with all their kinds, and its files the published names: also those of the keys
and values that no computation reads. Only sizes are smaller, and a window is a few tokens long.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.checkpoint.names import unused
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.generation.generate import complete, ids_of_media
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs
from model.slicing.spec import SliceSpec
from model.slicing.table import published_slices
from tests.tiny import GLOBAL, LOCAL, TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config

NARROW, WIDE = 32, 64
SCALED = {8192: NARROW, 16384: WIDE}
LAYERS, READERS, SPARSE = 35, 15, 10
LIKE_E4B: dict[str, Any] = {
    "layer_types": ((LOCAL,) * 4 + (GLOBAL,)) * 7,
    "intermediate_size": (WIDE,) * LAYERS,
    "num_kv_shared_layers": READERS,
    "activation_sparsity_pattern": (0.95,) * SPARSE + (0.0,) * (LAYERS - SPARSE),
}
CONFIG = tiny_config(**LIKE_E4B)
WHOLE_CONFIG = tiny_multimodal_config(**LIKE_E4B)
NUM_FILES = 3
# Every row longer than the window by itself, the longest by half of one; shorter ones padded.
INPUTS = {side: tiny_inputs(CONFIG, seq=TINY_TEXT.sliding_window + 5, padding=side) for side in ("left", "right")}
PROMPTS = INPUTS["left"]
SAMPLING = SamplingConfig(max_new_tokens=2 * TINY_TEXT.sliding_window)


@cache
def parent(config: ModelConfig, spread: float) -> Gemma3n:
    """The parent in memory; none of its parameters, padding rows included, is special."""
    return tiny_model(config, spread=spread).eval()


def write_parent(model: Gemma3n, directory: Path) -> None:
    """Write a model as Google writes its own: several files, and in them keys and values that nothing reads.

    By safetensors alone, so that no writer of ours has to be right for it.
    """
    generator = torch.Generator().manual_seed(7)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors |= {name: torch.randn(shape, generator=generator) for name, shape in unused(model.config.text).items()}
    names = sorted(tensors)
    directory.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(NUM_FILES):
        file = f"model-{number + 1:05}-of-{NUM_FILES:05}.safetensors"
        own = names[number * len(names) // NUM_FILES : (number + 1) * len(names) // NUM_FILES]
        save_file({name: tensors[name] for name in own}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    model.config.write(directory)


def official_slices(config: TextConfig = CONFIG.text) -> dict[str, SliceSpec]:
    """The sixteen published sub-models by their published names, with our widths for theirs."""
    return {
        name: SliceSpec.resolve(replace(written, ffn_widths=[SCALED[width] for width in written.ffn_widths]), config)
        for name, written in published_slices().items()
    }


def random_slice(number: int, config: TextConfig = CONFIG.text) -> SliceSpec:
    """A legal sub-model: some of the layers, those whose keys and values they read, and some widths.

    In turn with any widths and with the trained ones, and skipping few layers as often as many.
    """
    draw = random.Random(number)
    skipped = draw.sample(range(LAYERS), draw.randrange(LAYERS))
    kept = set(range(LAYERS)) - set(skipped)
    kept |= {config.kv_producer(layer) for layer in kept}
    widths = (NARROW, WIDE) if number % 2 else range(1, WIDE + 1)
    spec = SliceSpec(f"random {number}", tuple(sorted(kept)), tuple(draw.choice(widths) for _ in kept))
    spec.check(config)
    return spec


def loaded_by_transformers(directory: Path, auto: Any = AutoModelForCausalLM) -> Any:
    """The model transformers makes of a directory: nothing missing, left over, or of another shape."""
    theirs, told = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(told.values()), told
    return theirs.eval()


@torch.no_grad()
def their_scores(theirs: Any, inputs: Inputs, **media: Tensor) -> Tensor:
    """The scores of real tokens in one pass, without a cache."""
    return theirs(input_ids=inputs.ids, attention_mask=inputs.mask, use_cache=False, **media).logits[inputs.mask]


def their_answers(theirs: Any, inputs: Inputs, config: ModelConfig, **media: Tensor) -> list[list[int]]:
    """What transformers says next, greedily, through its cache."""
    said = theirs.generate(
        input_ids=inputs.ids, attention_mask=inputs.mask, **media, max_new_tokens=SAMPLING.max_new_tokens,
        do_sample=False, use_cache=True, eos_token_id=None, suppress_tokens=ids_of_media(config),
    )  # fmt: skip
    return said[:, inputs.ids.shape[1] :].tolist()


def our_answers(ours: Gemma3n, inputs: Inputs, spec: SliceSpec | None = None) -> list[list[int]]:
    """What our model says next, greedily, through our cache."""
    return complete(ours, inputs, sampling=SAMPLING, stop_ids=(), spec=spec)
