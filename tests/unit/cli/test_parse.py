"""Values of options: every form that the command line documents, and what is refused."""

import numpy as np
import pytest

from jigsaw_forecast.cli import parse
from jigsaw_forecast.errors import ForecastError, MeshError

MIDNIGHT = np.datetime64("2026-06-24T00:00:00")


@pytest.mark.parametrize(
    "text",
    [
        "2026-06-24T00",
        "2026-06-24T00:00Z",
        "2026-06-24T00:00:00Z",
        "2026-06-24T00:00:00+00:00",
        "2026-06-24 00:00",
        "2026062400",
        "20260624",
        "2026-06-24",
        " 2026-06-24T00 ",
    ],
)
def test_every_form_of_a_time_is_understood(text: str) -> None:
    times = parse.parse_init_times(text)
    assert times == (MIDNIGHT,)
    assert times[0].dtype == np.dtype("datetime64[s]")


def test_the_hour_is_read() -> None:
    assert parse.parse_time("2026062418") == np.datetime64("2026-06-24T18")


def test_a_comma_list_keeps_its_order() -> None:
    found = parse.parse_init_times("20260625,2026062406")
    assert found == (np.datetime64("2026-06-25T00"), np.datetime64("2026-06-24T06"))


def test_a_range_includes_both_ends() -> None:
    found = parse.parse_init_times("2026-06-24T00/2026-06-25T00/12h")
    assert found == tuple(MIDNIGHT + np.timedelta64(12 * n, "h") for n in range(3))


def test_a_range_ends_before_an_end_that_the_step_misses() -> None:
    found = parse.parse_init_times("20260624/20260626/36")
    assert found == (MIDNIGHT, MIDNIGHT + np.timedelta64(36, "h"))


def test_ranges_and_times_mix() -> None:
    assert len(parse.parse_init_times("20260601,20260624/20260626/1d")) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yesterday", "'yesterday' is not a time; expected 2026-06-24T00"),
        ("20260231", "'20260231' is not a time: day"),
        ("2026-06-24T25", "hour must be in"),
        ("2026-06-24T00+02:00", "not a time"),
        ("", "'' is not a time"),
        ("20260624,", "'' is not a time"),
        ("20260625/20260624/6h", "ends before it starts"),
        ("20260624/20260625", "is not START/END/STEP"),
        ("20260624/20260625/0h", "STEP of 20260624/20260625/0h: 0h is not a time span above zero"),
        ("20260624,2026062400", "given twice: 2026-06-24T00:00:00"),
    ],
)
def test_what_is_no_initial_time_is_refused(text: str, message: str) -> None:
    with pytest.raises(ForecastError, match=message):
        parse.parse_init_times(text)


def test_all_wrong_initial_times_are_told_at_once() -> None:
    with pytest.raises(ForecastError, match=r"'foo' is not.*'20261301' is not"):
        parse.parse_init_times("foo,20260624,20261301")


def test_latest_is_what_the_input_says() -> None:
    newest = np.datetime64("2026-06-24T06", "s")
    found = parse.parse_init_times("2026-06-24T00,latest", lambda: newest)
    assert found == (np.datetime64("2026-06-24T00", "s"), newest)


@pytest.mark.parametrize("given", [["--init", "latest"], ["--init=latest"]])
def test_launched_ranks_get_the_time_that_latest_was_resolved_to(given: list[str]) -> None:
    argv = parse.fixed_init(["run", *given, "--quiet"], [np.datetime64("2026-06-24T06", "s")])
    assert "2026-06-24T06:00:00" in argv[1] + argv[2]
    assert "latest" not in " ".join(argv)
    assert argv[0] == "run"
    assert argv[-1] == "--quiet"


def test_latest_is_refused_for_files() -> None:
    with pytest.raises(ForecastError, match="latest asks a remote source.*the input is a file"):
        parse.parse_init_times("latest")


@pytest.mark.parametrize("text", ["10d", "240h", "240", " 240h "])
def test_every_form_of_a_lead_time_is_understood(text: str) -> None:
    assert parse.parse_duration(text) == np.timedelta64(10, "D")


@pytest.mark.parametrize("text", ["", "0", "0d", "-6h", "1.5d", "10 days", "6m"])
def test_what_is_no_lead_time_is_refused(text: str) -> None:
    with pytest.raises(ForecastError, match="not a time span above zero; expected days or hours"):
        parse.parse_duration(text)


def test_lead_times_of_maps_may_start_at_zero() -> None:
    hours = [0, 6, 24, 240]
    expected = tuple(np.timedelta64(hour, "h") for hour in hours)
    assert parse.parse_lead_times("0,6h,1d,10d") == expected


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("", {"data": 1, "domain": 1, "tensor": 1}),
        ("domain=2,tensor=3", {"data": 1, "domain": 2, "tensor": 3}),
        (" tensor = 4 ", {"data": 1, "domain": 1, "tensor": 4}),
        ("data=2,domain=1,tensor=1", {"data": 2, "domain": 1, "tensor": 1}),
    ],
)
def test_a_mesh_has_all_axes(text: str, mesh: dict[str, int]) -> None:
    assert parse.parse_mesh(text) == mesh


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows=2", "unknown axis 'rows'; the axes are data, domain, tensor"),
        ("domain=0", "domain=0 is not a positive whole number"),
        ("domain=two", "domain=two is not a positive whole number"),
        ("domain=", "domain= is not a positive whole number"),
        ("domain=-1", "domain=-1 is not a positive whole number"),
        ("2x2", "'2x2' is not AXIS=DEGREE"),
        ("domain=2,domain=2", "domain is given twice"),
        ("rows=2,tensor=0", "unknown axis 'rows'.*tensor=0 is not"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        parse.parse_mesh(text)


def test_grib_keys_keep_their_text_and_order() -> None:
    keys = parse.parse_grib_keys("centre=ecmf,class=ml,expver=0001")
    assert list(keys.items()) == [("centre", "ecmf"), ("class", "ml"), ("expver", "0001")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("centre", "'centre' is not KEY=VALUE"),
        ("=ecmf,expver=", "'=ecmf' is not KEY=VALUE; 'expver=' is not KEY=VALUE"),
        ("class=ml,class=od", "class is given twice"),
    ],
)
def test_what_are_no_grib_keys_is_refused(text: str, message: str) -> None:
    with pytest.raises(ForecastError, match=message):
        parse.parse_grib_keys(text)
