"""HTTP and open data: every fault of a server is outlived or told, and nothing else travels."""

import io
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from jigsaw_forecast.data.acquisition.tasks import wanted_messages
from jigsaw_forecast.data.fetch.faults import FetchError
from jigsaw_forecast.data.fetch.http import Client, Limits
from jigsaw_forecast.data.fetch.messages import fetch_ranges, fetch_whole
from jigsaw_forecast.data.fetch.open_data import Cycles, fetch_cycle, find_latest
from jigsaw_forecast.fields import Field
from tests.integration import inputs
from tests.integration.open_data_server import Server, make_cycle, serving

WANTED = wanted_messages(inputs.CONFIG.prognostic_fields)


@pytest.fixture
def server() -> Iterator[Server]:
    make_cycle("2026062400", 0, set())  # eccodes' first would count as the server's silence
    with serving() as running:
        yield running


STALLING = ("stall", "silence")  # only these need a short patience, which a busy machine may try


def limits(attempts: int = 3, stall_s: float = 5.0) -> Limits:
    return Limits(time.monotonic() + 20.0, attempts, stall_s, backoff_s=0.01)


def cycles_of(server: Server) -> dict[str, object]:
    return {"urls": [server.url], "model": "ifs", "resolution": "0p25", "stream": "oper"}


def task(server: Server, **more: object) -> dict[str, object]:
    base = {
        "cycles": cycles_of(server),
        "init": "2026-06-24T00:00:00",
        "wanted": WANTED,
        "members": [],
    }
    return base | more


def fetch(server: Server, stall_s: float = 5.0, **more: object) -> bytes:
    target = io.BytesIO()
    fetch_cycle(task(server, **more), limits(stall_s=stall_s), target)
    return target.getvalue()


def test_only_the_messages_needed_travel(server: Server) -> None:
    found = fetch(server)
    _, whole = server.cycle("2026062400")
    assert whole.startswith(found)
    assert len(found) < len(whole)  # t1000 is in the file, and nobody asked for it
    assert [r for _, _, r in server.requests if r] == [f"bytes=0-{len(found) - 1}"]


@pytest.mark.parametrize("fault", ["html", "drop", "truncate", "stall", "silence", "500", "429"])
@pytest.mark.parametrize("kind", ["index", "grib2"])
def test_a_fault_that_passes_is_outlived(server: Server, kind: str, fault: str) -> None:
    server.faults[kind] = [fault]
    found = fetch(server, stall_s=0.5 if fault in STALLING else 5.0)
    assert server.cycle("2026062400")[1].startswith(found)
    assert found.count(b"GRIB") == len(WANTED)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("html", "HTML page instead of data"),
        ("drop", "the connection failed"),
        ("truncate", "the transfer was cut|the connection failed"),
        ("stall", "silent for 0.3 s"),
        ("500", "HTTP status 500"),
        ("429", "too many requests"),
        ("403", "HTTP status 403: the server forbids it"),
        ("401", "asks for credentials"),
    ],
)
def test_a_fault_that_stays_is_told_with_its_address(server: Server, fault: str, says: str) -> None:
    server.faults["grib2"] = [fault] * 9
    with pytest.raises(FetchError, match=says) as caught:
        fetch(server, stall_s=0.3 if fault in STALLING else 5.0)
    assert f"{server.url}/20260624/00z/ifs/0p25/oper/20260624000000-0h-oper-fc" in str(caught.value)
    final = fault in ("403", "401")
    assert server.num_gets("grib2") == (1 if final else 3)


def test_a_server_that_knows_no_ranges_is_read_through(server: Server) -> None:
    server.knows_ranges = False
    assert server.cycle("2026062400")[1].startswith(fetch(server))
    assert server.num_gets("grib2") == 1


def test_a_server_without_index_gives_the_whole_file(server: Server) -> None:
    server.has_index = False
    assert fetch(server) == server.cycle("2026062400")[1]


def test_a_cycle_that_is_not_there_is_named(server: Server) -> None:
    server.cycles = set()
    with pytest.raises(FetchError, match=r"missing cycle: neither .*\.index nor .*latest"):
        fetch(server)


def test_lacking_fields_are_all_named_with_what_there_is(server: Server) -> None:
    server.lacking["2026062400"] = {"gh500", "2t"}
    with pytest.raises(FetchError, match="missing z500, 2t; it has 10u, 10v, gh"):
        fetch(server)


def test_an_index_of_another_cycle_is_refused(server: Server) -> None:
    server._made["2026062400"] = server.cycle("2026062300")
    with pytest.raises(FetchError, match="is of cycle 202606230000, expected 202606240000"):
        fetch(server)


def test_bytes_that_are_no_message_are_refused(server: Server) -> None:
    server.faults["grib2"] = ["other"]
    with pytest.raises(FetchError, match="no whole GRIB message"):
        fetch(server)


