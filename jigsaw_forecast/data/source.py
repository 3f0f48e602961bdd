"""Opens a file of initial conditions, its type told by content."""

import re
from pathlib import Path

from jigsaw_forecast.data.classic_netcdf import CLASSIC_MAGICS
from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.grib_messages import is_html
from jigsaw_forecast.data.initial_state import InitialStatePlan, plan_initial_state
from jigsaw_forecast.data.netcdf import NetcdfSource
from jigsaw_forecast.data.records import Source
from jigsaw_forecast.data.zarr_store import ZarrSource
from jigsaw_forecast.errors import DataError

__all__ = ["InitialStatePlan", "Source", "open_source", "plan_initial_state"]

_HEAD_BYTES = 1024
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# What is not read, by how it starts: what it is, and what to do about it.
_OTHERS = {
    b"\x1f\x8b": ("compressed with gzip", "unpack it first (gunzip)"),
    b"BZh": ("compressed with bzip2", "unpack it first (bunzip2)"),
    b"\xfd7zXZ\x00": ("compressed with xz", "unpack it first (unxz)"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it first (unzstd)"),
    b"PK\x03\x04": ("a zip archive", "unpack it first (unzip)"),
    b"BUFR": ("BUFR: observations, no fields", "give GRIB, netCDF or zarr"),
    b"\x0e\x03\x13\x01": ("HDF4", "convert it to netCDF first (h4tonccf)"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file", "fetch it (git lfs pull)"),
}
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")


def _starts_a_message(head: bytes) -> bool:
    """Whether `GRIB` stands there with an edition, and not as a word of a text."""
    return any(
        head[match.end() + 3 : match.end() + 4] in (b"", b"\x00", b"\x01", b"\x02", b"\x03")
        for match in re.finditer(b"GRIB", head)
    )


def open_source(path: str | Path) -> Source:
    """Opens GRIB, netCDF or zarr by what it contains, whatever its name says.

    Raises:
        DataError: There is nothing at `path`, or it is empty, a web page, truncated, damaged or
            of an unknown type.
    """
    path = Path(path)
    if path.is_dir():
        if any((path / name).exists() for name in _ZARR_FILES):
            return ZarrSource(path)
        raise DataError(
            f"{path} is a folder but no zarr store: missing one of {', '.join(_ZARR_FILES)}"
        )
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as fault:
        raise DataError(f"cannot read {path}: {fault.strerror or fault}") from None
    if head.startswith((_HDF5_MAGIC, *CLASSIC_MAGICS)):
        return NetcdfSource(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); fetch it again")
    if is_html(head):
        raise DataError(
            f"{path} is an HTML page, not data: a download that failed; it starts with "
            f"{head[:16]!r}; fetch it again"
        )
    for magic, (what, advice) in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}; {advice}")
    if not _starts_a_message(head):
        raise DataError(
            f"{path} is neither GRIB, netCDF nor zarr: it starts with {head[:16]!r}; fetch it again"
        )
    return GribSource(path)
