# SPDX-License-Identifier: Apache-2.0
"""Whether the hub can be reached: where it cannot, its library would try again and again for half a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

PROBE_SECONDS = 5.0  # to be answered in; libraries give up after 10
PORTS = {"http": 80, "https": 443}


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Within the block the hub's libraries look at what they have on disk alone, if there is no way to the hub."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    if not any(before) and not is_reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def is_reachable(address: str) -> bool:
    """Whether something takes a connection there; through a proxy, nobody can tell beforehand."""
    parted = urlsplit(address)
    if parted.hostname is None or not {parted.scheme, "all"}.isdisjoint(getproxies()):
        return True
    try:
        port = parted.port or PORTS.get(parted.scheme, PORTS["https"])
        socket.create_connection((parted.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True
