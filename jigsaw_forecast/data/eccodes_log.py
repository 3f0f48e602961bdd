"""Keeps eccodes from writing to stderr: its faults are raised, and told once, by whoever asked."""

import os
from functools import lru_cache
from typing import TextIO

from gribapi.bindings import lib


@lru_cache(maxsize=1)
def silence_eccodes() -> TextIO:
    """Sends what eccodes logs to nowhere, from the first call on; returns where it goes.

    The library has no level of logging, and its Python interface no word for this.
    """
    sink = open(os.devnull, "w")  # noqa: SIM115  eccodes writes into it until the process ends
    lib.grib_context_set_logging_file(lib.grib_context_get_default(), sink)
    return sink
