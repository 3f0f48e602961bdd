"""Fields that the user names, among those that a file offers."""

import re
from collections.abc import Sequence

from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.fields import find_variable


def choose_variables(
    text: str, offered: dict[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    """Fields named by a comma list such as `z500,t_850,2t,u`; a bare variable means all its levels.

    Raises:
        ForecastError: A name means nothing that is offered; all such names are listed.
    """
    chosen: dict[str, set[float]] = {}
    unknown = []
    for raw in (part.strip() for part in text.split(",") if part.strip()):
        known = find_variable(raw)
        name = raw if raw in offered else known.name if known is not None else ""
        if name in offered:
            chosen.setdefault(name, set()).update(offered[name])
            continue
        match = re.fullmatch(r"(.+?)_?(\d+)", raw)
        stem = match.group(1) if match is not None else ""
        known = find_variable(stem)
        name = stem if stem in offered else known.name if known is not None else ""
        if match is None or name not in offered or float(match.group(2)) not in offered[name]:
            unknown.append(raw)
            continue
        chosen.setdefault(name, set()).add(float(match.group(2)))
    if unknown or not chosen:
        has = ", ".join(
            f"{name} ({list_hpa(levels)})" if levels else name for name, levels in offered.items()
        )
        raise ForecastError(
            f"missing fields in the forecast: {', '.join(unknown) or repr(text)}; it has {has}"
        )
    return {n: tuple(sorted(chosen[n])) for n in offered if n in chosen}


def list_hpa(levels: Sequence[float]) -> str:
    """`500, 850 hPa`."""
    return f"{list_numbers(levels)} hPa" if levels else "no levels"


def list_numbers(numbers: Sequence[float]) -> str:
    """`6, 12, 24`."""
    return ", ".join(f"{one:g}" for one in numbers)
