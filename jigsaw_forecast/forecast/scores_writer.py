"""Scores as a product of a run: made on the ranks as lead times come, whole or not there at all.

`NAME.scores` is what `jigsaw-forecast score` writes into its `--output`. While it grows,
`NAME.scores.partial/lead-times` holds one file of statistics for each lead time that is done, so
that a run that was stopped goes on as it does with its other products. When the scores are made of
them they wait in `.NAME.scores.lead-times` until these have their name.
"""

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from jigsaw_forecast.errors import DataError, OutputError
from jigsaw_forecast.fields import VARIABLES
from jigsaw_forecast.forecast.product import (
    Maps,
    Mark,
    OutputSpec,
    Payload,
    Product,
    Slot,
    Unit,
    Writer,
)
from jigsaw_forecast.forecast.staging import (
    PARTIAL_SUFFIX,
    remove,
    remove_if_possible,
    reported,
)
from jigsaw_forecast.state import State
from jigsaw_forecast.verify.archive import ArchiveGrid, ArchiveVariable
from jigsaw_forecast.verify.online import MadeMaps, OnlineScorer, join_pieces
from jigsaw_forecast.verify.pieces import Piece
from jigsaw_forecast.verify.plan_file import digest_of
from jigsaw_forecast.verify.request import ScoreRequest
from jigsaw_forecast.verify.score import write_scores

_FOLDER = "lead-times"
_OFFLINE_OPTIONS = ("--resolution", "--levels", "--force")  # that messages of a score name

_log = logging.getLogger(__name__)


class ScoresWriter(Writer):
    """Writes the scores of a forecast against `OutputSpec.scoring`, never its fields.

    Each rank scores whole variables; the creator keeps the statistics of each lead time in a file
    and turns all of them into tables, maps, spectra and the report in the end.
    """

    def _open(self) -> None:
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self._scorer = open_scorer(self.path, self.spec)
        self._digest = digest_of(self._scorer.plan)
        self._checksums: dict[Slot, int] = {}
        if self.is_creator:
            with reported(self.path):
                (self._partial / _FOLDER).mkdir(parents=True, exist_ok=True)

    @classmethod
    def side_paths(cls, path: Path) -> tuple[Path, ...]:
        """See `Writer.side_paths`: the statistics of scores that have no name yet."""
        return (_waiting_path(path),)

    @classmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """See `Writer.recover`: the checksum of every file that is marked is computed again."""
        waiting = _waiting_path(partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX)))
        if waiting.exists():  # of a run that died before its scores had their name
            remove(partial / _FOLDER)
            os.replace(waiting, partial / _FOLDER)
        whole: list[Slot] = []
        for slot, mark in marks.items():
            try:
                content = (partial / _FOLDER / _name(slot)).read_bytes()
            except FileNotFoundError:
                break
            if google_crc32c.value(content) != mark.get("crc32c"):
                break
            whole.append(slot)
        return whole

    @classmethod
    def units_of(cls, spec: OutputSpec) -> list[Unit]:
        """All levels of a variable together, as truth stores hold them in one chunk."""
        return [
            tuple(field for field in spec.fields if field.variable == variable)
            for variable in spec.variables
        ]

    def _encode(self, states: State, maps: Maps, slot: Slot) -> Payload:
        payload: Payload = []
        held = {field: maps[index] for index, field in enumerate(states.fields)}
        for unit in self.units():
            if unit[0] not in held:
                continue
            levels = sorted(unit, key=lambda field: field.level_hpa)
            together = np.stack([held[field] for field in levels])
            piece = self._scorer.score(unit[0].variable, slot.init_time, slot.lead_time, together)
            if piece is not None:
                file = io.BytesIO()
                piece.write(file, self._digest)
                payload.append((self.spec.fields.index(unit[0]), file.getvalue()))
        return payload

    def _append(self, slot: Slot, payload: Payload) -> None:
        """Puts the variables of a lead time into one file."""
        together = Piece((0,))
        for _, content in payload:
            piece = Piece.load(io.BytesIO(content), self._digest)
            if piece is None:
                raise OutputError(f"{self.path}: the ranks score by different plans")
            together.statistics |= piece.statistics
            together.add_sums(piece)
        path = self._partial / _FOLDER / _name(slot)
        with reported(self.path):
            together.save(path, self._digest)
            content = path.read_bytes()
        self._checksums[slot] = google_crc32c.value(content)
        self.bytes_written += len(content)

    def _mark(self, slot: Slot) -> Mark:
        with reported(self.path), (self._partial / _FOLDER / _name(slot)).open("rb") as file:
            os.fsync(file.fileno())
        return {"crc32c": self._checksums[slot]}

    def _seal(self) -> None:
        pieces = []
        for slot in self.spec.slots:
            piece = Piece.load(self._partial / _FOLDER / _name(slot), self._digest)
            if piece is None:
                raise OutputError(
                    f"{self._partial}: the statistics of {slot} are damaged or of another truth; "
                    "add --overwrite without --resume to start afresh"
                )
            pieces.append((slot.init_time, slot.lead_time, piece))
        plan = self._scorer.plan
        with reported(self.path, RuntimeError):
            write_scores(self._partial, plan, join_pieces(plan, pieces), overwrite=True)
            remove(_waiting_path(self.path))
            os.replace(self._partial / _FOLDER, _waiting_path(self.path))

    def publish(self) -> None:
        """See `Writer.publish`."""
        super().publish()
        if self.is_creator:
            remove_if_possible(_waiting_path(self.path))

    def _close(self) -> None:
        """Nothing is held open."""


