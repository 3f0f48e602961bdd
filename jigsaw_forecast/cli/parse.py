"""Command line values turned into what the library takes."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import numpy as np

from jigsaw_forecast.errors import ForecastError, MeshError

MESH_AXES = ("data", "domain", "tensor")
_TIME = re.compile(
    r"(\d{4})-?(\d{2})-?(\d{2})(?:[T ]?(\d{2})(?::?(\d{2})(?::?(\d{2}))?)?)?(?:Z|\+00:?00)?"
)
_LONGEST_HOURS = 10 * 366 * 24  # beyond any forecast; numpy's times would overflow far later
_DURATION = re.compile(r"(\d+)([dh]?)")
_HOURS = {"d": 24, "h": 1, "": 1}
_TIME_FORMS = "2026-06-24T00, 2026-06-24T00:00Z, 2026062400 or 20260624, in UTC"


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Adds a `ForecastError`'s message to a list, so that all that is wrong is told at once."""
    try:
        yield
    except ForecastError as error:
        problems.append(str(error))


def parse_init_times(
    text: str, latest: Callable[[], np.datetime64] | None = None
) -> tuple[np.datetime64, ...]:
    """Initial times of a comma list whose parts are times or `START/END/STEP`, in that order.

    Args:
        text: `2026-06-24T00`, `2026-06-24T00:00Z`, `2026062400`, `20260624`, several joined with
            commas, or `2026-06-01/2026-06-30/12h` with both ends included; `latest` where the
            input can tell.
        latest: Finds the newest initial time; None where the input is a file.

    Raises:
        ForecastError: Parts are no times, a range is empty or a time is given twice; all that is
            wrong is listed.
    """
    times: list[np.datetime64] = []
    wrong = []
    for part in (part.strip() for part in text.split(",")):
        if part == "latest" and latest is not None:
            times.append(latest())
            continue
        if part == "latest":
            wrong.append(
                "latest asks a remote source for its newest analysis, and the input is a file: "
                "name its time"
            )
            continue
        try:
            times.extend(_parse_range(part) if "/" in part else [parse_time(part)])
        except ForecastError as error:
            wrong.append(str(error))
    counts = Counter(str(time.astype("datetime64[s]")) for time in times)
    twice = sorted(time for time, count in counts.items() if count > 1)
    if twice:
        wrong.append(f"given twice: {', '.join(twice)}")
    if wrong:
        raise ForecastError(f"--init {text}: {'; '.join(wrong)}")
    return tuple(times)


def fixed_init(argv: Sequence[str], init_times: Sequence[np.datetime64]) -> list[str]:
    """A command line whose `--init latest` is replaced by the times that it was resolved to.

    Ranks that are launched with it need not ask again, and cannot get another answer.

    Args:
        argv: Arguments, the program's name left out.
        init_times: What `--init` was resolved to.
    """
    times = ",".join(str(time) for time in init_times)
    fixed = list(argv)
    for index, argument in enumerate(fixed):
        option, separator, value = argument.partition("=")
        if option == "--init" and separator and "latest" in value:
            fixed[index] = f"--init={times}"
        elif argument == "--init" and "latest" in "".join(fixed[index + 1 : index + 2]):
            fixed[index + 1] = times
    return fixed


def parse_time(text: str) -> np.datetime64:
    """One time in UTC, datetime64[s].

    Raises:
        ForecastError: The text is no time in a known form, or no such day or hour exists.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ForecastError(f"{text!r} is not a time; expected {_TIME_FORMS}")
    try:
        moment = datetime(*(int(part or 0) for part in match.groups()))  # type: ignore[arg-type]
    except ValueError as error:
        raise ForecastError(f"{text!r} is not a time: {error}") from None
    return np.datetime64(moment, "s")


def parse_duration(text: str, option: str = "--lead-time") -> np.timedelta64:
    """A positive time span, timedelta64[s]: `10d`, `240h` or `240` (hours).

    Args:
        text: What the user gave.
        option: The option to name in the message.

    Raises:
        ForecastError: The text is no such span, or the span is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match.group(1)) == 0:
        raise ForecastError(
            f"{option} {text} is not a time span above zero; expected days or hours such as 10d, "
            "240h or 240"
        )
    hours = int(match.group(1)) * _HOURS[match.group(2)]
    if hours > _LONGEST_HOURS:
        raise ForecastError(f"{option} {text} is longer than ten years")
    return np.timedelta64(hours * 3600, "s")


def parse_lead_times(text: str) -> tuple[np.timedelta64, ...]:
    """Lead times of a comma list such as `0,6h,1d,10d`, timedelta64[s].

    Raises:
        ForecastError: Parts are no time spans; all of them are listed.
    """
    leads: list[np.timedelta64] = []
    problems: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if part in ("0", "0h", "0d"):
            leads.append(np.timedelta64(0, "s"))
            continue
        with collected(problems):
            leads.append(parse_duration(part, "--lead-times"))
    if problems:
        raise ForecastError("\n".join(problems))
    return tuple(leads)


def parse_optional_duration(text: str | None, option: str) -> np.timedelta64 | None:
    """Like `parse_duration`, and None for an option that was not given."""
    return None if text is None else parse_duration(text, option)


def parse_mesh(text: str) -> dict[str, int]:
    """Degrees of all axes, `data`, `domain` and `tensor` in this order; those left out are 1.

    Args:
        text: `domain=2,tensor=2`, or nothing for a single rank.

    Raises:
        MeshError: An axis is unknown or given twice, or a degree is no positive number; all that
            is wrong is listed.
    """
    mesh = dict.fromkeys(MESH_AXES, 1)
    wrong = []
    given: set[str] = set()
    for part in (part.strip() for part in text.split(",") if part.strip()):
        axis, separator, degree = (piece.strip() for piece in part.partition("="))
        if not separator:
            wrong.append(f"{part!r} is not AXIS=DEGREE")
        elif axis not in mesh:
            wrong.append(f"unknown axis {axis!r}; the axes are {', '.join(MESH_AXES)}")
        elif not re.fullmatch(r"[0-9]+", degree) or int(degree) == 0:
            wrong.append(f"{axis}={degree} is not a positive whole number")
        elif axis in given:
            wrong.append(f"{axis} is given twice")
        else:
            given.add(axis)
            mesh[axis] = int(degree)
    if wrong:
        raise MeshError(f"--mesh {text}: {'; '.join(wrong)}")
    return mesh


def parse_grib_keys(text: str) -> dict[str, str]:
    """GRIB keys and values of `centre=ecmf,class=ml,expver=0001`, in the order given.

    Raises:
        ForecastError: A part is not KEY=VALUE or a key is given twice; all such parts are listed.
    """
    keys: dict[str, str] = {}
    wrong = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not key or not value:
            wrong.append(f"{part!r} is not KEY=VALUE")
        elif key in keys:
            wrong.append(f"{key} is given twice")
        else:
            keys[key] = value
    if wrong:
        raise ForecastError(f"--grib {text}: {'; '.join(wrong)}")
    return keys


def _parse_range(text: str) -> list[np.datetime64]:
    parts = [part.strip() for part in text.split("/")]
    if len(parts) != 3:
        raise ForecastError(f"{text!r} is not START/END/STEP, such as 2026-06-01/2026-06-30/12h")
    start, end = parse_time(parts[0]), parse_time(parts[1])
    step = parse_duration(parts[2], option=f"STEP of {text}:")
    if end < start:
        raise ForecastError(f"{text!r} ends before it starts")
    return list(np.arange(start, end + np.timedelta64(1, "s"), step))
