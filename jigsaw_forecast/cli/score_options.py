"""The options of `score` turned into a request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigsaw_forecast.cli.parse import collected, parse_lead_times
from jigsaw_forecast.data.weather_store import Period
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.verify.baselines import BASELINES
from jigsaw_forecast.verify.regions import REGIONS
from jigsaw_forecast.verify.request import FORECAST, ScoreRequest

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN_NAMES = (FORECAST, "truth", *BASELINES)
_HOURS_A_DAY = 24


@dataclass(frozen=True)
class ScoreOptions:
    """Options of the command line that need parsing, as given."""

    forecast: list[Path] | None
    truth: list[Path] | None
    climatology: Path | None
    compare: list[str] | None
    compare_truth: list[str] | None
    init_times: str | None
    init_hours: str | None
    lead_times: str | None
    variables: str | None
    levels: str | None
    regions: str | None
    resolution: str | None
    baselines: str
    climatology_years: str | None


def make_request(options: ScoreOptions, **others: Any) -> ScoreRequest:
    """The request.

    Args:
        options: What needs parsing.
        others: Fields of the request that are taken as they are.

    Raises:
        ForecastError: Options are missing or wrong; all of them are listed.
    """
    problems: list[str] = []
    if not options.forecast:
        problems.append("missing option '--forecast'")
    if not options.truth:
        problems.append("missing option '--truth'")
    found: dict[str, Any] = {}
    with collected(problems):
        found["compare"] = _named(options.compare, "--compare")
    with collected(problems):
        found["compare_truth"] = _named(options.compare_truth, "--compare-truth")
    with collected(problems):
        found["init_times"] = parse_period(options.init_times, "--init-times")
    with collected(problems):
        hours = parse_numbers(options.init_hours, "--init-hours")
        found["init_hours"] = None if hours is None else tuple(int(one) for one in hours)
        if any(not 0 <= one < _HOURS_A_DAY for one in hours or ()):
            raise ForecastError(f"--init-hours {options.init_hours}: hours are 0 to 23")
    with collected(problems):
        found["lead_times"] = parse_lead_times(options.lead_times) if options.lead_times else None
    with collected(problems):
        found["levels"] = parse_numbers(options.levels, "--levels")
    with collected(problems):
        found["regions"] = _chosen(options.regions, tuple(REGIONS), "--regions")
    with collected(problems):
        found["resolution"] = Grid.parse(options.resolution) if options.resolution else None
    with collected(problems):
        text = "" if options.baselines.strip() == "none" else options.baselines
        found["baselines"] = _chosen(text, BASELINES, "--baselines") or ()
    with collected(problems):
        found["climatology_years"] = _years(options.climatology_years)
    if problems:
        raise ForecastError("\n".join(problems))
    return ScoreRequest(
        forecast=tuple(options.forecast or ()),
        truth=tuple(options.truth or ()),
        climatology=options.climatology,
        variables=options.variables,
        **found,
        **others,
    )


def parse_period(text: str | None, option: str) -> Period | None:
    """`START/END` with both ends included, None for an option that was not given.

    Raises:
        ForecastError: The text is no period.
    """
    if text is None:
        return None
    try:
        return Period.parse(text)
    except ValueError as fault:
        raise ForecastError(f"{option} {fault}") from None


def _named(values: Sequence[str] | None, option: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    wrong = []
    for value in values or ():
        name, separator, path = (part.strip() for part in value.partition("="))
        if not separator or not path or not _MODEL_NAME.fullmatch(name):
            wrong.append(f"{value!r} is not NAME=PATH with a name of letters, digits and -_.")
        elif name in found:
            wrong.append(f"{name} is given twice")
        elif name in _TAKEN_NAMES:
            wrong.append(f"the name {name} is taken; choose another")
        found[name] = Path(path)
    if wrong:
        raise ForecastError(f"{option}: {'; '.join(wrong)}")
    return found


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers of a comma list, ascending, None for an option that was not given.

    Raises:
        ForecastError: The text is no such list.
    """
    if text is None:
        return None
    try:
        return tuple(sorted({float(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise ForecastError(f"{option} {text} is not a list of numbers such as 500,850") from None


def _chosen(text: str | None, known: Sequence[str], option: str) -> tuple[str, ...] | None:
    if not text:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if names == ("all",):
        return tuple(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ForecastError(f"{option}: no such {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _years(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{4})/(\d{4})", text.strip())
    if match is None or int(match.group(2)) < int(match.group(1)):
        raise ForecastError(f"--climatology-years {text} is not START/END such as 1990/2019")
    return int(match.group(1)), int(match.group(2))
