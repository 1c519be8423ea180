# SPDX-License-Identifier: Apache-2.0
"""What a process has from the system for its tensors, which is more than they take: the C library's own answer.

Large pieces are the system's and go back to it when they are freed. Smaller ones lie in a heap, which shrinks only at
its end; what is freed in it waits for a piece that fits, and between small objects that stay few do. How much that
comes to hangs on the library's version, on its settings and on the order of everything. So pieces are asked for and
freed in earnest, but never written to: pages that nobody touched take no memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

ALIGNED = 64  # bytes: what torch asks for
OWN = 2  # bit of the word before a piece: it is the system's own; glibc's malloc.c, IS_MMAPPED
FLAGS = 7


@dataclass(frozen=True)
class Piece:
    """Memory that was taken: where, and how much of it is the system's own."""

    address: int
    own_bytes: int


class Heap:
    """The memory of this process, as glibc deals it out."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.sbrk.restype = ctypes.c_void_p
        self.library.free.argtypes = [ctypes.c_void_p]
        self.library.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.own_bytes = 0
        self.begin = self.end

    @property
    def end(self) -> int:
        """Where the heap ends."""
        return int(self.library.sbrk(ctypes.c_ssize_t(0)))

    @property
    def taken(self) -> int:
        """Bytes that the process has more than at first."""
        return self.end - self.begin + self.own_bytes

    def take(self, nbytes: int) -> Piece:
        """Memory for a tensor. Where the system has none, it is counted as if it had."""
        place = ctypes.c_void_p()
        if not nbytes or self.library.posix_memalign(ctypes.byref(place), ALIGNED, nbytes) or place.value is None:
            return self.counted(Piece(0, nbytes))
        word = ctypes.c_size_t.from_address(place.value - ctypes.sizeof(ctypes.c_size_t)).value
        return self.counted(Piece(place.value, word & ~FLAGS if word & OWN else 0))

    def counted(self, piece: Piece) -> Piece:
        """The same."""
        self.own_bytes += piece.own_bytes
        return piece

    def give(self, piece: Piece) -> None:
        """It is free."""
        self.own_bytes -= piece.own_bytes
        if piece.address:
            self.library.free(piece.address)
