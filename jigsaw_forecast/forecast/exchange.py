"""From whole maps to bands and back: how initial conditions and output cross the mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.poles import south_pole_row
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import Pieces, sample_pieces
from jigsaw_forecast.parallel.collectives import all_to_all
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


def bands_to_maps(
    config: ModelConfig, mesh: Mesh, state: State, owners: Mapping[Field, int]
) -> State:
    """The whole maps of the fields that this rank writes, pole row included.

    Args:
        config: The architecture.
        mesh: This rank's mesh.
        state: This rank's piece.
        owners: The rank of the model group that writes each field; fields left out go nowhere.

    Returns:
        A whole-globe state of the fields owned by this rank, possibly none.

    Communication:
        One all-to-all over the model group.
    """
    group_size = mesh.model.size
    peers = [mesh.at(*divmod(rank, mesh.tensor.size)) for rank in range(group_size)]
    outgoing = [
        _choose(state.data, [owners.get(field) == rank for field in state.fields])
        for rank in range(group_size)
    ]
    pieces = [sample_pieces(config, peer) for peer in peers]
    incoming_fields = [
        [field for field in held_fields(config, piece) if owners.get(field) == mesh.model.index]
        for piece in pieces
    ]
    num_lon = config.grid_object.num_lon
    shapes = [
        (len(fields), piece.rows.stop - piece.rows.start, num_lon)
        for fields, piece in zip(incoming_fields, pieces, strict=True)
    ]
    incoming = all_to_all(mesh, outgoing, shapes, "model")
    fields = tuple(field for field in owners if owners[field] == mesh.model.index)
    place = {field: index for index, field in enumerate(fields)}
    num_lat = config.grid_object.num_lat
    maps = state.data.new_empty((len(fields), num_lat, num_lon))
    for names, piece, values in zip(incoming_fields, pieces, incoming, strict=True):
        for name, band in zip(names, values, strict=True):
            maps[place[name], piece.rows] = band
    if config.grid_object.drops_south_pole:
        maps[:, -1] = south_pole_row(maps[:, -2], fields)
    return replace(state, data=maps, fields=fields, row_start=0)


def _choose(data: torch.Tensor, is_chosen: Sequence[bool]) -> torch.Tensor:
    """Some maps of a tensor, without a copy where all are chosen."""
    if all(is_chosen):
        return data
    return data[[index for index, chosen in enumerate(is_chosen) if chosen]]
