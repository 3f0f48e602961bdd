"""A local server of ECMWF open data that behaves, or stalls, lies, truncates and drops.

It makes each cycle that is asked for: the messages of the small test checkpoint's fields with an
index beside them, geopotential height in place of geopotential as the real service offers it.
"""

import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import eccodes
import numpy as np

from jigsaw_forecast.fields import Field
from tests.integration import inputs

_PATH = re.compile(
    r"/(?P<day>\d{8})/(?P<hour>\d\d)z/ifs/0p25/(?P<stream>\w+)/"
    r"(?P<stamp>\d{14})-0h-(?P=stream)-(fc|ef)\.(?P<kind>index|grib2)"
)
GRAVITY = 9.80665
HTML = b"<!DOCTYPE html><html><body>Sorry, the service is being maintained.</body></html>"
STALL_S = 30.0  # longer than any test waits; ends with the server


class Server(http.server.ThreadingHTTPServer):
    """Serves cycles; `faults` says what goes wrong with a kind of file, request by request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.cycles: set[str] | None = None  # those that exist, as %Y%m%d%H; None for all
        self.lacking: dict[str, set[str]] = {}  # short names that a cycle does not have
        self.streams: dict[str, tuple[bytes, bytes] | None] = {}  # other files; None for not there
        self.shift_hours = 0  # of the valid time, against the one that the name says
        self.knows_ranges = True
        self.has_index = True
        self.closing = threading.Event()
        self._made: dict[str, tuple[bytes, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def num_gets(self, kind: str) -> int:
        return sum(m == "GET" and path.endswith(kind) for m, path, _ in self.requests)

    def cycle(self, stamp: str) -> tuple[bytes, bytes]:
        """Index and GRIB file of a cycle."""
        if stamp not in self._made:
            self._made[stamp] = make_cycle(stamp, self.shift_hours, self.lacking.get(stamp, set()))
        return self._made[stamp]

    def hold(self, stamp: str, index: bytes, data: bytes) -> None:
        """Serves these as a cycle's index and GRIB file."""
        self._made[stamp] = (index, data)

    def shift_to(self, hours: int) -> None:
        """Replaces all cycles by such of another valid time under the same names."""
        self.shift_hours = hours
        self._made.clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        match = _PATH.fullmatch(self.path)
        if match is None:
            return self._answer(404, b"no such file")
        kind = match["kind"]
        faults = self.server.faults.get(kind, [])
        fault = faults.pop(0) if faults and self.command == "GET" else ""
        stamp = match["day"] + match["hour"]
        exists = self.server.cycles is None or stamp in self.server.cycles
        if not exists or (kind == "index" and not self.server.has_index):
            return self._answer(404, b"no such file")
        held = self.server.streams.get(match["stream"], self.server.cycle(stamp))
        if held is None:
            return self._answer(404, b"no such file")
        index, data = held
        self._serve(index if kind == "index" else data, fault)
        return None

    def _serve(self, body: bytes, fault: str) -> None:
        status, headers = 200, {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.server.knows_ranges:
            start, end = int(asked[1]), int(asked[2])
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        if fault.isdigit():
            self._answer(int(fault), b"refused", {"Retry-After": "0.1"})
        elif fault == "html":
            self._answer(200, HTML)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "stall":
            self.server.closing.wait(STALL_S)
            self.close_connection = True
        elif fault in ("truncate", "silence"):
            self._answer(status, body, headers, num_sent=len(body) // 2)
            if fault == "silence":
                self.server.closing.wait(STALL_S)
            self.close_connection = True
        elif fault in ("gzip", "gzip-truncate"):
            packed = gzip.compress(body)
            num_sent = len(packed) // 2 if fault == "gzip-truncate" else None
            self._answer(200, packed, {"Content-Encoding": "gzip"}, num_sent)
            self.close_connection = num_sent is not None
        elif fault == "other":
            self._answer(status, body[::-1], headers)
        else:
            self._answer(status, body, headers)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        num_sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:num_sent])
            self.wfile.flush()


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the end of the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def make_cycle(stamp: str, shift_hours: int, lacking: set[str]) -> tuple[bytes, bytes]:
    """Index and GRIB bytes of the cycle `%Y%m%d%H`, with messages that nobody asks for between."""
    valid = np.datetime64(f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:]}", "s")
    time = valid + np.timedelta64(shift_hours, "h")
    values = state()
    extra = Field("temperature", 1000)
    data, lines = b"", []
    with TemporaryDirectory() as folder:
        for field in [*values, extra]:
            is_height = field.variable == "geopotential"
            name = "gh" if is_height else field.spec.short_name
            if f"{name}{field.level_hpa or ''}" in lacking:
                continue
            array = values[field] / GRAVITY if is_height else values.get(field, values[TEMPLATE])
            message = inputs.write_grib(
                Path(folder) / "one.grib2",
                {field: array},
                time=time,
                param_ids={str(field): 156} if is_height else None,
            ).read_bytes()
            entry = {
                "domain": "g",
                "date": stamp[:8],
                "time": f"{stamp[8:]}00",
                "expver": "0001",
                "class": "od",
                "type": "fc",
                "stream": "oper",
                "step": "0",
                "levtype": "pl" if field.level_hpa else "sfc",
                "param": name,
                "_offset": len(data),
                "_length": len(message),
            }
            if field.level_hpa:
                entry["levelist"] = str(field.level_hpa)
            lines.append(json.dumps(entry))
            data += message
    return "\n".join(lines).encode() + b"\n", data


TEMPLATE = Field("temperature", 850)


def state() -> dict[Field, np.ndarray]:
    """What every cycle holds, in the model's units."""
    return inputs.maps(inputs.CONFIG.prognostic_fields, 12, 24, seed=7)


def valid_times(path: Path) -> set[str]:
    """Valid times of a GRIB file, by eccodes alone."""
    found = set()
    with path.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            date = eccodes.codes_get_string(handle, "validityDate")
            found.add(f"{date}T{int(eccodes.codes_get_long(handle, 'validityTime')) // 100:02d}")
            eccodes.codes_release(handle)
    return found