def plan_scores(product: Product, spec: OutputSpec) -> str:
    """Plans the scores of a product, before anything is made; the digest of the plan.

    Args:
        product: Of scores.
        spec: What the run writes, with all of its times.

    Raises:
        DataError: See `open_scorer`.
    """
    plan = open_scorer(product.path, spec.narrowed(product)).plan
    for warning in plan.warnings:
        _log.info("%s: %s", product.path, warning)
    return digest_of(plan)


def open_scorer(path: Path, spec: OutputSpec) -> OnlineScorer:
    """Opens truth and climatology and plans the scores of what a run makes.

    Args:
        path: Of the scores.
        spec: What is made, with the times of this product only.

    Raises:
        DataError: The files lack something or do not go with the forecast; all of it.
    """
    scoring = spec.scoring
    assert scoring is not None, "refused by `output.check_scoring`"
    request = ScoreRequest(
        forecast=(Path(scoring.name),),
        truth=(scoring.truth,),
        output=path,
        climatology=scoring.climatology,
        allow_missing=scoring.allows_missing,
    )
    grid = ArchiveGrid(spec.grid.latitudes, spec.grid.longitudes)
    inits = np.array(sorted(spec.init_times), dtype="datetime64[s]")
    leads = np.array(sorted(spec.lead_times), dtype="timedelta64[s]")
    variables = {
        name: ArchiveVariable(
            name,
            tuple(
                sorted(
                    float(field.level_hpa)
                    for field in spec.fields
                    if field.variable == name and field.level_hpa
                )
            ),
            VARIABLES[name].units,
            inits,
            leads,
            np.ones((inits.size, leads.size), dtype=bool),
        )
        for name in spec.variables
    }
    made = MadeMaps(request.forecast[0], grid, variables, spec.attributes)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        return OnlineScorer(request, made, num_processes)
    except DataError as error:
        text = f"--truth: {error}"
        if named := [option for option in _OFFLINE_OPTIONS if option in text]:
            text += f" ({' and '.join(named)}: of `jigsaw-forecast score`, for the product)"
        raise DataError(text) from None


def _waiting_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_FOLDER}")


def _name(slot: Slot) -> str:
    text = str(slot.init_time).replace("-", "").replace(":", "")
    return f"{text}-{slot.lead_hours:04d}.npz"
