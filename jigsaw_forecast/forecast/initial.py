"""Reads an initial state on all ranks of a model group, each piece of the file once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jigsaw_forecast.data.initial_state import InitialStatePlan
from jigsaw_forecast.data.records import Float32Array
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.exchange import assign_units, held_fields
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import Pieces, sample_pieces
from jigsaw_forecast.parallel.collectives import exchange
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.together import together
from jigsaw_forecast.state import State

# Fields that each rank decodes between two exchanges: buffers stay small against the state, and
# one slow message holds the others up little.
ROUND_FIELDS = 4


def read_initial_state(
    config: ModelConfig, mesh: Mesh, plan: InitialStatePlan | None, init_time: np.datetime64
) -> State | None:
    """This rank's piece of an initial state; diagnostics, which have no value yet, are NaN.

    The pieces of the file (GRIB messages, chunks) are shared among the ranks of the model group;
    each rank decodes, converts, checks and regrids whole maps, which are cut into bands and
    exchanged a few at a time.

    Args:
        config: The architecture.
        mesh: This rank's mesh.
        plan: Where the fields come from; None where this rank's group has no initial state to
            read while other groups of the data axis have.
        init_time: Start of the forecast.

    Returns:
        The state, None without a plan.

    Raises:
        DataError: Values are missing, not finite or implausible, or duplicates disagree; what
            any rank found, on every rank.

    Communication:
        Point to point within the model group: receives this rank's piece less what it decoded of
        it itself; then one gather of texts over all ranks.
    """
    state, failure = None, None
    if plan is not None:
        state, failure = _Exchange.of(config, mesh, plan).run(plan, init_time)
    together(mesh, lambda: _raise(failure))
    return state


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


@dataclass(frozen=True)
class _Exchange:
    """Who decodes what, and who needs which rows of it.

    Attributes:
        config: The architecture.
        mesh: This rank's mesh.
        decoded: Fields that each rank of the model group decodes, in order.
        pieces: What each rank of the model group holds.
    """

    config: ModelConfig
    mesh: Mesh
    decoded: Sequence[Sequence[Field]]
    pieces: Sequence[Pieces]

    @classmethod
    def of(cls, config: ModelConfig, mesh: Mesh, plan: InitialStatePlan) -> "_Exchange":
        fields, num_ranks = config.prognostic_fields, mesh.model.size
        owners = assign_units(plan.units(fields), num_ranks)
        decoded = [[f for f in fields if owners[f] == rank] for rank in range(num_ranks)]
        peers = [mesh.at(*divmod(rank, mesh.tensor.size)) for rank in range(num_ranks)]
        return cls(config, mesh, decoded, [sample_pieces(config, peer) for peer in peers])

    def run(
        self, plan: InitialStatePlan, init_time: np.datetime64
    ) -> tuple[State, Exception | None]:
        """The state, and what kept this rank from decoding its share.

        A rank that fails goes on exchanging, since the others wait for it.
        """
        own_index, device = self.mesh.model.index, self.mesh.device
        own = self.pieces[own_index]
        fields = held_fields(self.config, own)
        grid = self.config.grid_object
        num_rows = own.rows.stop - own.rows.start
        shape = (len(fields), num_rows, grid.num_lon)
        data = torch.full(shape, float("nan"), device=device)
        place = {field: index for index, field in enumerate(fields)}
        maps = _Maps(plan.maps(self.decoded[own_index]))
        most = max(len(share) for share in self.decoded)
        for first in range(0, most, ROUND_FIELDS):
            shares = [share[first : first + ROUND_FIELDS] for share in self.decoded]
            outgoing = self._cut(shares[own_index], maps, place, data)
            incoming = [[data[place[f]] for f in share if f in place] for share in shares]
            exchange(self.mesh, outgoing, incoming, "model")
        maps.finish()
        zero = np.timedelta64(0, "s")
        return State(data, fields, grid, init_time, zero, row_start=own.rows.start), maps.failure

    def _cut(
        self,
        share: Sequence[Field],
        maps: "_Maps",
        place: Mapping[Field, int],
        data: torch.Tensor,
    ) -> list[list[torch.Tensor]]:
        """The rows that each other rank needs of the next few maps, [Y_k, X] each.

        This rank's own go to their place in `data` at once.
        """
        own = self.mesh.model.index
        groups = [set(self.config.prognostic_fields[piece.fields]) for piece in self.pieces]
        parts: list[list[torch.Tensor]] = [[] for _ in self.pieces]
        for field, values in zip(share, itertools.islice(maps, len(share)), strict=True):
            for rank, (group, piece) in enumerate(zip(groups, self.pieces, strict=True)):
                if field not in group:
                    continue
                rows = self._rows_of(values, piece)
                if rank == own:
                    data[place[field]] = rows
                else:
                    parts[rank].append(rows.to(data.device))
        return parts

    def _rows_of(self, values: Float32Array | None, piece: Pieces) -> torch.Tensor:
        """A band of a map, which shares its memory where it can; of one that failed, anything."""
        if values is None:
            num_rows = piece.rows.stop - piece.rows.start
            return torch.empty(num_rows, self.config.grid_object.num_lon)
        rows = np.ascontiguousarray(values[piece.rows])
        return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


class _Maps:
    """Maps in order; once decoding fails, nothing but None."""

    def __init__(self, maps: Iterator[Float32Array | None]) -> None:
        self._maps = maps
        self.failure: Exception | None = None

    def __iter__(self) -> "_Maps":
        return self

    def __next__(self) -> Float32Array | None:
        if self.failure is not None:
            return None
        try:
            return next(self._maps)
        except ForecastError as error:
            self.failure = error
            return None

    def finish(self) -> None:
        """Lets the plan say what was wrong with the maps that it gave."""
        if self.failure is None:
            try:
                next(self._maps, None)
            except ForecastError as error:
                self.failure = error
