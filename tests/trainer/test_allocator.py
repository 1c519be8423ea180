# SPDX-License-Identifier: Apache-2.0
"""Freed memory goes back to the system where it is to, and what the process has of it is known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer.allocator import VARIABLES, give_back, is_plain_glibc
from trainer.heap import Heap

MIB = 1 << 20
needs_glibc = pytest.mark.skipif(not is_plain_glibc(), reason="another C library")
# 20 pieces of 10 MiB are freed one after the other, so that what glibc takes for large grows; then one more.
PROGRAM = """
import sys
import torch
from trainer.allocator import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "set":
    assert give_back()
for _ in range(20):
    piece = torch.ones(10 << 18)
    del piece
pieces = [torch.ones(9 << 18) for _ in range(10)]
kept = torch.ones(1000)
before = resident()
del pieces
print(before - resident())
"""


@pytest.mark.parametrize("name", [*VARIABLES, "LD_PRELOAD"])
def test_what_the_user_says_of_the_allocator_stands(name: str) -> None:
    assert not give_back({name: "1"})


@needs_glibc
@pytest.mark.parametrize(("word", "least", "most"), [("set", 85 * MIB, 100 * MIB), ("alone", -MIB, 100 * MIB)])
def test_large_pieces_go_back_when_they_are_freed(word: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


@needs_glibc
def test_a_large_piece_is_counted_while_it_is_there() -> None:
    heap = Heap()
    before = heap.taken
    piece = heap.take(100 * MIB)
    assert 100 * MIB <= heap.taken - before <= 101 * MIB
    heap.give(piece)
    assert heap.taken - before < MIB


@needs_glibc
def test_small_pieces_are_counted_together() -> None:
    heap = Heap()
    before = heap.taken
    pieces = [heap.take(50_000) for _ in range(2000)]
    # What was free in the heap before has taken some of them.
    assert heap.taken - before <= 2000 * 51_000 + MIB
    for piece in pieces:
        heap.give(piece)
    assert all(piece.own_bytes == 0 for piece in pieces)


@needs_glibc
def test_more_than_the_system_has_is_counted_all_the_same() -> None:
    heap = Heap()
    piece = heap.take(1 << 60)
    assert heap.taken >= 1 << 60
    heap.give(piece)
    assert heap.taken < 1 << 60
