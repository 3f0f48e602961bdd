"""What scoring a part of the initial times gives: additive, mergeable, stored without pickle."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.exact_sum import ExactSum
from jigsaw_forecast.verify.kernels import ANOMALIES, DRY_THRESHOLDS_M, ENSEMBLE, ERRORS
from jigsaw_forecast.verify.memory import sum_bytes
from jigsaw_forecast.verify.request import ModelPlan, ScorePlan

Array64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

COUNT = "count"
SUM_BYTES = 96 << 20  # of the bias maps and spectra of a unit, unless one variable has more
TRUTH = "truth"  # its place among the models of the spectra


def statistic_names(plan: ScorePlan, model: ModelPlan) -> tuple[str, ...]:
    """Statistics of a model, in the order in which they are stored."""
    names = list(ERRORS)
    if plan.with_acc:
        names += ANOMALIES
    names += [DRY_THRESHOLDS_M[variable][0] for variable in plan.with_seeps]
    if model.num_members:
        names += ENSEMBLE
    return (*names, COUNT)


@dataclass
class Piece:
    """Statistics of some initial times and variables.

    Attributes:
        inits: Places on the plan's initial times.
        statistics: By model and variable, spatial means, shape [S, inits, R, L, Z].
        maps: By model and variable, sums of errors at a few lead times, shape [l, Y, X].
        map_counts: Terms of these sums, shape [l].
        spectra: By model (or `truth`) and variable, sums of spectra, shape [l, Z, Y, K].
        spectra_counts: Terms of these sums, shape [l].
        ranks: By model and variable, counts of the truth's rank, shape [L, Z, M + 1].
    """

    inits: tuple[int, ...]
    statistics: dict[tuple[str, str], Array64] = field(default_factory=dict)
    maps: dict[tuple[str, str], ExactSum] = field(default_factory=dict)
    map_counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    spectra: dict[tuple[str, str], ExactSum] = field(default_factory=dict)
    spectra_counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    ranks: dict[tuple[str, str], Counts] = field(default_factory=dict)

    def save(self, path: Path, digest: str) -> None:
        """Writes it whole or not at all.

        Args:
            path: File to write.
            digest: Of the plan that it belongs to.
        """
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with partial.open("wb") as file:
            self.write(file, digest)
        os.replace(partial, path)

    def write(self, file: BinaryIO, digest: str) -> None:
        """Writes it into an open file.

        Args:
            file: File to write.
            digest: Of the plan that it belongs to.
        """
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "digest": np.array(digest),
            "inits": np.array(self.inits, dtype=np.int64),
        }
        for kind in ("statistics", "map_counts", "spectra_counts", "ranks"):
            arrays |= {_key(kind, *key): value for key, value in getattr(self, kind).items()}
        for kind in ("maps", "spectra"):
            for key, total in getattr(self, kind).items():
                arrays[_key(f"{kind}_high", *key)] = total.high
                arrays[_key(f"{kind}_low", *key)] = total.low
        np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, source: Path | BinaryIO, digest: str) -> "Piece | None":
        """Reads one back; None where it is of another plan or cut off."""
        try:
            with np.load(source, allow_pickle=False) as stored:
                if str(stored["digest"]) != digest:
                    return None
                return cls._from(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    @classmethod
    def _from(cls, stored: "np.lib.npyio.NpzFile") -> "Piece":
        piece = cls(tuple(int(i) for i in stored["inits"]))
        for name in stored.files:
            kind, _, rest = name.partition("|")
            model, _, variable = rest.partition("|")
            key = (model, variable)
            if kind in ("statistics", "map_counts", "spectra_counts", "ranks"):
                getattr(piece, kind)[key] = stored[name]
            elif kind.endswith("_high"):
                high, low = stored[name], stored[_key(f"{kind[:-5]}_low", *key)]
                total = ExactSum(high.shape)
                total.high, total.low = high, low
                getattr(piece, kind[:-5])[key] = total
        return piece

    def add_sums(self, other: "Piece") -> None:
        """Adds the maps, spectra and ranks of other initial times, not the statistics."""
        for kind in ("maps", "spectra"):
            own, more = getattr(self, kind), getattr(other, kind)
            for key, total in more.items():
                if key in own:
                    own[key].add(total.high, total.low)
                else:
                    own[key] = total
        for kind in ("map_counts", "spectra_counts", "ranks"):
            own, more = getattr(self, kind), getattr(other, kind)
            for key, count in more.items():
                own[key] = own[key] + count if key in own else count


def add_term(
    sums: dict[tuple[str, str], ExactSum],
    counts: dict[tuple[str, str], Counts],
    key: tuple[str, str],
    at: tuple[int, int],
    term: Array64,
) -> None:
    """Adds a term to a piece's maps or spectra, which are made where there are none.

    Args:
        sums: `maps` or `spectra` of a piece.
        counts: Their counts.
        key: Model and variable.
        at: Place of the lead time, and the number of lead times.
        term: Shape of the sum without the lead times.
    """
    place, size = at
    if key not in sums:
        sums[key] = ExactSum((size, *term.shape))
        counts[key] = np.zeros(size, dtype=np.int64)
    sums[key].add(term, place=place)
    counts[key][place] += 1


@dataclass(frozen=True)
class Unit:
    """A part of the work: some variables from some initial times.

    Attributes:
        variables: Names.
        inits: Places on the plan's initial times.
    """

    variables: tuple[str, ...]
    inits: tuple[int, ...]

    @property
    def name(self) -> str:
        """Names the file of its piece."""
        return f"{'+'.join(self.variables)}_{self.inits[0]:05d}-{self.inits[-1]:05d}"


def split_work(plan: ScorePlan, unit_bytes: int, num_workers: int) -> list[Unit]:
    """Units of about this many bytes of forecasts, one variable each, at least one per worker."""
    rows, columns = plan.latitudes.size, plan.longitudes.size
    models = sum(max(1, m.num_members) for m in plan.models if m.paths) or 1
    per_init = {
        name: rows * columns * 4 * max(1, len(levels)) * plan.lead_times.size * models
        for name, levels in plan.levels.items()
    }
    count = plan.init_times.size
    groups: list[list[str]] = []
    size = 0
    for name, one in per_init.items():
        # small variables go together, so that units are few
        is_small = (size + one) * count <= unit_bytes
        if groups and is_small and sum_bytes(plan, [*groups[-1], name]) <= SUM_BYTES:
            groups[-1].append(name)
            size += one
        else:
            groups.append([name])
            size = one
    units = []
    for group in groups:
        total = sum(per_init[name] for name in group) * count
        parts = max(-(-total // unit_bytes), num_workers if len(groups) == 1 else 1)
        bounds = np.linspace(0, count, min(count, int(parts)) + 1).astype(int)
        units += [
            Unit(tuple(group), tuple(range(a, b))) for a, b in pairwise(bounds.tolist()) if b > a
        ]
    return units


def _key(kind: str, model: str, variable: str) -> str:
    return f"{kind}|{model}|{variable}"


def check_pieces(pieces: Iterable[Piece | None], names: Sequence[str]) -> None:
    """Refuses pieces that are not there.

    Raises:
        DataError: Some are missing; all are listed.
    """
    lacking = [name for piece, name in zip(pieces, names, strict=True) if piece is None]
    if lacking:
        raise DataError(f"missing pieces of the score: {', '.join(lacking)}; add --resume")
