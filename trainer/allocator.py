# SPDX-License-Identifier: Apache-2.0
"""How the C library deals with freed memory while a processor trains.

glibc hands large pieces back to the system when they are freed, but what it takes for large grows with every such
piece, up to 32 MiB: after a few steps it keeps nearly everything. Here the threshold stays where it is set.

Lower ones give back more and cost more, because the system fills every new page with zeros. Measured for the adapter
``lora`` of tests/bench/estimate.py on one core, processor seconds of a step (median of five, in turn) and peak memory:
256 KiB 6.26 s, 1,339 MiB; 1 MiB 4.36 s, 1,637; 4 MiB 4.02 s, 1,639; 8 MiB 3.77 s, 1,666; left alone 3.92 s, 1,662. In
so small a model nearly all is smaller than 8 MiB; in larger ones most is not, and goes back. Giving back all that is
free after every step (malloc_trim) took 17 % longer, and the peak was 4 % below that of what is left alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

OWN_FROM_BYTES = 8 << 20
SHRINKS_FROM_BYTES = 32 << 20  # free at the heap's end; at less it would shrink and grow all the time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt; glibc's malloc.h
# What a user may have set instead.
VARIABLES = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
)
PRELOADED = "LD_PRELOAD"  # by which another allocator may be in its place


def is_plain_glibc(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether memory is dealt out by glibc, the only C library whose ways are known here."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return False
    return library.startswith("glibc") and not environment.get(PRELOADED)


def give_back(environment: Mapping[str, str] = os.environ) -> bool:
    """Let freed large pieces go back to the system from now on, in the whole process; say whether that was done.

    Not where memory is dealt out by something else, or the user has set how.
    """
    if not is_plain_glibc(environment) or any(environment.get(name) for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, OWN_FROM_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, SHRINKS_FROM_BYTES))