def test_the_next_mirror_is_asked_where_one_fails(server: Server) -> None:
    cycles = {"model": "ifs", "resolution": "0p25", "stream": "oper"}
    both = cycles | {"urls": ["http://127.0.0.1:1", server.url]}
    assert fetch(server, cycles=both).count(b"GRIB") == len(WANTED)


def test_neighbours_travel_together_and_gaps_do_not(server: Server) -> None:
    index, data = server.cycle("2026062400")
    size = len(data) // (index.count(b"\n"))
    ranges = [(0, size), (size, size), (3 * size, size)]
    target = io.BytesIO()
    client = Client(limits())
    url = Cycles((), "ifs", "0p25", "oper").file(server.url, stamp()) + ".grib2"
    assert data[size : size + 4] == b"GRIB"  # messages of equal length
    assert fetch_ranges(client, url, ranges, target) == 3 * size
    assert target.getvalue() == data[: 2 * size] + data[3 * size : 4 * size]
    assert server.num_gets("grib2") == 2


@pytest.mark.parametrize("fault", ["truncate", "gzip", "gzip-truncate"])
def test_a_whole_file_is_fetched_again_from_its_start(server: Server, fault: str) -> None:
    server.faults["grib2"] = [fault]
    target = io.BytesIO()
    url = Cycles((), "ifs", "0p25", "oper").file(server.url, stamp()) + ".grib2"
    fetch_whole(Client(limits()), url, target)
    assert target.getvalue() == server.cycle("2026062400")[1]
    assert server.num_gets("grib2") == (1 if fault == "gzip" else 2)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_the_control_is_that_of_oper_where_the_ensemble_has_none(
    server: Server, knows_ranges: bool
) -> None:
    """As from IFS cycle 50r1 on."""
    server.knows_ranges = knows_ranges
    index, data = server.cycle("2026062400")
    numbered = [json.loads(line) | {"number": "1"} for line in index.splitlines()]
    server.streams["enfo"] = ("\n".join(map(json.dumps, numbered)).encode(), data)
    given = {"cycles": cycles_of(server) | {"stream": "enfo"}, "members": [0, 1]}
    found = fetch(server, **given)
    assert found == 2 * fetch(server)
    assert found.count(b"GRIB") == 2 * len(WANTED)
    now = {"now": "2026-06-24T01:00:00", "max_age_hours": 1.0}
    assert find_latest(task(server, **given, **now), limits())["init"] == "2026-06-24T00:00:00"
    server.streams["oper"] = None
    with pytest.raises(FetchError, match=r"-oper-fc.index: missing the control: HTTP status 404"):
        fetch(server, **given)
    with pytest.raises(FetchError, match="2026-06-24T00: .*missing the control"):
        find_latest(task(server, **given, **now), limits())


def test_what_an_object_store_forbids_is_not_there(server: Server) -> None:
    server.faults = {"index": ["403"], "grib2": ["403"]}
    with pytest.raises(FetchError, match=r"missing cycle: neither .* exists \(HTTP status 403\)"):
        fetch(server)


def test_latest_is_the_newest_cycle_that_is_complete(server: Server) -> None:
    server.cycles = {"2026062318", "2026062400", "2026062406"}
    server.lacking["2026062406"] = {"msl"}
    asked = task(server, now="2026-06-24T13:40:00", max_age_hours=30.0)
    found = find_latest(asked, limits())
    assert found["init"] == "2026-06-24T00:00:00"
    assert found["skipped"] == ["2026-06-24T12: not there", "2026-06-24T06: missing msl"]


def test_latest_refuses_what_is_too_old(server: Server) -> None:
    server.cycles = {"2026062200"}
    asked = task(server, now="2026-06-24T13:40:00", max_age_hours=30.0)
    with pytest.raises(
        FetchError, match=r"missing a complete cycle of the last 30 hours .*max-age"
    ):
        find_latest(asked, limits())


@pytest.mark.parametrize(
    ("init", "stream"),
    [
        ("2026-06-24T06", "oper"),
        ("2026-05-11T18", "scda"),
        ("2026-05-11T12", "oper"),
    ],
)
def test_short_cut_off_cycles_lie_elsewhere_before_cycle_50r1(init: str, stream: str) -> None:
    url = Cycles((), "ifs", "0p25", "oper").file("http://host/", stamp(init))
    day, hour = init[:10].replace("-", ""), init[11:]
    assert url == f"http://host/{day}/{hour}z/ifs/0p25/{stream}/{day}{hour}0000-0h-{stream}-fc"


def test_what_is_converted_is_asked_for_in_its_place() -> None:
    fields = [Field("geopotential", 500), Field("specific_humidity", 850), Field("2m_temperature")]
    assert wanted_messages(fields) == [
        [["z@500"], ["gh@500"]],
        [["q@850"], ["r@850", "t@850"]],
        [["2t"]],
    ]


def stamp(text: str = "2026-06-24T00") -> datetime:
    return datetime.fromisoformat(f"{text}:00").replace(tzinfo=UTC)
