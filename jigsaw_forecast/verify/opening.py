"""Opens what the score reads: one file or store, or several that make one archive."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jigsaw_forecast.data.grib_messages import is_html
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.verify.archive import (
    AnyMaps,
    Archive,
    ArchiveGrid,
    ArchiveVariable,
    Mask,
)
from jigsaw_forecast.verify.array_archive import ArrayArchive
from jigsaw_forecast.verify.grib_archive import GribArchive

_log = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"  # of a product until all of its lead times are written
_HEAD_BYTES = 1024
_NETCDF_MAGICS = (b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02", b"CDF\x05")
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
_IGNORED_SUFFIXES = (".idx", ".md", ".txt", ".json", ".html", ".lock", ".tmp")


def open_archive(paths: Sequence[Path]) -> Archive:
    """The archive in one file, one store, one folder of them, or several.

    Raises:
        DataError: Something is missing, unreadable, unfinished or on another grid; all listed.
    """
    files: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            files += _files_in(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    opened: list[Archive] = []
    refused: list[str] = []
    for file in files:
        try:
            opened.append(_open_one(file))
        except DataError as error:
            refused.append(str(error))
    is_folder = len(files) > len(paths)
    if refused and not (is_folder and opened):
        raise DataError("\n".join(refused))
    for reason in refused:
        _log.warning("left out: %s", reason)
    if len(opened) == 1:
        return opened[0]
    return ManyArchives(paths[0], opened)


def _files_in(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or what its folder holds."""
    if not path.exists():
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        if partial.exists():
            raise DataError(
                f"missing {path}: the run that makes it is not finished or has died; "
                f"{partial} is what it has written so far; go on with `run --resume`"
            )
        raise DataError(f"missing {path}: there is nothing under this name")
    if path.name.endswith(PARTIAL_SUFFIX):
        raise DataError(
            f"{path} is not complete: its run is still writing it or has died; expected "
            f"{path.name.removesuffix(PARTIAL_SUFFIX)}; go on with `run --resume`"
        )
    if not path.is_dir() or any((path / name).exists() for name in _ZARR_FILES):
        return [path]
    files = sorted(
        one
        for one in path.iterdir()
        if not one.name.startswith(".")
        and one.suffix not in _IGNORED_SUFFIXES
        and not one.name.endswith(PARTIAL_SUFFIX)
        and (one.is_file() or any((one / name).exists() for name in _ZARR_FILES))
    )
    if not files:
        raise DataError(f"{path} is a folder without a store or file: missing data")
    return files


