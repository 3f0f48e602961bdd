"""The report's tables as HTML."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.report.draw_scorecard import BOUNDS, Card, by_variable, class_colours
from jigsaw_forecast.verify.report.page import escape, number, scrolling
from jigsaw_forecast.verify.report.quantities import HEADLINE_DAYS, Quantity, lead_label
from jigsaw_forecast.verify.report.read import Model, Scoring

FloatArray = npt.NDArray[np.float64]

MOST_COLUMNS = 10
REGIONS = {
    "extra-tropics": "extratropics",
    "north-america": "North America",
    "north-atlantic": "North Atlantic",
    "north-pacific": "North Pacific",
    "east-asia": "East Asia",
    "ausnz": "Australia, New Zealand",
}
BEST_CELL = '<td class="best">'
# words for those who do not see the mark
SIGNIFICANT = '<span aria-hidden="true">●</span><span class="hidden">significant</span>'


def headline_hours(hours: FloatArray) -> list[float]:
    """All lead times if there are few, else days 1, 3, 5, 7 and 10, else some evenly spread."""
    days = [24.0 * day for day in HEADLINE_DAYS if 24.0 * day in hours]
    is_few = (hours > 0).sum() <= len(HEADLINE_DAYS)
    return days if len(days) >= 2 and not is_few else spread_hours(hours, len(HEADLINE_DAYS))


def spread_hours(hours: FloatArray, most: int = MOST_COLUMNS) -> list[float]:
    """All lead times, or whole days, or as many as asked for, evenly spread to the last one."""
    chosen = hours[hours > 0] if (hours > 0).any() else hours
    whole_days = chosen[chosen % 24 == 0]
    if chosen.size > most and whole_days.size >= 2:
        chosen = whole_days
    if chosen.size > most:
        places = np.unique(np.linspace(0, chosen.size - 1, most).round().astype(int))
        chosen = chosen[places]
    return [float(one) for one in chosen]


def metric_tables(scoring: Scoring, quantities: Sequence[Quantity], metric: str, words: str) -> str:
    """A table for each quantity: forecasts down, lead times across; the best is bold.

    Empty where no forecast has the metric for any of the quantities.
    """
    hours = headline_hours(scoring.hours)
    tables = []
    for quantity in quantities:
        rows = [
            (model, model.values(quantity, metric, scoring.region, hours))
            for model in (scoring.main, *scoring.others)
        ]
        rows = [(model, values) for model, values in rows if np.isfinite(values).any()]
        if rows:
            units = quantity.units_of(metric)
            caption = f"{quantity.label}: {words}{f' ({units})' if units else ''}"
            tables.append(_metric_table(caption, hours, rows, (quantity, metric)))
    return '<div class="tables">\n' + "\n".join(tables) + "\n</div>" if tables else ""


def _metric_table(
    caption: str,
    hours: Sequence[float],
    rows: Sequence[tuple[Model, FloatArray]],
    what: tuple[Quantity, str],
) -> str:
    quantity, metric = what
    values = np.array([one for _, one in rows])
    is_best = _best(values, metric) if len(rows) > 1 else np.zeros(values.shape, dtype=bool)
    lines = []
    for (model, _), row, best in zip(rows, values, is_best, strict=True):
        cells = "".join(
            f"{BEST_CELL if is_this else '<td>'}"
            f"{number(float(value), quantity.scale_of(metric))}</td>"
            for value, is_this in zip(row, best, strict=True)
        )
        lines.append(f'<tr><th scope="row" class="name">{escape(model.title)}</th>{cells}</tr>')
    return _table(caption, "Forecast", [lead_label(hour) for hour in hours], lines)


def _table(caption: str, corner: str, columns: Iterable[str], lines: Iterable[str]) -> str:
    """A table that scrolls sideways where it must; rows and columns are HTML."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return scrolling(
        caption,
        f"<table><caption>{escape(caption)}</caption>\n<thead><tr>"
        f'<th scope="col" class="name">{escape(corner)}</th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table>",
    )


def _best(values: FloatArray, metric: str) -> npt.NDArray[np.bool_]:
    """Largest ACC, ratio nearest to 1, smallest of all else."""
    if metric.startswith("acc"):
        signed = -values
    else:
        signed = np.abs(values - 1.0 if metric.endswith("ratio") else values)
    filled = np.where(np.isfinite(signed), signed, np.inf)
    return np.asarray((filled == filled.min(0)) & np.isfinite(values))


def region_table(scoring: Scoring, quantities: Sequence[Quantity], hours: float) -> str:
    """RMSE of the forecast, regions down, quantities across."""
    columns = []
    for quantity in quantities:
        values = [
            scoring.main.values(quantity, "rmse", region, [hours])[0] for region in scoring.regions
        ]
        if np.isfinite(values).any():
            columns.append((quantity, values))
    heads = [f"{escape(one.short)}<br><span>{escape(one.units)}</span>" for one, _ in columns]
    lines = [
        f'<tr><th scope="row" class="name">{escape(region_label(region))}</th>'
        + "".join(f"<td>{number(float(v[place]), one.scale)}</td>" for one, v in columns)
        + "</tr>"
        for place, region in enumerate(scoring.regions)
    ]
    caption = f"RMSE of {scoring.main.title} by region at {lead_label(hours)}"
    return _table(caption, "Region", heads, lines)


def region_label(region: str) -> str:
    """`Northern hemisphere`, `Tropics, land`."""
    name = region.removesuffix("_land")
    words = REGIONS.get(name, name.replace("-", " ").replace("_", " "))
    return words[:1].upper() + words[1:] + (", land" if name != region else "")


def card_tables(card: Card) -> str:
    """The numbers of a scorecard: one small table for each variable, levels down."""
    hours = spread_hours(card.hours)
    columns = [int(np.flatnonzero(card.hours == one)[0]) for one in hours]
    tables = [_card_table(card, label, rows, columns) for label, rows in by_variable(card)]
    return '<div class="cards">\n' + "\n".join(tables) + "\n</div>"


def _card_table(card: Card, label: str, rows: Iterable[int], columns: Sequence[int]) -> str:
    heads = [lead_label(float(card.hours[column])) for column in columns]
    lines = []
    for row in rows:
        level = card.quantities[row].level
        name = "surface" if level is None else f"{level:g} hPa"
        cells = "".join(
            _card_cell(float(card.percent[row, column]), bool(card.is_significant[row, column]))
            for column in columns
        )
        lines.append(f'<tr><th scope="row" class="name">{name}</th>{cells}</tr>')
    caption = f"{label[:1].upper()}{label[1:]}: RMSE against {card.other}, %"
    return _table(caption, "Level", heads, lines)


def _card_cell(percent: float, is_significant: bool) -> str:
    if not np.isfinite(percent):
        return '<td class="none">–</td>'
    place = int(np.searchsorted(BOUNDS, percent, side="right"))
    text = f"{percent:+.1f}".replace("-", "−")
    mark = SIGNIFICANT if is_significant else ""
    return f'<td class="k{place}"><data value="{percent!r}">{text}</data>{mark}</td>'


def card_style() -> str:
    """Style rules of the colour classes of `card_tables`."""
    rules = []
    for place, (colour, is_dark) in enumerate(class_colours()):
        ink = "#fff" if is_dark else "#111"
        rules.append(f".cards td.k{place} {{ background: {colour}; color: {ink}; }}")
    return "\n".join(rules) + "\n"
