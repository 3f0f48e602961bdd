"""What was scored against what, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.report.page import definitions, details, escape, paragraph
from jigsaw_forecast.verify.report.quantities import lead_label
from jigsaw_forecast.verify.report.read import Model, Scoring

MOST_LINES = 12
SIMULATED = (
    "The source says that it is a nature run: weather of a simulated planet, not of the Earth. "
    "These scores say nothing about forecasts of real weather."
)
NATURE_RUN_WORDS = ("nature run", "nature-run", "nature_run", "simulated planet")


def notices(scoring: Scoring) -> str:
    """What must be seen before any number: simulated planets and forced comparisons."""
    said = []
    notice = _text(scoring, "notice")
    if notice:
        said.append(notice)
    elif is_nature_run(scoring):
        said.append(SIMULATED)
    said += [
        f"Comparison with {model.title} was forced: {model.warning}"
        for model in scoring.others
        if model.warning
    ]
    remarks = [str(one) for one in scoring.protocol.get("warnings", []) if str(one) not in said]
    return "\n".join(
        [paragraph(one, "warning") for one in said] + [paragraph(one, "note") for one in remarks]
    )


def is_nature_run(scoring: Scoring) -> bool:
    """Whether what the forecast's source says of itself names a nature run."""
    attributes = scoring.main.facts.get("attributes")
    told = [*attributes.values()] if isinstance(attributes, Mapping) else []
    told += [_text(scoring, "truth"), *map(str, scoring.main.scores.attrs.values())]
    return any(word in str(one).lower() for one in told for word in NATURE_RUN_WORDS)


def sample_words(scoring: Scoring) -> str:
    """Which forecasts are means over other initial times than the main one, empty if none."""
    main = scoring.main.num_init_times
    others = [
        f"{model.title} {_range(model.num_init_times)}"
        for model in scoring.others
        if model.num_init_times is not None and model.num_init_times != main
    ]
    if main is None or not others:
        return ""
    return (
        f"Not all are means over the same number of initial times: {scoring.main.title} "
        f"{_range(main)}, {', '.join(others)}. The scorecard compares common ones only."
    )


def _range(counts: tuple[int, int]) -> str:
    return str(counts[0]) if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"


def protocol_section(scoring: Scoring) -> str:
    """The protocol as a list of facts, then what each model lacks."""
    main = scoring.main
    path = main.facts.get("path") or main.scores.attrs.get("forecast", main.name)
    facts = [
        (
            "Forecast",
            f"{main.title} ({path})",
        ),
        ("Truth", _text(scoring, "truth")),
        ("Climatology", _text(scoring, "climatology") or "none"),
        ("Resolution", _text(scoring, "resolution") + _regridded(main)),
        ("Initial times", _init_times(main)),
        ("Lead times", _lead_times(scoring.hours)),
        ("Members", _text(scoring, "members")),
        ("ACC", _text(scoring, "acc")),
        ("Pooled ACC", _text(scoring, "acc_pooled")),
        ("Land mask", _text(scoring, "land_sea_mask")),
        ("Missing values", _text(scoring, "nan_policy")),
        ("Compared with", "; ".join(_describe(model) for model in scoring.others) or "nothing"),
        ("Made", _made(scoring)),
    ]
    parts = [definitions((term, words) for term, words in facts if words)]
    parts += [_missing(model) for model in scoring.models]
    notes = [f"{model.title}: {note}" for model in scoring.models for note in _list(model, "notes")]
    parts += [paragraph(note, "note") for note in notes]
    return "\n".join(part for part in parts if part)


def _text(scoring: Scoring, key: str) -> str:
    """A text of the protocol, or else of the scores' attributes."""
    value = scoring.protocol.get(key)
    if value is None:
        value = scoring.main.scores.attrs.get(key, "")
    return str(value)


def _list(model: Model, key: str) -> Sequence[Any]:
    value = model.facts.get(key)
    return value if isinstance(value, list) else []


