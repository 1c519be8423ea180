# SPDX-License-Identifier: Apache-2.0
"""What keeping soft tokens on disk saves: steps of the second epoch, with and without, and that losses are the same.

    python -m tests.bench.soft_tokens [--pixels 256] [--images 4]

The vision tower has the published architecture; the text decoder is small, and only the embedders are trained.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from model.config import ModelConfig
from model.freezing import Part, freeze
from model.gemma3n import Gemma3n
from model.processor.chat import Message, Role
from model.processor.media import Picture
from model.processor.processor import Processor
from model.processor.settings import ImageSettings
from model.slicing.spec import SliceSpec
from model.tower_config import MediaTokens, VisionConfig
from tests.tiny import TINY_TEXT, TINY_VISION
from tests.trainer.parts import tiny_media_tokenizer
from trainer.data.ahead import Ahead
from trainer.data.collate import Collator
from trainer.data.config import LongRows
from trainer.data.example import Example
from trainer.data.loader import Loader
from trainer.data.supervise import tokenize
from trainer.soft_token_cache import SoftTokenCache
from trainer.soft_tokens import SharedTowers
from trainer.step import batch_loss_sum

SOURCE_PIXELS = 640  # of the pictures' files


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=256, help="side of what the tower sees")
    parser.add_argument("--images", type=int, default=4, help="rows with one picture each, all in an epoch")
    wanted = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gemma, processor = model_and_processor(wanted.pixels, device)
    with tempfile.TemporaryDirectory() as folder:
        examples = picture_rows(Path(folder), wanted.images)
        rows = tokenize(examples, processor, max_length_tokens=TINY_TEXT.max_position_embeddings,
                        long_rows=LongRows.refuse).rows  # fmt: skip
        cache = SoftTokenCache.of(Path(folder) / "soft_tokens", gemma, processor, device)
        without, plain = epochs(gemma, Loader(rows, batch_size=1, seed=0, collator=Collator(0, processor)), None)
        kept, cached = epochs(gemma, Loader(rows, batch_size=1, seed=0, collator=Collator(0, processor, cache)), cache)
    table = Table(title=f"{wanted.images} rows of one {wanted.pixels} x {wanted.pixels} image, on {device}")
    for heading in ("seconds per step", "without", "soft tokens kept"):
        table.add_column(heading, justify="right")
    for name, one, other in zip(("first epoch", "second epoch"), without, kept, strict=True):
        table.add_row(name, f"{one:.4f}", f"{other:.4f}")
    Console().print(table)
    print(f"second epoch: {without[1] / kept[1]:.1f} times as fast; losses equal to the bit: {plain == cached}")


def model_and_processor(pixels: int, device: torch.device) -> tuple[Gemma3n, Processor]:
    """A small decoder beside the published vision tower; the embedders alone are trained."""
    tokens = MediaTokens(
        placeholder_id=TINY_VISION.tokens.placeholder_id, begin_id=TINY_VISION.tokens.begin_id,
        end_id=TINY_VISION.tokens.end_id, per_item=256,
    )  # fmt: skip
    vision = VisionConfig(vocab_size=TINY_VISION.vocab_size, vocab_offset=TINY_VISION.vocab_offset, tokens=tokens)
    config = ModelConfig(text=TINY_TEXT, vision=vision)
    gemma = Gemma3n.build(config, device=device)
    gemma.initialize(0)
    for module in gemma.modules():  # as initialised, most blocks of the tower would pass their input on
        if type(module).__name__ == "LayerScale":
            nn.init.constant_(next(module.parameters()), 0.1)
    freeze(gemma, [Part.text, Part.vision])
    settings = ImageSettings(height=pixels, width=pixels)
    return gemma, Processor.create(tiny_media_tokenizer(), config, image=settings)


def picture_rows(folder: Path, count: int) -> list[Example]:
    """Conversations about pictures in files."""
    generator = np.random.default_rng(0)
    examples = []
    for number in range(count):
        path = folder / f"{number}.png"
        coarse = generator.integers(0, 256, (SOURCE_PIXELS // 8, SOURCE_PIXELS // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SOURCE_PIXELS, SOURCE_PIXELS)).save(path)
        turns = (Message(Role.user, (Picture(path), "what")), Message(Role.assistant, "abc"))
        examples.append(Example(turns, f"row {number}"))
    return examples


def epochs(gemma: Gemma3n, loader: Loader, cache: SoftTokenCache | None) -> tuple[list[float], list[float]]:
    """Median seconds of a step in each of two epochs, and all losses; one row is a step, read ahead by a thread."""
    device, towers, spec = Accelerator().device, SharedTowers(gemma, cache), SliceSpec.full(TINY_TEXT)
    batches = Ahead(loader.batch, end=2 * len(loader.rows), workers=1)
    seconds: list[float] = []
    losses: list[float] = []
    for position in range(2 * len(loader.rows)):
        since = time.perf_counter()
        loss = batch_loss_sum(gemma, towers.encode(batches(position).to(device)), spec)
        loss.backward()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - since)
    batches.close()
    half = len(loader.rows)
    return [statistics.median(seconds[:half]), statistics.median(seconds[half:])], losses


if __name__ == "__main__":
    main()
