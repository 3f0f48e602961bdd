"""Two network namespaces joined by a link of a chosen rate: two hosts on one machine.

Needs Linux, iproute2 (`ip`, `tc`) and the right to make namespaces. Everything made is removed
when the context ends, also by an error or, where `ended_by_signals` runs, by a signal.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

INTERFACE = "jigsaw0"  # in both namespaces
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # TEST-NET-1, RFC 5737
_PREFIX = "jigsaw-bench"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-[01]")
_BURST_BYTES = 2**17  # tbf cuts a packet that is larger; TCP hands over up to 64 KiB at once
_QUEUE_LIMIT = "1s"  # long enough that tbf drops nothing: TCP itself holds back


class NotPermittedError(Exception):
    """This machine does not let us make namespaces or shape traffic."""


@dataclass(frozen=True)
class Link:
    """The two namespaces.

    Attributes:
        names: Of the namespaces.
    """

    names: tuple[str, str]

    def command(self, side: int, *arguments: str) -> list[str]:
        """A command line that runs inside a namespace."""
        return ["ip", "netns", "exec", self.names[side], *arguments]

    def set_rate(self, bytes_per_s: float | None) -> None:
        """Shapes what each side sends; None lets it run free."""
        for name in self.names:
            if bytes_per_s is None:
                # there may be none to delete
                subprocess.run(
                    ["tc", "-n", name, "qdisc", "del", "dev", INTERFACE, "root"],
                    capture_output=True,
                    check=False,
                )
                continue
            bits = max(round(8 * bytes_per_s), 1)
            rate = ("rate", f"{bits}bit", "burst", str(_BURST_BYTES), "latency", _QUEUE_LIMIT)
            _run("tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *rate)


@contextmanager
def shaped_link() -> Iterator[Link]:
    """Makes the namespaces and the link between them, unshaped; removes them at the end.

    Processes inside must have ended before the context does.

    Raises:
        NotPermittedError: Says what this machine refused.
    """
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise NotPermittedError(f"missing {' and '.join(missing)}, of the package iproute2")
    _remove_leftovers()
    link = Link((f"{_PREFIX}-{os.getpid()}-0", f"{_PREFIX}-{os.getpid()}-1"))
    try:
        for name in link.names:
            _run("ip", "netns", "add", name)
        near, far = link.names
        pair = ("type", "veth", "peer", "name", INTERFACE, "netns", far)
        _run("ip", "link", "add", INTERFACE, "netns", near, *pair)
        for name, address in zip(link.names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                _run("ip", "-n", name, "link", "set", device, "up")
        link.set_rate(2**30)
        link.set_rate(None)
        yield link
    finally:
        for name in link.names:
            _remove(name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGHUP raise SystemExit, so that contexts end in order."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            # timeout(1) sends its signal twice; the second would cut the removal short
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)  # a shell's code for an end by a signal

    before = [signal.signal(number, end) for number in numbers]
    yield  # after an error too, only the end of the process follows
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def namespaces() -> list[str]:
    """Names of the namespaces that this module made and that exist now."""
    if shutil.which("ip") is None:
        return []
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [match[0] for match in _NAME.finditer(done.stdout)]


def _remove_leftovers() -> None:
    """Removes what a killed process could not."""
    for name in namespaces():
        match = _NAME.fullmatch(name)
        assert match is not None
        if not Path(f"/proc/{match[1]}").exists():
            _remove(name)


def _remove(name: str) -> None:
    # its end of the link goes with it, and the other end with that; it may never have been made
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPermittedError(f"{' '.join(command)}: {done.stderr.strip()}")
