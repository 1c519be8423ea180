# SPDX-License-Identifier: Apache-2.0
"""What ``matslice estimate`` says beside what training took: three steps of each kind, on the processor.

    OMP_NUM_THREADS=1 python -m tests.bench.estimate [NAME …]

Each run is ``matslice train`` in a process of its own, of which the system tells the most memory it ever had (VmHWM).
Linux only; a quarter of an hour.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint.saving import save
from model.config import ModelConfig
from model.processor.processor import Processor
from model.processor.settings import AudioSettings, ImageSettings
from tests.bench.training import ROOT, shape
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, tiny_model
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_tokenizer, tiny_tokenizer, write_jsonl

MIB = 1 << 20
STEPS = 3
SIDE, SECONDS = 256, 1.9  # of a picture, in pixels; of a recording: all that the tiny tower takes
MARGIN = 21  # tokens of a row that are not its answer: marks of turns, and the question
PROGRAM = """
import sys
from pathlib import Path
from recipes.cli import main

status = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print("peak", next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")))
sys.exit(status)
"""


@dataclass(frozen=True)
class Case:
    """A run: the model's vocabulary, the tokens of a row and of the examples in it, and what is said to training."""

    vocab: int
    width: int
    example: int
    words: Sequence[str]
    measures: bool = False  # on rows like those to learn from
    images: int = 0  # in every row
    clips: int = 0

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        plain = shape(hidden=256, width=2048, vocab=self.vocab)
        if not self.has_media:
            return plain
        text = dataclasses.replace(
            plain.text, vocab_size=TINY_TEXT.vocab_size, vocab_size_per_layer_input=TINY_TEXT.vocab_size_per_layer_input
        )  # fmt: skip
        return ModelConfig(text=text, vision=TINY_VISION, audio=TINY_AUDIO)

    @property
    def has_media(self) -> bool:
        """Whether rows hold images or sound."""
        return bool(self.images or self.clips)

    def write_model(self, directory: Path) -> None:
        """A checkpoint with a tokenizer of letters."""
        processor = None
        if self.has_media:
            pixels = ImageSettings(height=SIDE, width=SIDE)
            processor = Processor.create(
                tiny_media_tokenizer(), self.config, image=pixels, audio=AudioSettings(feature_size=16)
            )
        extras = tiny_tokenizer().write if processor is None else processor.write
        save(tiny_model(self.config, spread=0.1), directory, extras=extras)

    def rows(self) -> list[dict[str, Any]]:
        """Conversations that come up to the tokens of an example, all alike."""
        picture = base64.b64encode(picture_bytes(1)).decode()
        sound = base64.b64encode(sound_bytes(300, seconds=SECONDS)).decode()
        media = [{"type": "image", "bytes": picture}] * self.images + [{"type": "audio", "bytes": sound}] * self.clips
        vision, audio = TINY_VISION.tokens.per_item + 6, TINY_AUDIO.tokens.per_item + 6  # with marks and blank lines
        answer = ("abcdefgh " * self.example)[: self.example - MARGIN - self.images * vision - self.clips * audio]
        asked = [*media, {"type": "text", "text": "say"}] if media else "say"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return [{"messages": messages} for _ in range(16 * self.width // self.example)]


LORA = ("adapter=all_linear", "trainer.batch_size=2")
FULL = ("adapter=none", "trainer.batch_size=1")
SANDWICH = (
    "elastic=sandwich",
    "+slice@sizes.narrow=full",
    "sizes.narrow.name=narrow",
    "sizes.narrow.ffn_widths=[1024]",
)
CASES = {
    "lora": Case(100_450, 512, 512, LORA),
    "lora, recompute full, rows to measure on": Case(
        131_200, 512, 512, (*LORA, "trainer.recompute.text=full"), measures=True
    ),
    "lora, long packs, recompute selective, average": Case(
        65_600, 1024, 128, (*LORA, "trainer.recompute.text=selective", "trainer.average.decay=0.99")
    ),
    "lora, bfloat16, table on host, accumulation": Case(  # a small head: products in bfloat16 are slow on a processor
        16_400, 256, 256,
        (*LORA, "trainer.precision=bf16", "trainer.per_layer_table=host", "trainer.gradient_accumulation=2"),
    ),
    "lora, table mapped": Case(262_400, 512, 512, (*LORA, "trainer.per_layer_table=mmap")),
    "full, AdamW": Case(51_250, 256, 256, (*FULL, "optim=adamw_full")),
    "full, bfloat16 states": Case(65_600, 256, 256, (*FULL, "optim=adamw_bf16_states")),
    "full, Adafactor, average, rows to measure on": Case(
        65_600, 256, 256, (*FULL, "optim=adafactor", "trainer.average.decay=0.99"), measures=True
    ),
    "full, sandwich of two sizes": Case(32_800, 512, 512, (*FULL, "optim=adamw_full", *SANDWICH)),
    "images and sound, towers trained": Case(
        4_100, 384, 384, ("adapter=none", "trainer.batch_size=2", "optim=adamw_full"), images=4, clips=2
    ),
}  # fmt: skip


def measured(case: Case, place: Path) -> tuple[int, int]:
    """What is estimated of a run, and what it took, in bytes."""
    checkpoint = place / f"{case.vocab}"
    if not checkpoint.exists():
        case.write_model(checkpoint)
    file = write_jsonl(place / f"{case.width}-{case.example}.jsonl", case.rows())
    words = [
        f"checkpoint={checkpoint}", f"data.train=[{file}]", "trainer=cpu", f"data.max_length_tokens={case.example}",
        f"data.pack_tokens={case.width}", f"trainer.max_steps={STEPS}", "schedule.warmup_steps=0",
        f"trainer.output={place / 'run'}", "trainer.save_every=null", *case.words,
        *([f"data.validation=[{file}]"] if case.measures else []),
    ]  # fmt: skip
    media = [f"images={case.images}", f"clips={case.clips}"]
    told = json.loads(
        output([sys.executable, "-m", "recipes.cli", "estimate", *words, *media, "json=true", "compare=false"])
    )
    taken = output([sys.executable, "-c", PROGRAM, "train", *words]).split()
    subprocess.run(["rm", "-r", str(place / "run")], check=True)
    print(json.dumps({part: round(nbytes / MIB, 1) for part, nbytes in told["bytes"].items()}), file=sys.stderr)
    return told["total"], int(taken[-1])


def output(command: Sequence[str]) -> str:
    """What a command prints; what it says beside that is shown if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"error: {' '.join(command[2:6])} … ended with {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> None:
    """Measure the runs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", help=", ".join(CASES))
    names = parser.parse_args().names or list(CASES)
    print("| run | estimated | measured | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            estimated, taken = measured(CASES[name], Path(place))
            row = [name, f"{estimated / MIB:,.0f} MiB", f"{taken / MIB:,.0f} MiB", f"{estimated / taken:.3f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
