"""Gets initial conditions: a path, a template of paths, or a remote source into the cache.

Everything remote is fetched by a child process (`data.fetch`) that can be killed, within a
deadline, and lands in the cache whole and checked or not at all.
"""

from jigsaw_forecast.data.acquisition.latest import needs_latest, resolve_latest
from jigsaw_forecast.data.acquisition.request import InputRequest
from jigsaw_forecast.data.acquisition.resolve import (
    InputFile,
    ResolvedInput,
    local_paths,
    resolve_input,
)

__all__ = [
    "InputFile",
    "InputRequest",
    "ResolvedInput",
    "local_paths",
    "needs_latest",
    "resolve_input",
    "resolve_latest",
]
