# SPDX-License-Identifier: Apache-2.0
"""Slicing E4B's size to E2B's against copying the result, and against the public notebook's way: time and memory.

    python -m tests.bench.slicing [--scale small] [--rounds 3] [--directory DIRECTORY]

Writes a checkpoint of random numbers of full size (15.7 GB), slices it in processes of their own, with nothing of
the checkpoints in the page cache, and removes all of it. Linux only; at full size it takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from tests.bench.random_checkpoint import SCALES, Scale
from tests.bench.slicing_report import COPY, NOTEBOOK, OURS, Disk, Figures, Load, Run, report

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "benchmarks" / "slicing.md"
SKIPPED = [20, 21, 22, 23, 24]  # as in the published E2B, and every width halved
NEEDED = 2.6  # times the parent's bytes, at the fullest: parent, slice, and a copy or the notebook's slice
POLL_S = 0.01
PROBE_BLOCK_BYTES = 8 << 20


def main() -> None:
    """Measure, print the report, and write it down if it is of full size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="full", help="how large the parent is")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the middle one counts")
    parser.add_argument("--directory", type=Path, default=ROOT / "out" / "bench", help="on the disk to be measured")
    parser.add_argument("--document", type=Path, help=f"where to write; full size: {DOCUMENT.relative_to(ROOT)}")
    wanted = parser.parse_args()
    figures = benchmark(SCALES[wanted.scale], wanted.rounds, wanted.directory)
    text = report(figures, f"python -m tests.bench.slicing --scale {wanted.scale} --rounds {wanted.rounds}")
    print(text)
    if document := wanted.document or (DOCUMENT if wanted.scale == "full" else None):
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(text, encoding="utf-8")


def benchmark(scale: Scale, rounds: int, directory: Path) -> Figures:
    """All figures of one scale; ``directory`` is as before afterwards, whatever happens."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="slicing-", dir=directory))
    try:
        check_room(place, scale)
        return measured(scale, rounds, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for path in made:
            path.rmdir()


def measured(scale: Scale, rounds: int, place: Path) -> Figures:
    """Write the parent, and run the contestants in turn."""
    parent, ours, copy, notebook = (place / name for name in ("parent", "slice", "copy", "notebook"))
    disk = disk_speed(place, min(2_000_000_000, scale.nbytes))
    # In a process of its own: what one has held at most is counted against those it starts.
    subprocess.run([*python("tests.bench.random_checkpoint"), str(parent), "--scale", scale.name], check=True, cwd=ROOT)
    skip, widths = json.dumps(SKIPPED), json.dumps([scale.width // 2])
    spec = ["--skip", skip, "--widths", widths]
    sliced = [
        *python("recipes.cli"), "slice", f"checkpoint={parent}", f"output={ours}", "slice=custom", "slice.name=e2b",
        f"slice.skip_layers={skip}", f"slice.ffn_widths={widths}",
    ]  # fmt: skip
    contestants = {
        OURS: (sliced, ours),
        COPY: (["cp", "-r", str(ours), str(copy)], copy),
        NOTEBOOK: ([*python("tests.parity.notebook"), str(parent), str(notebook), *spec, "--mended"], notebook),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    loads: list[Load] = []
    slice_bytes = 0
    for _ in track(range(rounds), "rounds"):
        for name, (command, output) in contestants.items():
            runs[name].append(timed(command, output, place))
            if output != ours:  # the slice is what is copied
                shutil.rmtree(output)
        slice_bytes = size(ours)
        shutil.rmtree(ours)
        evict(place)
        told = subprocess.run(
            [*python("tests.bench.sub_model_loading"), str(parent), *spec], check=True, cwd=ROOT, capture_output=True
        )
        loads.append(Load(**json.loads(told.stdout)))
    return Figures(runs, loads, size(parent), slice_bytes, disk)


def python(module: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", module]


def timed(command: Sequence[str], output: Path, place: Path) -> Run:
    """Run a command with no checkpoint in the page cache."""
    evict(place)
    used, start, peak_bytes = processor_seconds(), time.perf_counter(), 0
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, peak_of(process.pid))
            time.sleep(POLL_S)
        returned = time.perf_counter() - start
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    flush(output)
    on_disk = time.perf_counter() - start
    return Run(returned, on_disk, processor_seconds() - used, peak_bytes)


def peak_of(process: int) -> int:
    """The most bytes of memory that a process has held; none if it is gone.

    Not what ``wait4`` says: that counts the process that started it, too.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except ProcessLookupError:
        return 0
    return max((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), default=0)


def processor_seconds() -> float:
    """What ended processes that were started here have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def evict(place: Path) -> None:
    """Forget what the page cache holds of the files below a directory; programs and libraries stay in it."""
    os.sync()
    for path in files(place):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def flush(place: Path) -> None:
    """Wait until the files below a directory are on disk."""
    for path in files(place):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def files(place: Path) -> list[Path]:
    """The files below a directory."""
    return [path for path in place.rglob("*") if path.is_file()]


def size(place: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(path.stat().st_size for path in files(place))


def check_room(place: Path, scale: Scale) -> None:
    """Leave with a message if the disk has no room for the parent and two slices."""
    needed, free = NEEDED * scale.nbytes, shutil.disk_usage(place).free
    if needed > free:
        sys.exit(f"error: {needed / 1e9:.1f} GB are needed, but the disk has {free / 1e9:.1f} GB left; --directory")


def disk_speed(place: Path, nbytes: int) -> Disk:
    """How fast one file is written to the disk, and read from it."""
    path, block = place / "speed", os.urandom(PROBE_BLOCK_BYTES)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(nbytes // PROBE_BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    evict(place)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(PROBE_BLOCK_BYTES):
            pass
    read = time.perf_counter() - start
    path.unlink()
    return Disk(written_per_s=nbytes / written, read_per_s=nbytes / read)


if __name__ == "__main__":
    main()
