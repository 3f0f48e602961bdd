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
    """Area-weighted means over regions, for whole maps or for a band of rows.

    Attributes:
        names: Regions, in the order of the results.
        num_rows: Rows of the band.
        empty: Regions without a point of positive weight; their means are NaN.
    """

    def __init__(
        self,
        latitudes: npt.ArrayLike,
        longitudes: npt.ArrayLike,
        names: Sequence[str],
        land: npt.ArrayLike | None = None,
        rows: slice = slice(None),
    ) -> None:
        """Makes the weights.

        Args:
            latitudes: Degrees north of the whole grid, strictly monotonic, shape [Y].
            longitudes: Degrees east from 0, shape [X].
            names: Keys of `REGIONS`.
            land: Fraction of land, shape [Y, X]; points without a value count as sea.
            rows: The band, all rows by default.

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
        area = area_weights(lat)
        by_row = np.stack([np.where(_within(lat, r.latitudes), area, 0.0) for r in regions])
        fraction = np.nan_to_num(np.asarray(land, dtype=np.float64)) if land is not None else None
        columns = [_within(lon, r.longitudes) for r in regions]
        self._land = fraction[rows] if fraction is not None and needing else None
        self._is_land = np.array([region.is_land for region in regions])
        self._columns = np.stack(columns).astype(np.float64)
        totals = [
            _total(row, column, fraction if region.is_land else None)
            for row, column, region in zip(by_row, self._columns, regions, strict=True)
        ]
        self.empty = tuple(n for n, total in zip(names, totals, strict=True) if not total > 0)
        self._totals = np.array(totals)
        self._by_row = by_row[:, rows]  # [R, Y_i]
        self.num_rows = self._by_row.shape[1]
        self._set_features()

    def _set_features(self) -> None:
        """Sums over longitude that the regions share, and how rows of them make regions."""
        boxes = self._columns[~self._is_land]
        masks, inverse = np.unique(boxes, axis=0, return_inverse=True)
        self._masks = np.ascontiguousarray(masks.T)  # [X, K]
        num_masks = masks.shape[0]
        num_features = num_masks + (self._land is not None)
        mixing = np.zeros((self.num_rows, num_features, len(self.names)))
        boxes_seen = iter(np.ravel(inverse).tolist())
        for place, is_land in enumerate(self._is_land):
            feature = num_masks if is_land else next(boxes_seen)
            mixing[:, feature, place] = self._by_row[place]
        self._mixing = mixing

    def sums(self, values: Array64, first_row: int = 0) -> Array64:
        """Weighted sums over a block of rows, not yet divided by the regions' weights.

        The points must be finite: one that is not would spoil every region.

        Args:
            values: Shape [..., rows, X], C-contiguous.
            first_row: Of the block, within the band.

        Returns:
            Shape [..., R].
        """
        *leading, num_rows, num_columns = values.shape
        rows = slice(first_row, first_row + num_rows)
        # the sum over longitude first: few products of whole maps serve all regions
        features = values.reshape(-1, num_columns) @ self._masks
        features = features.reshape(-1, num_rows, self._masks.shape[1])
        if self._land is not None:
            maps = values.reshape(-1, num_rows, num_columns)
            on_land = np.einsum("byx,yx->by", maps, self._land[rows])
            features = np.concatenate([features, on_land[:, :, None]], axis=2)
        mixing = self._mixing[rows].reshape(-1, len(self.names))
        found = features.reshape(features.shape[0], -1) @ mixing
        return np.asarray(found.reshape(*leading, len(self.names)))

    @property
    def totals(self) -> Array64:
        """Weight of each region over the whole globe, shape [R]."""
        return self._totals


def _within(values: Array64, ranges: Sequence[Bounds]) -> npt.NDArray[np.bool_]:
    inside = np.zeros(values.shape, dtype=bool)
    for low, high in ranges:
        inside |= (values >= low) & (values <= high)
    return inside


def _total(row: Array64, column: Array64, land: Array64 | None) -> float:
    if land is None:
        return float(row.sum() * column.sum())
    return float(row @ (land @ column))
