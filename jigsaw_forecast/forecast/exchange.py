"""From whole maps to bands and back: how initial conditions and output cross the mesh."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.poles import south_pole_row
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import Pieces, sample_pieces
from jigsaw_forecast.parallel.collectives import exchange
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.state import State


def held_fields(config: ModelConfig, pieces: Pieces) -> tuple[Field, ...]:
    """The fields that a rank with these pieces holds: prognostic, then diagnostic."""
    prognostic = config.prognostic_fields[pieces.fields]
    return (*prognostic, *config.diagnostic_fields[pieces.diagnostics])


def assign_units(units: Sequence[tuple[Field, ...]], num_ranks: int) -> dict[Field, int]:
    """The rank that writes each field: units stay together, the next one to the idlest rank."""
    load = [0] * num_ranks
    owners = {}
    for unit in sorted(units, key=len, reverse=True):
        rank = load.index(min(load))
        load[rank] += len(unit)
        owners.update(dict.fromkeys(unit, rank))
    return owners


@dataclass(frozen=True)
class Bands:
    """The fields that this rank writes, in the bands in which the ranks of its group sent them.

    Attributes:
        fields: In the order of the maps.
        parts: Of each band: the fields that its rank held, its rows, the values [F, rows, X].
        grid: The whole grid.
        init_time: Start of the forecast, UTC.
        lead_time: Time since the start.
    """

    fields: tuple[Field, ...]
    parts: tuple[tuple[tuple[Field, ...], slice, torch.Tensor], ...]
    grid: Grid
    init_time: np.datetime64
    lead_time: np.timedelta64

    def join(self, out: torch.Tensor | None = None) -> State:
        """The whole maps, pole row included: a whole-globe state of these fields.

        Args:
            out: Takes the maps, shape `shape`; new memory without it.
        """
        if out is None:
            out = self.parts[0][2].new_empty(self.shape)
        place = {field: index for index, field in enumerate(self.fields)}
        is_on_host = out.device.type == "cpu"
        # numpy copies with one thread: the model computes on the others
        whole = out.numpy() if is_on_host else out
        for names, rows, values in self.parts:
            for name, band in zip(names, values.numpy() if is_on_host else values, strict=True):
                whole[place[name], rows] = band
        if self.grid.drops_south_pole:
            out[:, -1] = south_pole_row(out[:, -2], self.fields)
        return State(out, self.fields, self.grid, self.init_time, self.lead_time)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the whole maps, [F, Y, X]."""
        return len(self.fields), self.grid.num_lat, self.grid.num_lon


def exchange_bands(
    config: ModelConfig, mesh: Mesh, state: State, owners: Mapping[Field, int]
) -> Bands:
    """Sends every rank of the model group its fields; on one rank nothing is copied.

    Args:
        config: The architecture.
        mesh: This rank's mesh.
        state: This rank's piece.
        owners: The rank of the model group that writes each field; fields left out go nowhere.

    Communication:
        Point to point within the model group.
    """
    group_size = mesh.model.size
    peers = [mesh.at(*divmod(rank, mesh.tensor.size)) for rank in range(group_size)]
    own, num_lon = mesh.model.index, config.grid_object.num_lon
    outgoing: list[list[torch.Tensor]] = [[] for _ in peers]
    for field, values in zip(state.fields, state.data, strict=True):
        if field in owners:
            outgoing[owners[field]].append(values)
    parts = []
    for rank, peer in enumerate(peers):
        piece = sample_pieces(config, peer)
        held = held_fields(config, piece)
        is_sent = [owners.get(field) == own for field in held]
        names = tuple(itertools.compress(held, is_sent))
        if rank == own:
            values = _choose(state.data, is_sent)
        else:
            num_rows = piece.rows.stop - piece.rows.start
            values = state.data.new_empty((len(names), num_rows, num_lon))
        parts.append((names, piece.rows, values))
    exchange(mesh, outgoing, [list(values) for _, _, values in parts], "model")
    fields = tuple(field for field in owners if owners[field] == own)
    return Bands(fields, tuple(parts), state.grid, state.init_time, state.lead_time)


def _choose(data: torch.Tensor, is_chosen: Sequence[bool]) -> torch.Tensor:
    """Some maps of a tensor, without a copy where all are chosen."""
    if all(is_chosen):
        return data
    return data[[index for index, chosen in enumerate(is_chosen) if chosen]]
