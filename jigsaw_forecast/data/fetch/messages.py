"""Byte ranges of GRIB messages, fetched so that each message is whole or the fetch fails."""

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import requests

from jigsaw_forecast.data.fetch.faults import FetchError, TransientError
from jigsaw_forecast.data.fetch.http import Client, body_of

Range = tuple[int, int]  # offset in the file, length
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def fetch_ranges(
    client: Client, url: str, ranges: Sequence[Range], target: BinaryIO, start: int = 0
) -> int:
    """Writes ranges of a remote file one after the other, in the order of their offsets.

    Neighbours travel in one request. What has come whole is not fetched again when the next one
    fails. A server that knows no ranges sends the whole file, of which the ranges are kept.

    Args:
        client: Of the server.
        url: The file.
        ranges: Of its bytes, each a message.
        target: Takes them.
        start: Where in the target; what is behind is cut off.

    Returns:
        The number of bytes written.

    Raises:
        FetchError: A range did not come whole within the attempts and the time.
    """
    ordered = sorted(set(ranges))
    position = start
    for run in _joined(ordered):

        def get(run: Range = run, position: int = position) -> int:
            target.seek(position)
            target.truncate()
            first, length = run
            headers = {"Range": f"bytes={first}-{first + length - 1}"}
            with client.opened(url, headers=headers) as response:
                if response.status_code == 206:
                    return _take_range(response, run, target)
                return _pick(response, ordered[_first_at(ordered, first) :], target)

        written = client.attempt(f"{url} bytes {run[0]}-{sum(run) - 1}", get)
        position += written
        if written > run[1]:  # the whole file came, and with it all that was left
            break
    check_messages(ordered, target, start)
    return position - start


def fetch_whole(client: Client, url: str, target: BinaryIO) -> int:
    """Writes a remote file from its beginning to its end.

    Returns:
        The number of bytes written.
    """

    def get() -> int:
        target.seek(0)
        target.truncate()
        with client.opened(url) as response:
            return sum(target.write(piece) for piece in body_of(response))

    return client.attempt(url, get)


def check_messages(ranges: Sequence[Range], target: BinaryIO, start: int = 0) -> None:
    """Checks that each range holds one whole GRIB message: a server may send other bytes.

    Raises:
        FetchError: Names the first that does not.
    """
    position = start
    for offset, length in ranges:
        target.seek(position)
        head = target.read(16)
        target.seek(position + length - 4)
        tail = target.read(4)
        if head[:4] != b"GRIB" or tail != b"7777":
            raise FetchError(
                f"bytes {offset}-{offset + length - 1} are no whole GRIB message, as the index "
                f"says they are: they start with {head!r} and end with {tail!r}; the file and "
                "its index do not belong together"
            )
        position += length


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    """Ranges with neighbours joined."""
    start, end = -1, -1
    for offset, length in ranges:
        if offset != end:
            if end > start:
                yield start, end - start
            start = offset
        end = offset + length
    if end > start:
        yield start, end - start


def _first_at(ranges: Sequence[Range], start: int) -> int:
    return next(index for index, (offset, _) in enumerate(ranges) if offset >= start)


def _take_range(response: requests.Response, run: Range, target: BinaryIO) -> int:
    start, length = run
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match and (int(match[1]), int(match[2])) != (start, start + length - 1):
        raise TransientError(
            f"the server sent {match[0]} where {start}-{start + length - 1} was asked for"
        )
    num_bytes = 0
    for piece in body_of(response):
        num_bytes += len(piece)
        if num_bytes > length:
            raise TransientError(f"the server sent more than the {length} bytes asked for")
        target.write(piece)
    if num_bytes != length:
        raise TransientError(f"the transfer was cut: {num_bytes} of {length} bytes came")
    return num_bytes


def _pick(response: requests.Response, ranges: Sequence[Range], target: BinaryIO) -> int:
    """Keeps the ranges of a whole file that goes by."""
    here = written = 0
    for piece in body_of(response):
        for offset, length in ranges:
            low, high = max(offset, here), min(offset + length, here + len(piece))
            if low < high:
                written += target.write(piece[low - here : high - here])
        here += len(piece)
    expected = sum(length for _, length in ranges)
    if written != expected:
        raise TransientError(
            f"the server sent a whole file of {here} bytes, in which {expected - written} of the "
            f"{expected} bytes asked for are lacking"
        )
    return written
