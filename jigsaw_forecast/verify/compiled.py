"""Loops over points that numpy cannot fuse, compiled to machine code at their first call."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def compiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function compiled; what is compiled is kept on disk where there is a place to write.

    No fast-math: sums keep the order in which they are written, and missing values stay missing.
    """
    try:
        made = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        made = numba.njit(nogil=True)(function)
    return cast(Callable[_Arguments, _Result], made)
