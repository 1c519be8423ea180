# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven through the DevTools protocol over two pipes: no port, no driver, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60  # until an answer is given up
KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


def found_chromium() -> str | None:
    """Where Chromium is, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """One page of a browser.

    Args:
        ask: Sends bytes to the browser.
        hear: A chunk of what it says.
    """

    ask: Callable[[bytes], None]
    hear: Callable[[float], bytes]
    session: str = ""
    asked: int = 0
    heard: bytes = b""
    complaints: list[str] = field(default_factory=list)  # of the console and of uncaught errors
    requests: list[str] = field(default_factory=list)  # addresses that were asked for
    loaded: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser something and wait for what it answers."""
        self.asked += 1
        number = self.asked
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.ask(json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            answer = self.next_message(until)
            if answer.get("id") != number:
                self.note(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]
        raise TimeoutError(method)

    def next_message(self, until: float) -> dict[str, Any]:
        """The next thing that the browser says."""
        while b"\0" not in self.heard:
            self.heard += self.hear(max(until - time.monotonic(), 0.0))
        message, _, self.heard = self.heard.partition(b"\0")
        return json.loads(message)

    def note(self, event: dict[str, Any]) -> None:
        """Remember what the browser says unasked."""
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps([argument.get("value") for argument in told["args"]]))
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1

    def start(self) -> None:
        """Attach to a new page and listen to all that may go wrong in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded."""
        before = self.loaded
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + SECONDS
        while self.loaded == before:
            self.note(self.next_message(until))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Scroll an element into view and click its middle with the mouse."""
        x, y = self.middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def point_at(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is, once it is in view."""
        return tuple(self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        ))  # fmt: skip

    def press(self, key: str) -> None:
        """Press one of ``KEYS``."""
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        name = " " if key == "Space" else key
        down = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=down, key=name, code=key, windowsVirtualKeyCode=KEYS[key], text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=key, windowsVirtualKeyCode=KEYS[key])

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def size(self, width_px: int, height_px: int, *, phone: bool = False) -> None:
        """Change the window; a phone's has two points per pixel and is touched."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px, height=height_px, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme: str) -> None:
        """Be a system of light or dark colours."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page, or of what the window shows of it."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh browser, which ends with the block.

    Args:
        profile: Directory for what the browser stores.
    """
    chromium = found_chromium()
    assert chromium is not None
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    flags = [
        "--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--force-color-profile=srgb", f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip

    # The browser reads its file 3 and writes its file 4; a shell puts them there.
    shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    process = subprocess.Popen(
        ["bash", "-c", shell, chromium, *flags, "about:blank"], pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)

    def hear(seconds: float) -> bytes:
        if not select.select([ours_in], [], [], seconds)[0]:
            raise TimeoutError("the browser says nothing")
        chunk = os.read(ours_in, 1 << 20)
        if not chunk:
            raise RuntimeError("the browser ended")
        return chunk

    def ask(message: bytes) -> None:
        while message:
            message = message[os.write(ours_out, message) :]

    tab = Tab(ask, hear)
    try:
        tab.start()
        yield tab
    finally:
        with suppress(OSError):
            ask(json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        os.close(ours_out)
        os.close(ours_in)
