"""HTTP with every wait bounded: connections, silence, attempts and the whole of it."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests

from jigsaw_forecast.data.fetch.faults import FetchError, TransientError

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

CHUNK_BYTES = 1 << 18
HEAD_BYTES = 256
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_STATUS_WORDS = {
    401: "the server asks for credentials",
    403: "the server forbids it",
    404: "there is no such file",
    410: "the file is gone",
    416: "the file is shorter than its index says",
    429: "the server says that there are too many requests",
}
_LONGEST_BACKOFF_S = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How long a fetch may take.

    Attributes:
        end_s: On the monotonic clock: when all of it is over.
        num_attempts: Of each request.
        stall_s: Longest silence of a server, and longest wait for a connection.
        backoff_s: Wait before the second attempt; doubles from there to a minute.
    """

    end_s: float
    num_attempts: int = 5
    stall_s: float = 60.0
    backoff_s: float = 1.0

    @property
    def remaining_s(self) -> float:
        """Time left."""
        return self.end_s - time.monotonic()


class Client:
    """One session with a server."""

    def __init__(self, limits: Limits) -> None:
        """Opens no connection yet."""
        self.limits = limits
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "jigsaw-forecast"
        # bytes are counted against lengths and offsets, which compression would change
        self._session.headers["Accept-Encoding"] = "identity"

    def attempt(self, what: str, action: Callable[[], Result]) -> Result:
        """Does something until it succeeds, fails for good, or attempts or time run out.

        Args:
            what: For the message: a URL.
            action: Raises `TransientError` where another attempt may help.

        Raises:
            FetchError: The last fault, with the number of attempts.
        """
        limits = self.limits
        for number in range(1, limits.num_attempts + 1):
            try:
                return action()
            except TransientError as fault:
                _log.warning("%s: %s", what, fault)
                wait_s = min(limits.backoff_s * 2 ** (number - 1), _LONGEST_BACKOFF_S)
                if fault.retry_after_s is not None:
                    wait_s = max(wait_s, fault.retry_after_s)
                is_last = number == limits.num_attempts
                if is_last or wait_s >= limits.remaining_s:
                    why = "" if is_last else f" and {wait_s:g} s to wait would pass the deadline"
                    attempts = f"{number} attempt{'s' if number > 1 else ''}"
                    raise FetchError(f"{what}: {fault} ({attempts}{why})") from None
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def opened(
        self, url: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Iterator[requests.Response]:
        """A response whose body is still to be read; its status is 200 or 206.

        Raises:
            TransientError: The connection failed, broke or fell silent, or the status may pass.
            FetchError: Any other status.
        """
        host = urlsplit(url).hostname or ""
        self._session.trust_env = host not in _LOOPBACK  # no proxy stands before this machine
        timeout_s = max(min(self.limits.stall_s, self.limits.remaining_s), 0.1)
        try:
            with self._session.request(
                method, url, headers=dict(headers or {}), stream=True, timeout=timeout_s
            ) as response:
                _check_status(response)
                yield response
        except requests.exceptions.Timeout:
            raise TransientError(f"the server was silent for {timeout_s:.3g} s") from None
        except requests.exceptions.ChunkedEncodingError as fault:
            raise TransientError(f"the transfer was cut: {_root(fault)}") from None
        except requests.exceptions.ConnectionError as fault:
            text = _root(fault)
            # a body that falls silent comes as a connection error around a read timeout
            if "timed out" in text:
                text = f"the server was silent for {timeout_s:.3g} s"
            if any(words in text for words in _WITHOUT_NETWORK):
                text = f"{host} cannot be found from here; is there a network?"
            raise TransientError(f"the connection failed: {text}") from None
        except requests.exceptions.RequestException as fault:
            raise FetchError(f"{url}: {_root(fault)}") from None

    def text(self, url: str) -> str:
        """A small text, such as an index."""

        def get() -> str:
            with self.opened(url) as response:
                body = b"".join(response.iter_content(CHUNK_BYTES))
                _check_length(response, len(body))
            refuse_html(body)
            return body.decode("utf-8", errors="replace")

        return self.attempt(url, get)

    def size(self, url: str) -> int | None:
        """Length of a file in bytes, None where the server does not say."""

        def head() -> int | None:
            with self.opened(url, "HEAD") as response:
                length = response.headers.get("Content-Length", "")
                return int(length) if length.isdigit() else None

        return self.attempt(url, head)


# of the system's, where no name is resolved or no route is known
_WITHOUT_NETWORK = ("Failed to resolve", "name resolution", "Network is unreachable")


def body_of(response: requests.Response) -> Iterator[bytes]:
    """The body in pieces; an HTML page is refused at its first bytes.

    Raises:
        TransientError: The body is a page, or shorter than the server said.
    """
    num_bytes = 0
    for piece in response.iter_content(CHUNK_BYTES):
        if num_bytes == 0:
            refuse_html(piece)
        num_bytes += len(piece)
        yield piece
    _check_length(response, num_bytes)


def refuse_html(head: bytes) -> None:
    """Refuses a web page where data was asked for: portals and proxies answer so, with 200.

    Raises:
        TransientError: It is one; such answers pass.
    """
    text = head[:HEAD_BYTES].lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        raise TransientError(
            f"the server sent an HTML page instead of data; it starts with {head[:24]!r}"
        )


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    words = _STATUS_WORDS.get(status, response.reason or "")
    text = f"HTTP status {status}{f': {words}' if words else ''}"
    if status in _PASSING_STATUS:
        raise TransientError(text, _seconds(response.headers.get("Retry-After")))
    raise StatusError(text, status)


class StatusError(FetchError):
    """An HTTP status that no other attempt will change.

    Attributes:
        status: The number.
    """

    def __init__(self, message: str, status: int) -> None:
        """Keeps the number."""
        super().__init__(message)
        self.status = status


def _check_length(response: requests.Response, num_bytes: int) -> None:
    claimed = response.headers.get("Content-Length", "")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        num_bytes = response.raw.tell()  # the length is that of what a server compresses unasked
    if claimed.isdigit() and int(claimed) != num_bytes:
        raise TransientError(f"the transfer was cut: {num_bytes} of {claimed} bytes came")


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header; dates are left to the usual wait."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _root(fault: BaseException) -> str:
    """The innermost words of requests' nested errors."""
    reason: object = fault
    while True:
        inner = getattr(reason, "reason", None) or next(
            (arg for arg in getattr(reason, "args", ()) if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = str(reason)
    return text.rpartition(": ")[2] if "object at 0x" in text else text
