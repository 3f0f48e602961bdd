"""Remote initial conditions: a child for each fetch, a cache that is checked, and every refusal.

The server is local; faults of HTTP itself are tested in tests/unit/data/test_fetch.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.data.acquisition import InputRequest, resolve_input, resolve_latest
from jigsaw_forecast.data.acquisition.cache import Cache
from jigsaw_forecast.data.acquisition.spec import RemoteSpec, parse_spec
from jigsaw_forecast.data.acquisition.tasks import archive_grid, make_task
from jigsaw_forecast.data.initial_state import plan_initial_state
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import plausible_range
from jigsaw_forecast.grid import Grid
from tests.integration import inputs
from tests.integration.open_data_server import Server, serving, state, valid_times

CONFIG = inputs.CONFIG
FIELDS = CONFIG.prognostic_fields
INIT = np.datetime64("2026-06-24T00", "s")
URL_PATH = "20260624/00z/ifs/0p25/oper/20260624000000-0h-oper-fc.grib2"
QUICK = "attempts=2,backoff=0.05,stall=5,deadline=20"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JIGSAW_CACHE", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ECMWF_API_URL", "ECMWF_API_KEY", "CDSAPI_URL", "CDSAPI_KEY", "CDSAPI_RC"):
        monkeypatch.delenv(name, raising=False)
    return folder


def request(spec: str, *times: np.datetime64, members: tuple[int, ...] = ()) -> InputRequest:
    return InputRequest(
        spec, Path("initial.zarr"), FIELDS, CONFIG.grid_object, times or (INIT,), members
    )


def open_data(server: Server, options: str = QUICK) -> str:
    return f"open-data:url={server.url},{options}"


def test_open_data_gives_the_state_that_the_server_holds(server: Server, cache: Path) -> None:
    found = resolve_input(request(open_data(server)))
    plan = plan_initial_state(
        found.source(INIT),
        FIELDS,
        CONFIG.grid_object,
        INIT,
        regrid=False,
        plausible={field: plausible_range(field) for field in FIELDS},
    )
    expected = state()
    for values, field in zip(plan.read(FIELDS), FIELDS, strict=True):
        packing = 2.0**-23 * np.ptp(expected[field]) + 1e-6 * abs(expected[field]).max()
        np.testing.assert_allclose(values, expected[field], rtol=0, atol=packing)
    (entry,) = found.provenance()
    assert str(entry["origin"]).startswith(server.url)
    assert len(str(entry["sha256"])) == 64
    assert found.file(INIT).path.parent == cache


def test_a_second_run_takes_the_cache_and_a_damaged_file_is_fetched_again(
    server: Server, cache: Path
) -> None:
    spec = open_data(server)
    first = resolve_input(request(spec)).file(INIT)
    num_requests = len(server.requests)
    assert resolve_input(request(spec)).file(INIT) == first
    assert len(server.requests) == num_requests
    content = bytearray(first.path.read_bytes())
    content[len(content) // 2] ^= 1
    first.path.write_bytes(content)
    left = cache / f"{first.path.stem}.partial-old"  # by a run that was killed
    left.mkdir()
    (left / "target").write_bytes(b"half")
    again = resolve_input(request(spec)).file(INIT)
    assert again.sha256 == first.sha256
    assert len(server.requests) > num_requests
    assert not list(cache.glob("*.partial-*"))


def test_a_fetch_takes_no_module_from_the_working_folder(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requests.py").write_text("raise SystemExit('taken from the working folder')")
    monkeypatch.chdir(tmp_path)
    assert resolve_input(request(open_data(server))).file(INIT).path.exists()


def test_a_silent_server_ends_at_the_deadline(server: Server, cache: Path) -> None:
    server.faults["grib2"] = ["silence"] * 9
    start_s = time.monotonic()
    with pytest.raises(DataError, match="deadline") as caught:
        resolve_input(request(open_data(server, "deadline=2,stall=60")))
    assert time.monotonic() - start_s < 15
    assert "2026-06-24T00:00" in str(caught.value)
    assert not list(cache.glob("*.data"))
    assert not list(cache.glob("*.partial-*"))


def test_files_of_another_time_are_refused_and_not_kept(server: Server, cache: Path) -> None:
    server.shift_hours = -24
    with pytest.raises(DataError, match="of another time, expected 2026-06-24T00:00: message 1"):
        resolve_input(request(open_data(server)))
    assert not list(cache.glob("*.data"))


def test_all_initial_times_that_fail_are_in_one_message(server: Server, cache: Path) -> None:
    server.cycles = {"2026062400"}
    times = [INIT, INIT + np.timedelta64(6, "h"), INIT + np.timedelta64(12, "h")]
    with pytest.raises(DataError) as caught:
        resolve_input(request(open_data(server), *times))
    assert str(caught.value).count("missing cycle") == 2
    assert "2026-06-24T06:00" in str(caught.value)
    assert "2026-06-24T12:00" in str(caught.value)


def test_open_data_has_four_cycles_a_day(server: Server, cache: Path) -> None:
    with pytest.raises(DataError, match="00, 06, 12 and 18 UTC, not at 2026-06-24T03:00"):
        resolve_input(request(open_data(server), np.datetime64("2026-06-24T03", "s")))
    assert server.requests == []


def test_processes_that_ask_for_the_same_share_one_fetch(server: Server, cache: Path) -> None:
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(resolve_input(request(open_data(server))).file(INIT).path)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert server.num_gets("index") == 1


def test_latest_is_the_newest_complete_cycle_and_is_kept_for_a_minute(
    server: Server, cache: Path
) -> None:
    now = datetime.now(UTC)
    newest = now.replace(hour=now.hour // 6 * 6, minute=0, second=0, microsecond=0)
    cycles = [newest - timedelta(hours=6 * back) for back in range(3)]
    server.cycles = {f"{cycle:%Y%m%d%H}" for cycle in cycles[1:]}
    expected = np.datetime64(cycles[1].replace(tzinfo=None), "s")
    assert resolve_latest(open_data(server), FIELDS) == expected
    server.cycles.add(f"{cycles[0]:%Y%m%d%H}")
    assert resolve_latest(open_data(server), FIELDS) == expected
    assert server.num_gets("grib2") == 0


@pytest.mark.parametrize("spec", [None, "state.grib", "mars:class=ea"])
def test_latest_of_what_cannot_tell_is_refused(spec: str | None, cache: Path) -> None:
    with pytest.raises(DataError, match="--init latest asks a remote source"):
        resolve_latest(spec, FIELDS)


def test_killing_the_run_leaves_no_child(server: Server, cache: Path) -> None:
    server.faults["grib2"] = ["stall"]
    script = (
        "from pathlib import Path; import numpy as np;"
        "from jigsaw_forecast.data.acquisition import InputRequest, resolve_input;"
        "from jigsaw_forecast.fields import Field; from jigsaw_forecast.grid import Grid;"
        f"resolve_input(InputRequest({open_data(server, 'deadline=60,stall=60')!r}, Path('x'),"
        "[Field('2m_temperature')], Grid.parse('24x12'), [np.datetime64('2026-06-24T00')]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: server.num_gets("grib2") == 1)
    (child,) = children_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_running(child))


def test_the_command_stops_its_child_on_sigterm(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    server.faults["index"] = ["stall"]
    command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "check", "nature-run"]
    command += ["--init", "latest", "--input", open_data(server, "deadline=60,stall=60")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for(lambda: server.num_gets("index") == 1)
    (child,) = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 3, message
    assert "stopped by SIGTERM" in message
    assert not is_running(child)


def test_mars_is_asked_for_pressure_levels_and_surface_in_one_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ECMWF's own client is a program; a script that answers requests stands in for it."""
    source = inputs.write_grib(tmp_path / "answer.grib", state(), time=INIT)
    client = tmp_path / "mars"
    client.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, re, sys\n"
        "text = pathlib.Path(sys.argv[1]).read_text()\n"
        f"log = pathlib.Path({str(tmp_path / 'requests.txt')!r})\n"
        "log.write_text((log.read_text() if log.exists() else '') + text)\n"
        "target = re.search('target=\"(.*)\"', text)[1]\n"
        "half = 5 if 'levtype=pl' in text else -4\n"
        f"data = pathlib.Path({str(source)!r}).read_bytes()\n"
        "size = len(data) // 9\n"
        "pathlib.Path(target).write_bytes(data[:5 * size] if half == 5 else data[5 * size:])\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("MARS_CLIENT_COMMAND", str(client))
    found = resolve_input(request("mars:class=ea,deadline=60"))
    assert found.file(INIT).path.read_bytes() == source.read_bytes()
    asked = (tmp_path / "requests.txt").read_text()
    assert asked.count("class=ea") == 2
    assert "levelist=500/850" in asked
    assert "param=167.128/165.128/166.128/151.128" in asked
    assert "date=2026-06-24" in asked
    assert valid_times(found.file(INIT).path) == {"20260624T00"}


