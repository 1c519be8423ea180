# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of random numbers, as large as published ones, written block by block: something to slice.

python -m tests.bench.random_checkpoint TARGET --scale full
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.checkpoint.blocks import BLOCK_BYTES, Bytes
from model.checkpoint.format import ITEM_BYTES
from model.checkpoint.shapes import model_shapes
from model.checkpoint.writer import write_checkpoint
from model.config import ModelConfig, TextConfig
from model.slicing.count import Layout
from model.tower_config import AudioConfig, VisionConfig

# Of every bfloat16 the highest bit of the exponent is off, so that none is infinite, and all are below two.
FINITE = np.uint64(0xBFFF_BFFF_BFFF_BFFF)


@dataclass(frozen=True)
class Scale:
    """A parent of E4B's 35 layers, as wide as this; its files are filled up to ``shard_bytes``."""

    name: str
    hidden: int  # as hidden_size in config.json
    width: int  # of a feed-forward network
    per_layer: int  # hidden size of the per-layer embeddings
    shard_bytes: int
    published_towers: bool

    @property
    def config(self) -> ModelConfig:
        """The parent's."""
        text = TextConfig.parse({
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "hidden_size_per_layer_input": self.per_layer,
            "head_dim": self.hidden // 8,
        })  # fmt: skip
        if self.published_towers:
            return ModelConfig(text=text, vision=VisionConfig(), audio=AudioConfig())
        tokens = dataclasses.replace(VisionConfig().tokens, per_item=16)
        vision = VisionConfig(architecture="mobilenetv5_tiny_enc", hidden_size=64, tokens=tokens)
        return ModelConfig(text=text, vision=vision, audio=AudioConfig(hidden_size=64, conf_num_hidden_layers=2))

    @property
    def nbytes(self) -> int:
        """Of all the parent's tensors."""
        return sum(map(math.prod, model_shapes(self.config, Layout.published).values())) * ITEM_BYTES["BF16"]


SCALES = {
    scale.name: scale for scale in (
        Scale("full", hidden=2048, width=16_384, per_layer=256, shard_bytes=5_000_000_000, published_towers=True),
        Scale("middle", hidden=1024, width=8192, per_layer=64, shard_bytes=1_250_000_000, published_towers=False),
        Scale("small", hidden=256, width=2048, per_layer=16, shard_bytes=110_000_000, published_towers=False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class RandomPart:
    """A tensor of finite random bfloat16 numbers."""

    name: str
    shape: tuple[int, ...]
    generator: np.random.Generator
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def blocks(self) -> Iterator[RandomBlock]:
        """The tensor in pieces."""
        for start in range(0, self.nbytes, BLOCK_BYTES):
            yield RandomBlock(min(BLOCK_BYTES, self.nbytes - start), self.generator.spawn(1)[0])


@dataclass(frozen=True)
class RandomBlock:
    """So many bytes, from a generator of their own: several threads make them at once."""

    nbytes: int
    generator: np.random.Generator

    def read(self) -> Bytes:
        """The bytes."""
        words = self.generator.integers(0, 2**64, -(-self.nbytes // 8), dtype=np.uint64)
        words &= FINITE
        return words.view(np.uint8)[: self.nbytes]


def write_random_checkpoint(scale: Scale, target: Path, seed: int = 0) -> None:
    """Write all tensors that a published checkpoint of this shape has: keys and values nobody reads, and towers."""
    generator = np.random.Generator(np.random.SFC64(seed))
    shapes = model_shapes(scale.config, Layout.published)
    parts = [RandomPart(name, shape, generator) for name, shape in shapes.items()]
    write_checkpoint(parts, scale.config, target, max_shard_bytes=scale.shard_bytes)


def main() -> None:
    """Write as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--scale", choices=SCALES, required=True)
    wanted = parser.parse_args()
    write_random_checkpoint(SCALES[wanted.scale], wanted.target)


if __name__ == "__main__":
    main()
