"""Regions of the score tables and area-weighted means over them.

Bounds, weights and the treatment of missing points are those of WeatherBench 2 (Rasp et al. 2024,
https://arxiv.org/abs/2308.15560): bounds are inclusive, a row weighs sin(upper bound) - sin(lower
bound) with the outermost bounds on the poles, weights are made on the whole latitude axis and cut
to the region afterwards, and land regions weigh by the fraction of land.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import DataError
from jigsaw_forecast.grid import area_weights
from jigsaw_forecast.verify.region_sums import RegionTable, sum_values

Array64 = npt.NDArray[np.float64]
Bounds = tuple[float, float]
_EVERYWHERE: tuple[Bounds, ...] = ((-np.inf, np.inf),)
_TROPICS: tuple[Bounds, ...] = ((-20.0, 20.0),)
_EXTRA_TROPICS: tuple[Bounds, ...] = ((-np.inf, -20.0), (20.0, np.inf))


@dataclass(frozen=True)
class Region:
    """A part of the globe.

    Attributes:
        latitudes: Ranges in degrees north, both ends included.
        longitudes: Ranges in degrees east from 0, both ends included.
        is_land: Weighs by the fraction of land.
    """

    latitudes: tuple[Bounds, ...] = _EVERYWHERE
    longitudes: tuple[Bounds, ...] = _EVERYWHERE
    is_land: bool = False


REGIONS: dict[str, Region] = {
    "global": Region(),
    "tropics": Region(_TROPICS),
    "extra-tropics": Region(_EXTRA_TROPICS),
    "northern-hemisphere": Region(((20.0, np.inf),)),
    "southern-hemisphere": Region(((-np.inf, -20.0),)),
    "europe": Region(((35.0, 75.0),), ((347.5, np.inf), (0.0, 42.5))),
    "north-america": Region(((25.0, 60.0),), ((240.0, 285.0),)),
    "north-atlantic": Region(((25.0, 65.0),), ((290.0, 350.0),)),
    "north-pacific": Region(((25.0, 60.0),), ((145.0, 230.0),)),
    "east-asia": Region(((25.0, 60.0),), ((102.5, 150.0),)),
    "ausnz": Region(((-45.0, -12.5),), ((120.0, 175.0),)),
    "arctic": Region(((60.0, 90.0),)),
    "antarctic": Region(((-90.0, -60.0),)),
    "global_land": Region(is_land=True),
    "extra-tropics_land": Region(_EXTRA_TROPICS, is_land=True),
    "tropics_land": Region(_TROPICS, is_land=True),
}


class RegionWeights:
    """Area-weighted sums over regions.

    Attributes:
        names: Regions, in the order of the results.
        empty: Regions without a point of positive weight; their means are NaN.
        totals: Weight of each region, shape [R].
        table: What compiled sums take.
    """

    def __init__(
        self,
        latitudes: npt.ArrayLike,
        longitudes: npt.ArrayLike,
        names: Sequence[str],
        land: npt.ArrayLike | None = None,
    ) -> None:
        """Makes the weights.

        Args:
            latitudes: Degrees north of the whole grid, strictly monotonic, shape [Y].
            longitudes: Degrees east from 0, shape [X].
            names: Keys of `REGIONS`.
            land: Fraction of land, shape [Y, X]; points without a value count as sea.

        Raises:
            DataError: A region is unknown, or one of land is wanted without a land mask.
        """
        lat = np.asarray(latitudes, dtype=np.float64)
        lon = np.asarray(longitudes, dtype=np.float64)
        unknown = [name for name in names if name not in REGIONS]
        if unknown:
            raise DataError(f"no such regions: {', '.join(unknown)}; known: {', '.join(REGIONS)}")
        needing = [name for name in names if REGIONS[name].is_land]
        if needing and land is None:
            raise DataError(f"regions {', '.join(needing)} need a land mask: missing land_sea_mask")
        self.names = tuple(names)
        regions = [REGIONS[name] for name in names]
        rows = np.stack([_within(lat, region.latitudes) for region in regions])
        columns = np.stack([_within(lon, region.longitudes) for region in regions])
        is_land = np.array([region.is_land for region in regions])
        fraction = np.zeros((0, 0))
        if needing:
            fraction = np.ascontiguousarray(np.nan_to_num(np.asarray(land, dtype=np.float64)))
        self.table = _make_table(area_weights(lat), rows, columns, is_land, fraction)
        self.totals: Array64 = sum_values(np.ones((1, lat.size, lon.size)), 0, self.table)[0]
        self.empty = tuple(n for n, total in zip(names, self.totals, strict=True) if not total > 0)

    def sums(self, values: Array64, first_row: int = 0) -> Array64:
        """Weighted sums over a block of rows, not yet divided by the regions' weights.

        The points must be finite: one that is not would spoil every region.

        Args:
            values: Shape [..., rows, X].
            first_row: Of the block.

        Returns:
            Shape [..., R].
        """
        leading = values.shape[:-2]
        found = sum_values(values.reshape(-1, *values.shape[-2:]), first_row, self.table)
        return found.reshape(*leading, len(self.names))


def _make_table(
    area: Array64,
    rows: npt.NDArray[np.bool_],
    columns: npt.NDArray[np.bool_],
    is_land: npt.NDArray[np.bool_],
    land: Array64,
) -> RegionTable:
    """Cuts the grid where a region begins or ends.

    Args:
        area: Weight of each row, shape [Y].
        rows: Which rows each region has, shape [R, Y].
        columns: Which columns each region has, shape [R, X].
        is_land: Which regions weigh by the fraction of land, shape [R]; they have all columns.
        land: Fraction of land, shape [Y, X] or empty.
    """
    bands, band_of = np.unique(rows, axis=1, return_inverse=True)  # [R, bands], [Y]
    changes = np.flatnonzero((np.diff(columns, axis=1)).any(axis=0)) + 1
    edges = np.concatenate([[0], changes, [columns.shape[1]]]).astype(np.int64)
    in_segment = columns[:, edges[:-1]] & ~is_land[:, None]
    in_cell = np.concatenate([in_segment, is_land[:, None]], axis=1)  # [R, S + 1]
    has_cell = bands.T[:, None, :] & in_cell.T[None]
    return RegionTable(
        edges=edges,
        area=np.ascontiguousarray(area, dtype=np.float64),
        band_of=np.ravel(band_of).astype(np.int64),
        land=land,
        has_cell=np.ascontiguousarray(has_cell, dtype=np.float64),
    )


def _within(values: Array64, ranges: Sequence[Bounds]) -> npt.NDArray[np.bool_]:
    inside = np.zeros(values.shape, dtype=bool)
    for low, high in ranges:
        inside |= (values >= low) & (values <= high)
    return inside
