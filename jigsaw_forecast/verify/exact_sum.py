"""Sums whose rounding does not depend on the order of their terms."""

from types import EllipsisType

import numpy as np
import numpy.typing as npt

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
        """Zero."""
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
        index = place
        before = self.high[index]
        total = before + term
        virtual = total - before
        error = (before - (total - virtual)) + (term - virtual)
        if low is not None:
            error = error + low
        # renormalised, so that high stays the rounded sum
        error = error + self.low[index]
        high = total + error
        self.low[index] = error - (high - total)
        self.high[index] = high

    @property
    def value(self) -> Array64:
        """The rounded sum."""
        return self.high + self.low
