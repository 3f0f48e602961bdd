"""Sums whose rounding does not depend on the order of their terms."""

from types import EllipsisType

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.compiled import compiled

Array64 = npt.NDArray[np.float64]


class ExactSum:
    """A sum of arrays carried as two float64, so that pieces in any order give equal results.

    The unrounded error is about 2^-104 of the sum of magnitudes, so what is read off is the
    correctly rounded sum but for ties of vanishing probability.

    Source: Knuth's two-sum; Ogita, Rump, Oishi (2005), https://doi.org/10.1137/030601818.

    Attributes:
        high: The sum, shape as given.
        low: What rounding left out of it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Zero, of at least two dims."""
        self.high: Array64 = np.zeros(shape)
        self.low: Array64 = np.zeros(shape)

    def add(
        self, term: Array64, low: Array64 | None = None, place: int | EllipsisType = ...
    ) -> None:
        """Adds a term.

        Args:
            term: Of the shape of `high[place]`.
            low: Its own rounding error, where it is a sum itself.
            place: Which part of the sum it belongs to, an index.
        """
        sums = (self.high[place], self.low[place])
        assert term.shape == sums[0].shape, "of the shape of the sum"
        terms = (term, np.zeros(0) if low is None else low)
        _add(*(np.require(one, np.float64, ["C", "W"]).reshape(-1) for one in (*sums, *terms)))

    @property
    def value(self) -> Array64:
        """The rounded sum."""
        return self.high + self.low


@compiled
def _add(high: Array64, low: Array64, term: Array64, term_low: Array64) -> None:
    """Adds to both parts of a sum in place, all flat; `term_low` may be empty."""
    has_low = term_low.size > 0
    for index in range(high.size):
        before, more = high[index], term[index]
        total = before + more
        virtual = total - before
        error = (before - (total - virtual)) + (more - virtual)
        if has_low:
            error = error + term_low[index]
        # renormalised, so that high stays the rounded sum
        error = error + low[index]
        renewed = total + error
        low[index] = error - (renewed - total)
        high[index] = renewed
