"""What the ranks run to read an initial state, and the files they read."""

from pathlib import Path

import numpy as np

from jigsaw_forecast.data.initial_state import plan_initial_state
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.fields import Field, plausible_range
from jigsaw_forecast.forecast.initial import read_initial_state
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import together

INIT = np.datetime64("2026-06-24T00", "s")
CONFIG = ModelConfig(
    grid="48x13",
    fields=("z500", "t850", "q850", "u850", "v850", "2t", "msl"),
    diagnostics=("tp",),
    forcings=("sin_year",),
    patch=(1, 4),
    overlap=1,
    channels=48,
    token_hidden=24,
    channel_hidden=48,
    num_blocks=1,
)

Piece = tuple[int, list[str], np.ndarray, list[int]]


def read_piece(mesh: Mesh, path: str, regrid: bool = False) -> Piece:
    """First row, fields and values of this rank's piece, and the messages that it decoded."""
    source = open_source(Path(path))
    decoded: list[int] = []
    decode = source._decode

    def count(message: bytes, record, dtype=np.float32):
        decoded.append(record.message)
        return decode(message, record, dtype)

    source._decode = count
    plan = plan_initial_state(
        source,
        CONFIG.prognostic_fields,
        CONFIG.grid_object,
        INIT,
        regrid=regrid,
        plausible={field: plausible_range(field) for field in CONFIG.prognostic_fields},
    )
    state = read_initial_state(CONFIG, mesh, plan, INIT)
    assert state is not None
    return state.row_start, [str(field) for field in state.fields], state.data.numpy(), decoded


def refusal(mesh: Mesh, path: str) -> str:
    """The message with which this rank refuses an input, empty where it does not."""
    try:
        plan = together(
            mesh,
            lambda: plan_initial_state(
                open_source(Path(path)),
                CONFIG.prognostic_fields,
                CONFIG.grid_object,
                INIT,
                regrid=False,
                plausible={field: plausible_range(field) for field in CONFIG.prognostic_fields},
            ),
        )
        read_initial_state(CONFIG, mesh, plan, INIT)
    except ForecastError as error:
        return str(error)
    return ""


def idle_piece(mesh: Mesh, path: str) -> bool:
    """Whether a replica without an initial time takes part and gets nothing."""
    if mesh.data.index == 0:
        return read_piece_of(mesh, path) is not None
    return read_initial_state(CONFIG, mesh, None, INIT) is None


def read_piece_of(mesh: Mesh, path: str) -> Piece:
    return read_piece(mesh, path)


def field_named(name: str) -> Field:
    """The field of a short name."""
    return next(field for field in CONFIG.prognostic_fields if str(field) == name)