def _open_one(path: Path) -> Archive:
    if path.is_dir():
        return ArrayArchive(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as fault:
        raise DataError(f"cannot read {path}: {fault.strerror or fault}") from None
    if head.startswith(_NETCDF_MAGICS):
        return ArrayArchive(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); fetch it again")
    if is_html(head):
        raise DataError(f"{path} is an HTML page, not data: a download that failed; fetch it again")
    if b"GRIB" not in head:
        raise DataError(f"{path} is neither GRIB, netCDF nor zarr: it starts with {head[:16]!r}")
    return GribArchive(path)


class ManyArchives:
    """Several archives on one grid as one; a map is taken from the first that has it."""

    def __init__(self, path: Path, parts: Sequence[Archive]) -> None:
        """Joins them.

        Raises:
            DataError: Their grids, members or levels differ.
        """
        self.path = path
        self._parts = tuple(parts)
        self.grid: ArchiveGrid = parts[0].grid
        self.members = parts[0].members
        self.attributes: Mapping[str, str] = parts[0].attributes
        self.skipped: Mapping[str, str] = {k: v for part in parts for k, v in part.skipped.items()}
        problems = [
            f"{part.path} is on {part.grid}, {parts[0].path} on {self.grid}"
            for part in parts
            if not part.grid.is_close(self.grid)
        ]
        problems += [
            f"{part.path} has members {part.members}, {parts[0].path} {self.members}"
            for part in parts
            if part.members != self.members
        ]
        if problems:
            raise DataError("files that do not go together: " + "; ".join(problems))
        self._places: dict[str, dict[tuple[int, int], tuple[int, int, int]]] = {}
        names = dict.fromkeys(name for part in parts for name in part.variables)
        self.variables = {name: self._join(name) for name in names}

    def _join(self, name: str) -> ArchiveVariable:
        holding = [(i, p.variables[name]) for i, p in enumerate(self._parts) if name in p.variables]
        first = holding[0][1]
        # levels that only some of the files have show as NaN in the others
        levels = tuple(sorted({level for _, one in holding for level in one.levels}))
        units = sorted({one.units for _, one in holding})
        if len(units) > 1:
            raise DataError(f"{self.path}: units of {name} differ between files: {units}")
        inits = np.unique(np.concatenate([one.init_times for _, one in holding]))
        leads = np.unique(np.concatenate([one.lead_times for _, one in holding]))
        places: dict[tuple[int, int], tuple[int, int, int]] = {}
        exists = np.zeros((inits.size, leads.size), dtype=bool)
        for part, one in holding:
            rows = np.searchsorted(inits, one.init_times)
            columns = np.searchsorted(leads, one.lead_times)
            for i, j in np.argwhere(one.exists):
                key = (int(rows[i]), int(columns[j]))
                places.setdefault(key, (part, int(i), int(j)))
                exists[key] = True
        self._places[name] = places
        return ArchiveVariable(name, levels, first.units, inits, leads, exists, first.note)

    def static(self, name: str) -> AnyMaps | None:
        """A field without time from the first part that has it."""
        for part in self._parts:
            found = part.static(name)
            if found is not None:
                return found
        return None

    def read(self, name: str, init: int, leads: Sequence[int], levels: Sequence[int]) -> AnyMaps:
        """Maps of one variable from one initial time: see `Archive.read`."""
        variable = self.variables[name]
        shape = (len(leads), max(1, len(self.members)), len(levels), *self.grid.shape)
        values: AnyMaps = np.full(shape, np.nan)
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row, lead in enumerate(leads):
            place = self._places[name].get((init, lead))
            if place is not None:
                wanted.setdefault(place[:2], []).append((row, place[2]))
        for (part, own_init), pairs in wanted.items():
            archive = self._parts[part]
            own = archive.variables[name].levels
            held = [
                (column, own.index(variable.levels[level]) if variable.levels else 0)
                for column, level in enumerate(levels)
                if not variable.levels or variable.levels[level] in own
            ]
            if not held:
                continue
            maps = archive.read(name, own_init, [p[1] for p in pairs], [h[1] for h in held])
            rows, columns = [p[0] for p in pairs], [h[0] for h in held]
            if len(rows) == len(leads) and len(columns) == len(levels):
                return maps
            for index, row in enumerate(rows):
                values[row][:, columns] = maps[index]
        return values

    def read_series(
        self, name: str, inits: Sequence[int], lead: int, levels: Sequence[int]
    ) -> AnyMaps:
        """Maps of one lead time: see `Archive.read_series`."""
        return np.stack([self.read(name, init, [lead], levels)[0, 0] for init in inits])

    def preferred_leads(self, name: str) -> int:
        """As the first part that has the variable."""
        return next(p.preferred_leads(name) for p in self._parts if name in p.variables)

    def absent(self, name: str) -> Mask | None:
        """Which maps were never written, as far as the parts can tell."""
        found = np.zeros(self.variables[name].exists.shape, dtype=bool)
        told = False
        for part in {place[0] for place in self._places[name].values()}:
            mask = self._parts[part].absent(name)
            if mask is None:
                continue
            told = True
            for key, place in self._places[name].items():
                if place[0] == part:
                    found[key] = mask[place[1:]]
        return found if told else None
