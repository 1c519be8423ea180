# SPDX-License-Identifier: Apache-2.0
"""Where there is no way to the hub, that is told at once, and what was downloaded before is found."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from datasets import config
from huggingface_hub import constants

from model.errors import InputError
from trainer.data import reaching
from trainer.data.finding import find

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Who was asked for a connection; nobody gives one."""
    found: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        found.append(address)
        raise socket.gaierror("Name or service not known")

    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reaching.socket, "create_connection", refuse)
    return found


def test_a_hub_that_is_not_there_is_told_at_once(asked: list[Any]) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"'nobody/nothing' is no file .* and the hub cannot be reached"):
        find("nobody/nothing")
    assert time.monotonic() - begun < 10  # the library alone took 24
    assert asked == [("hub.invalid", 443)]
    assert not constants.HF_HUB_OFFLINE
    assert not config.HF_HUB_OFFLINE


def test_who_is_offline_by_choice_asks_nobody(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub cannot be reached"):
        find("nobody/nothing")
    assert asked == []
    assert config.HF_HUB_OFFLINE


def test_what_lies_behind_a_proxy_is_left_to_the_library(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert reaching.is_reachable("https://hub.invalid")
    assert not reaching.is_reachable("http://hub.invalid:8080/path")
    assert asked == [("hub.invalid", 8080)]
