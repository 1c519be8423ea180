# SPDX-License-Identifier: Apache-2.0
"""What ``matslice estimate`` says beside what training took: three steps of each kind, on the processor.

    OMP_NUM_THREADS=1 python -m tests.bench.estimate [NAME …]

Each run is a process of its own, of which the system tells the most memory it ever had (VmHWM). glibc keeps what was
freed for what is asked for next, unless it is told to give large pieces back (``trainer/estimate.py: GIVING_BACK``), as
is done here but with --as-is. Linux only; ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.saving import save
from model.config import ModelConfig
from tests.bench.training import ROOT, shape
from tests.tiny import tiny_model
from tests.trainer.parts import tiny_tokenizer, write_jsonl
from trainer.estimate import GIVING_BACK

MIB = 1 << 20
STEPS = 3
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

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return shape(hidden=256, width=2048, vocab=self.vocab)


LORA = ("adapter=all_linear", "trainer.batch_size=2")
FULL = ("adapter=none", "trainer.batch_size=1")
CASES = {
    "lora": Case(100_450, 512, 512, LORA),
    "lora, recompute full": Case(262_400, 512, 512, (*LORA, "trainer.recompute.text=full")),
    "lora, long packs, recompute selective": Case(
        65_600, 1024, 128, (*LORA, "trainer.recompute.text=selective", "trainer.average.decay=0.99")
    ),
    "full, AdamW": Case(51_250, 256, 256, (*FULL, "optim=adamw_full")),
    "full, bfloat16 states": Case(65_600, 256, 256, (*FULL, "optim=adamw_bf16_states")),
    "lora, table mapped": Case(262_400, 512, 512, (*LORA, "trainer.per_layer_table=mmap")),
    "lora, table on host": Case(131_200, 512, 512, (*LORA, "trainer.per_layer_table=host")),
}  # fmt: skip


def measured(case: Case, place: Path, settings: Mapping[str, str]) -> tuple[int, int]:
    """What is estimated of a run, and what it took, in bytes; ``settings`` are of the environment."""
    checkpoint = place / f"{case.vocab}"
    if not checkpoint.exists():
        save(tiny_model(case.config, spread=0.1), checkpoint, extras=tiny_tokenizer().write)
    text = "abcdefgh " * case.width
    rows = [
        {"messages": [
            {"role": "user", "content": "say"}, {"role": "assistant", "content": text[: case.example - MARGIN]},
        ]} for _ in range(16 * case.width // case.example)
    ]  # fmt: skip
    file = write_jsonl(place / f"{case.width}-{case.example}.jsonl", rows)
    words = [
        f"checkpoint={checkpoint}", f"data.train=[{file}]", "trainer=cpu", f"data.max_length_tokens={case.example}",
        f"data.pack_tokens={case.width}", f"trainer.max_steps={STEPS}", "schedule.warmup_steps=0",
        f"trainer.output={place / 'run'}", "trainer.save_every=null", *case.words,
    ]  # fmt: skip
    told = json.loads(
        output([sys.executable, "-m", "recipes.cli", "estimate", *words, "json=true", "compare=false"], {})
    )
    taken = output([sys.executable, "-c", PROGRAM, "train", *words], settings).split()
    subprocess.run(["rm", "-r", str(place / "run")], check=True)
    print(json.dumps({part: round(nbytes / MIB, 1) for part, nbytes in told["bytes"].items()}), file=sys.stderr)
    return told["total"], int(taken[-1])


def output(command: Sequence[str], settings: Mapping[str, str]) -> str:
    """What a command prints; what it says beside that is shown if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **settings},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"error: {' '.join(command[2:6])} … ended with {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> None:
    """Measure the runs that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--as-is", action="store_true", help="leave the allocator as it is")
    wanted = parser.parse_args()
    names, settings = wanted.names or list(CASES), {} if wanted.as_is else GIVING_BACK
    print("| run | estimated | measured | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            estimated, taken = measured(CASES[name], Path(place), settings)
            row = [name, f"{estimated / MIB:,.0f} MiB", f"{taken / MIB:,.0f} MiB", f"{estimated / taken:.3f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