@pytest.mark.parametrize(
    ("spec", "day", "asked"),
    [
        ("mars:", "2026-05-11", [("enfo", "cf", None), ("enfo", "pf", ["1", "2"])]),
        ("mars:", "2026-06-24", [("oper", "fc", None), ("enfo", "pf", ["1", "2"])]),
        ("mars:stream=eefo", "2026-06-24", [("eefo", "cf", None), ("eefo", "pf", ["1", "2"])]),
        ("mars:stream=enda,type=an", "2026-06-24", [("enda", "an", ["0", "1", "2"])]),
    ],
)
def test_mars_is_asked_for_the_control_by_its_own_type(
    spec: str, day: str, asked: list[tuple[str, str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jigsaw_forecast.data.acquisition.tasks.check_credentials", print)
    parsed, members = parse_spec(spec), (0, 1, 2)
    assert isinstance(parsed, RemoteSpec)
    start = np.datetime64(f"{day}T00", "s")
    task = make_task(parsed, request(spec, start, members=members), start, members)
    calls = [call["options"] for call in task["requests"]]
    found = [(call["stream"], call["type"], call.get("number")) for call in calls]
    assert found == [one for one in asked for _ in ("levels", "surface")]
    assert [call["levtype"] for call in calls] == ["pl", "sfc"] * len(asked)


@pytest.mark.parametrize(
    ("spec", "members", "stream"),
    [("", (), "oper"), ("", (0,), "oper"), ("", (0, 1), "enfo"), ("stream=oper", (0, 1), "oper")],
)
def test_members_come_from_the_ensemble(spec: str, members: tuple[int, ...], stream: str) -> None:
    parsed = parse_spec(f"open-data:{spec}")
    assert isinstance(parsed, RemoteSpec)
    task = make_task(parsed, request("", members=members), INIT, members)
    assert task["cycles"]["stream"] == stream


def test_archives_are_asked_for_increments_east_west_first() -> None:
    assert archive_grid(Grid(33, 128, has_poles=True)) == [2.8125, 5.625]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mars:", r"missing credentials: put the key from https://api.ecmwf.int/v1/key/ into .*rc"),
        ("cds:", r"missing credentials: put the key from https://cds.* into .*\.cdsapirc, or set"),
        ("foo:bar", "'foo' is no source: use a path or one of open-data:, mars:, cds:"),
        ("open-data:resolution=0p25,what=1", "unknown option resolution; .*unknown option what"),
        ("open-data:mirror=moon", "unknown mirror moon; known: ecmwf, aws, google"),
        ("open-data:deadline=soon", "deadline=soon is not a positive number"),
        ("state-{member:02d}.grib", "the run has no members"),
        ("state-{init:%Y}.grib", r"state-2026.grib: no such file \(from the template"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_at_once(
    spec: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MARS_CLIENT_COMMAND", raising=False)
    with pytest.raises(DataError, match=says):
        resolve_input(request(spec))


def test_a_url_is_fetched_and_a_page_in_its_place_is_refused(server: Server, cache: Path) -> None:
    url = f"url:{server.url}/{URL_PATH},{QUICK}"
    server.faults["grib2"] = ["html"] * 2
    with pytest.raises(DataError, match="HTML page instead of data"):
        resolve_input(request(url))
    assert resolve_input(request(url)).source(INIT).valid_times().tolist() == [INIT.item()]


def test_a_url_is_fetched_again_for_another_time_and_where_asked(
    server: Server, cache: Path
) -> None:
    url, later = f"{server.url}/{URL_PATH}", INIT + np.timedelta64(24, "h")
    first = resolve_input(request(url)).file(INIT)
    server.shift_to(24)
    assert resolve_input(request(url, later)).source(later).valid_times().tolist() == [later.item()]
    assert resolve_input(request(url)).file(INIT) == first
    num_gets = server.num_gets("grib2")
    with pytest.raises(DataError, match="of another time, expected 2026-06-24T00:00"):
        resolve_input(request(f"url:{url},refresh=yes,{QUICK}"))
    assert server.num_gets("grib2") == num_gets + 1


def test_a_url_of_many_times_is_fetched_once(server: Server, cache: Path) -> None:
    index, today = server.cycle("2026062400")
    _, tomorrow = server.cycle("2026062500")
    server.hold("2026062400", index, today + tomorrow)
    times = (INIT, INIT + np.timedelta64(24, "h"))
    found = resolve_input(request(f"{server.url}/{URL_PATH}", *times))
    assert found.file(times[0]) == found.file(times[1])
    assert server.num_gets("grib2") == 1


def test_limits_after_a_url_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JIGSAW_FETCH_DEADLINE", "9")
    spec = parse_spec("https://host/a.grib2?key=1,refresh=no&b=2,deadline=7, refresh=yes")
    assert isinstance(spec, RemoteSpec)
    assert spec.arguments == ("https://host/a.grib2?key=1,refresh=no&b=2",)
    assert (spec.limits.deadline_s, spec.limits.is_refreshed) == (7.0, True)
    assert parse_spec("https://host/a.grib2").limits.deadline_s == 9.0  # type: ignore[union-attr]
    with pytest.raises(DataError, match="stall=soon is not a positive number"):
        parse_spec("url:https://host/a.grib2,stall=soon")


def test_templates_name_a_file_for_each_time_and_member(tmp_path: Path, cache: Path) -> None:
    later = INIT + np.timedelta64(6, "h")
    for time_, name in ((INIT, "2026062400"), (later, "2026062406")):
        for member in range(2):
            inputs.write_grib(tmp_path / f"{name}-{member:02d}.grib", state(), time=time_)
    spec = f"{tmp_path}/{{init:%Y%m%d%H}}-{{member:02d}}.grib"
    found = resolve_input(request(spec, INIT, later, members=(0, 1)))
    assert found.file(later, 1).path == tmp_path / "2026062406-01.grib"
    assert found.file(later, 1).member is None
    (tmp_path / "all.grib").write_bytes((tmp_path / "2026062400-00.grib").read_bytes())
    shared = resolve_input(request(str(tmp_path / "all.grib"), members=(0, 1)))
    assert shared.file(INIT, 1).member == 1


def test_the_cache_throws_out_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIGSAW_CACHE_GB", "0.0000015")  # 1500 bytes
    cache = Cache(tmp_path)
    for name in ("old", "older", "new"):
        with cache.staged(name) as folder:
            (folder / "target").write_bytes(bytes(1000))
            cache.publish(name, folder / "target", {}, name)
        if name != "new":
            age_s = {"old": 2, "older": 3}[name] * 86400
            os.utime(tmp_path / f"{name}.json", (time.time() - age_s,) * 2)
    assert sorted(path.stem for path in tmp_path.glob("*.data")) == ["new"]
    assert json.loads((tmp_path / "new.json").read_text())["bytes"] == 1000


def test_an_entry_that_is_being_published_is_left_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.staged("one") as folder:
        (folder / "target").write_bytes(b"today's")
        whole = cache.publish("one", folder / "target", {}, "origin")
    assert cache.find("one", is_locked=False) == whole
    whole.path.write_bytes(b"tomorrow's, its note not yet written")
    files = sorted(tmp_path.iterdir())
    assert cache.find("one", is_locked=False) is None
    assert sorted(tmp_path.iterdir()) == files
    assert cache.find("one", is_locked=True) is None
    assert not whole.path.exists()


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JIGSAW_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot write into the cache .*JIGSAW_CACHE"):
        resolve_input(request("open-data:url=http://127.0.0.1:1"))


def wait_for(is_so: object, seconds: float = 20.0) -> None:
    assert callable(is_so)
    end_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end_s, "it did not come to pass"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    return [
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/status")
        if f"PPid:\t{pid}\n" in _read(status)
    ]


def is_running(pid: int) -> bool:
    text = _read(Path(f"/proc/{pid}/status"))
    return bool(text) and "State:\tZ" not in text


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
