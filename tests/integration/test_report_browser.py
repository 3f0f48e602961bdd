"""The report in a real browser: it fits a phone and a desk, complains of nothing, fetches nothing.

Chromium is spoken to over its debugging pipe (DevTools protocol: one JSON object, then a zero
byte), so that nothing but the browser is needed.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jigsaw_forecast.verify.report import write_report
from tests.unit.verify.report.made_up import write_folder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_S = 60.0
WIDTHS = (390, 1280)
# file descriptors 3 and 4 are where the browser reads and writes; high ones cannot be in the way
LAUNCH = (
    "import os, sys; r, w = int(sys.argv[1]), int(sys.argv[2]); os.dup2(r, 203); os.dup2(w, 204); "
    "os.dup2(203, 3); os.dup2(204, 4); os.closerange(200, 210); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page of a headless browser; events are kept as they come."""

    def __init__(self, command: str, profile: Path) -> None:
        inbound, self._write = os.pipe()
        self._read, outbound = os.pipe()
        arguments = [
            command,
            "--headless",
            "--no-sandbox",  # tests run as root in containers, where the sandbox cannot start
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(inbound), str(outbound), *arguments],
            pass_fds=(inbound, outbound),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inbound)
        os.close(outbound)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        self._session = ""
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in pages if one["type"] == "page")
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Sends one command and returns its result."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Returns when an event of this kind has come since the events were last cleared."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        """Ends the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self._buffer:
            is_ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._read, 1 << 16) if is_ready else b""
            assert chunk, "the browser says nothing"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if command is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    started = Browser(command, tmp_path_factory.mktemp("profile"))
    for domain in ("Page", "Network", "Runtime", "Log"):
        started.call(f"{domain}.enable")
    yield started
    started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with names as long as users' paths can be."""
    folder = write_folder(tmp_path_factory.mktemp("report") / "scores", ("forecast", "persistence"))
    (folder / "maps_forecast.nc").unlink()  # takes longest and is laid out as all pictures are
    path = folder / "protocol.json"
    protocol = json.loads(path.read_text(encoding="utf-8"))
    protocol["models"][0]["label"] = "wm-nature-run_2026_" + "x" * 80 + ".zarr"
    protocol["truth"] = "/scratch/" + "y" * 300 + "/truth.zarr"
    path.write_text(json.dumps(protocol), encoding="utf-8")
    write_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module", params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Browser:
    """The report, loaded at one width."""
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=request.param,
        height=844,
        deviceScaleFactor=2,
        mobile=request.param < 600,
    )
    browser.events.clear()
    browser.call("Page.navigate", url=report.as_uri())
    browser.wait_for("Page.loadEventFired")
    # all parts count, also those that are folded away at first
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    return browser


def test_page_is_no_wider_than_the_screen(opened: Browser) -> None:
    width, room, screen = opened.evaluate(
        "(page => [page.scrollWidth, page.clientWidth, innerWidth])(document.documentElement)"
    )
    assert width <= room
    assert screen in WIDTHS


def test_what_sticks_out_scrolls_by_itself(opened: Browser) -> None:
    culprits = opened.evaluate(
        """[...document.querySelectorAll('main *, header *')].filter(one =>
            one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
            && !one.closest('.scroll')).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert culprits == []


def test_nothing_is_complained_of(opened: Browser) -> None:
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in opened.events if event.get("method") in kinds] == []


def test_nothing_is_fetched(opened: Browser) -> None:
    asked = [
        event["params"]["request"]["url"]
        for event in opened.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert any(url.startswith("file:") and url.endswith("report.html") for url in asked)
    others = [url for url in asked if not url.startswith("data:")]
    assert len(others) == 1


def test_every_picture_is_painted(opened: Browser) -> None:
    widths = opened.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)")
    assert len(widths) > 15
    assert all(width > 300 for width in widths)


def test_letters_are_large_enough_to_read(opened: Browser) -> None:
    sizes = opened.evaluate(
        "[...document.querySelectorAll('p, td, th, dd, li, caption')]"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 13.0


def test_dark_and_light_pages_have_contrast(opened: Browser) -> None:
    for scheme in ("light", "dark"):
        opened.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        colours = opened.evaluate(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
        )
        lightness = [sum(map(int, one[4:-1].split(","))) / 765 for one in colours]
        assert abs(lightness[0] - lightness[1]) > 0.6
        assert (lightness[1] < 0.5) == (scheme == "dark")