def _regridded(model: Model) -> str:
    source = model.facts.get("regridded_from")
    return f", regridded conservatively from {source}" if source else ""


def _describe(model: Model) -> str:
    """`hres (hres.zarr, 60 initial times, truth analysis.zarr)`."""
    if model.is_baseline:
        return f"{model.title} (baseline)"
    about = [str(model.facts.get("path") or model.facts.get("label") or "")]
    if model.num_init_times is not None:
        about.append(f"{_range(model.num_init_times)} initial times")
    if model.facts.get("members", 1) not in (None, 1):
        about.append(f"{model.facts['members']} members")
    if model.facts.get("truth"):
        about.append(f"truth {model.facts['truth']}")
    if model.facts.get("resolution"):
        about.append(f"{model.facts['resolution']}{_regridded(model)}")
    return f"{model.title} ({', '.join(one for one in about if one)})"


def _made(scoring: Scoring) -> str:
    versions = scoring.protocol.get("versions")
    words = [str(scoring.protocol.get("created", ""))]
    if isinstance(versions, Mapping):
        words.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return ", by ".join(one for one in words if one)


def _lead_times(hours: npt.NDArray[np.float64]) -> str:
    steps = np.unique(np.diff(hours))
    if hours.size > 3 and steps.size == 1:
        first, last = lead_label(float(hours[0])), lead_label(float(hours[-1]))
        return f"{first} to {last}, every {steps[0]:g} h ({hours.size})"
    return ", ".join(lead_label(float(one)) for one in hours)


def _init_times(model: Model) -> str:
    stated = _list(model, "init_times")
    if not stated:
        return str(model.scores.attrs.get("init_times", ""))
    try:
        times = np.sort(np.array(stated, dtype="datetime64[s]"))
    except ValueError:
        return ", ".join(str(one) for one in stated[:MOST_LINES])
    return f"{times.size}: {'; '.join(describe_times(times))}"


def describe_times(times: npt.NDArray[np.datetime64]) -> list[str]:
    """Times as a few runs of equal steps: `2026-01-01 00 UTC to 2026-03-01 00 UTC every 12 h`."""
    runs: list[list[np.datetime64]] = []
    for time in times:
        run = runs[-1] if runs else []
        if len(run) == 1 or (len(run) > 1 and time - run[-1] == run[1] - run[0]):
            run.append(time)
        else:
            runs.append([time])
    words = []
    for run in runs:
        if len(run) > 2:
            hours = (run[1] - run[0]) / np.timedelta64(1, "h")
            words.append(f"{_time(run[0])} to {_time(run[-1])} every {hours:g} h")
        else:
            words += [_time(one) for one in run]
    if len(words) > MOST_LINES:
        words = [*words[:MOST_LINES], f"and more, the last {_time(times[-1])}"]
    return words


def _time(time: np.datetime64) -> str:
    instant = time.astype("datetime64[s]").item()
    clock = f"{instant:%H}" if instant.minute == 0 else f"{instant:%H:%M}"
    return f"{instant:%Y-%m-%d} {clock} UTC"


def _missing(model: Model) -> str:
    """What could not be scored, most frequent reasons first."""
    entries = [one for one in _list(model, "missing") if isinstance(one, Mapping)]
    count = model.facts.get("num_missing", len(entries))
    if not count:
        return ""
    reasons = Counter(str(one.get("why", "")) for one in entries)
    lines = [
        f"<li>{escape(why)} ({times} {'pair' if times == 1 else 'pairs'})</li>"
        for why, times in reasons.most_common(MOST_LINES)
    ]
    if len(reasons) > MOST_LINES:
        lines.append(f"<li>and {len(reasons) - MOST_LINES} more reasons, in protocol.json</li>")
    content = f"<ul>\n{_joined(lines)}\n</ul>" if lines else ""
    return details(f"{model.title}: {count} pairs missing", content)


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines)
