"""The first lines of the report: how long the forecast is of use, and against whom it wins."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.report.draw_curves import USEFUL_ACC
from jigsaw_forecast.verify.report.draw_scorecard import Card
from jigsaw_forecast.verify.report.page import escape
from jigsaw_forecast.verify.report.quantities import Quantity
from jigsaw_forecast.verify.report.read import Scoring

FloatArray = npt.NDArray[np.float64]

EQUAL_PERCENT = 2.0  # the scorecard's middle class


def crossing_hours(hours: FloatArray, values: FloatArray, limit: FloatArray) -> float | None:
    """Lead time up to which values are above a limit, linear between lead times.

    Args:
        hours: Lead times, ascending, shape [n].
        values: Shape [n], NaN where absent.
        limit: Shape [n], NaN where absent.

    Returns:
        Hours; infinity where the values stay above to the end, None where they begin below or
        there are none.
    """
    margin = values - limit
    is_there = np.isfinite(margin)
    hours, margin = hours[is_there], margin[is_there]
    if not margin.size or margin[0] <= 0.0:
        return None
    below = np.flatnonzero(margin <= 0.0)
    if not below.size:
        return float("inf")
    end = int(below[0])
    share = margin[end - 1] / (margin[end - 1] - margin[end])
    return float(hours[end - 1] + share * (hours[end] - hours[end - 1]))


def summary(scoring: Scoring, quantities: Sequence[Quantity], cards: Sequence[Card]) -> str:
    """A list of sentences as HTML, empty where nothing can be said."""
    lines = _use(scoring, quantities) + [_tally(card) for card in cards]
    lines = [line for line in lines if line]
    if not lines:
        return ""
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def _use(scoring: Scoring, quantities: Sequence[Quantity]) -> list[str]:
    hours, region = scoring.hours, scoring.region
    lines = []
    for quantity in quantities[:1]:
        for metric in ("acc", "acc_pooled"):
            acc = scoring.main.values(quantity, metric, region, hours)
            if np.isfinite(acc).any():
                until = crossing_hours(hours, acc, np.full(hours.shape, USEFUL_ACC))
                words = _until(until, hours)
                lines.append(f"ACC of {quantity.label} is above {USEFUL_ACC} {words}.")
                break
    for model in scoring.others:
        if not model.is_baseline:
            continue
        said: dict[str, list[str]] = {}
        for quantity in quantities:
            main = scoring.main.values(quantity, "rmse", region, hours)
            other = model.values(quantity, "rmse", region, hours)
            # at lead time zero persistence has no error
            main, other = main[hours > 0], other[hours > 0]
            if np.isfinite(main - other).any():
                until = crossing_hours(hours[hours > 0], other, main)
                said.setdefault(_until(until, hours), []).append(quantity.short)
        if said:
            words = "; ".join(f"{', '.join(names)} {until}" for until, names in said.items())
            lines.append(f"RMSE is below that of {model.title}: {words}.")
    return lines


def _until(until: float | None, hours: FloatArray) -> str:
    if until is None:
        return "at no lead time"
    if until == float("inf"):
        return f"until the end ({hours.max() / 24:.3g} d)"
    return f"until {until / 24:.1f} d"


def _tally(card: Card) -> str:
    """How many cells of a card are better and worse, and how many of them significantly."""
    number = int(np.isfinite(card.percent).sum())
    if not number:
        return ""
    with np.errstate(invalid="ignore"):
        better, worse = card.percent < -EQUAL_PERCENT, card.percent > EQUAL_PERCENT
    words = (
        f"Against {card.other}: RMSE better by more than {EQUAL_PERCENT:g} % in "
        f"{int(better.sum())} of {number} cells (quantity and lead time), worse in "
        f"{int(worse.sum())}"
    )
    if not card.is_tested.any():
        return f"{words}; not tested for significance."
    lower, higher = card.percent < 0.0, card.percent > 0.0
    return (
        f"{words}; significantly lower in {int((card.is_significant & lower).sum())}, "
        f"significantly higher in {int((card.is_significant & higher).sum())}."
    )
