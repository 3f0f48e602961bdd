"""Weighted sums of maps over regions, compiled: each point is read once for all regions.

A map at 0.25 degrees is larger than a core's cache, so what costs is passing over it. Plain sums in
the order of the points: the result does not depend on the machine or on how many maps there are.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jigsaw_forecast.verify.compiled import compiled

Array64 = npt.NDArray[np.float64]
AnyMaps = npt.NDArray[np.floating]

NUM_ERRORS = 5  # square, absolute value, error, product of anomalies, forecast's anomaly squared


class RegionTable(NamedTuple):
    """Regions as sets of cells: a band of rows, and a segment of longitude or all of its land.

    Attributes:
        edges: First column of each segment, and the number of columns, shape [S + 1].
        area: Weight of each row, shape [Y].
        band_of: Band of each row, shape [Y].
        land: Fraction of land, shape [Y, X]; [0, 0] where no region needs it.
        has_cell: 1 where a region has a cell, the land of a band behind its segments, otherwise 0,
            shape [bands, S + 1, R].
    """

    edges: npt.NDArray[np.int64]
    area: Array64
    band_of: npt.NDArray[np.int64]
    land: Array64
    has_cell: Array64


@compiled
def _add_cells(cells: Array64, has_cell: Array64, sums: Array64) -> None:
    """Adds cells [bands, S + 1] to the sums [R] of the regions that have them."""
    for band in range(cells.shape[0]):
        for cell in range(cells.shape[1]):
            for region in range(sums.size):
                sums[region] += cells[band, cell] * has_cell[band, cell, region]


@compiled
def _sum_values(values: Array64, first_row: int, table: RegionTable, sums: Array64) -> None:
    """Adds values of shape [B, rows, X] to sums of shape [B, R]."""
    num_segments = table.edges.size - 1
    has_land = table.land.size > 0
    cells = np.empty(table.has_cell.shape[:2])
    for index in range(values.shape[0]):
        cells[:] = 0.0
        for place in range(values.shape[1]):
            row = first_row + place
            area, band = table.area[row], table.band_of[row]
            on_land = 0.0
            for segment in range(num_segments):
                total = 0.0
                for column in range(table.edges[segment], table.edges[segment + 1]):
                    value = values[index, place, column]
                    total += value
                    if has_land:
                        on_land += table.land[row, column] * value
                cells[band, segment] += area * total
            cells[band, num_segments] += area * on_land
        _add_cells(cells, table.has_cell, sums[index])


@compiled
def _sum_errors(
    forecast: AnyMaps, truth: AnyMaps, climatology: AnyMaps, table: RegionTable, sums: Array64
) -> None:
    """Adds what `NUM_ERRORS` lists, of maps [B, Y, X], to sums of shape [B, 5, R]."""
    num_segments = table.edges.size - 1
    has_land = table.land.size > 0
    cells = np.empty((NUM_ERRORS, *table.has_cell.shape[:2]))
    for index in range(forecast.shape[0]):
        cells[:] = 0.0
        for row in range(forecast.shape[1]):
            area, band = table.area[row], table.band_of[row]
            land_0 = land_1 = land_2 = land_3 = land_4 = 0.0
            for segment in range(num_segments):
                sum_0 = sum_1 = sum_2 = sum_3 = sum_4 = 0.0
                for column in range(table.edges[segment], table.edges[segment + 1]):
                    ours = np.float64(forecast[index, row, column])
                    theirs = np.float64(truth[index, row, column])
                    mean = np.float64(climatology[index, row, column])
                    error = ours - theirs
                    anomaly = ours - mean
                    square = error * error
                    size = abs(error)
                    covariance = anomaly * (theirs - mean)
                    variance = anomaly * anomaly
                    sum_0 += square
                    sum_1 += size
                    sum_2 += error
                    sum_3 += covariance
                    sum_4 += variance
                    if has_land:
                        weight = table.land[row, column]
                        land_0 += weight * square
                        land_1 += weight * size
                        land_2 += weight * error
                        land_3 += weight * covariance
                        land_4 += weight * variance
                cells[0, band, segment] += area * sum_0
                cells[1, band, segment] += area * sum_1
                cells[2, band, segment] += area * sum_2
                cells[3, band, segment] += area * sum_3
                cells[4, band, segment] += area * sum_4
            cells[0, band, num_segments] += area * land_0
            cells[1, band, num_segments] += area * land_1
            cells[2, band, num_segments] += area * land_2
            cells[3, band, num_segments] += area * land_3
            cells[4, band, num_segments] += area * land_4
        for number in range(NUM_ERRORS):
            _add_cells(cells[number], table.has_cell, sums[index, number])


def sum_values(values: AnyMaps, first_row: int, table: RegionTable) -> Array64:
    """Weighted sums, shape [B, R].

    Args:
        values: Shape [B, rows, X].
        first_row: Of these rows, on the whole grid.
        table: The regions.
    """
    sums = np.zeros((values.shape[0], table.has_cell.shape[2]))
    _sum_values(_plain(values, "f8"), first_row, table, sums)
    return sums


def sum_errors(
    forecast: AnyMaps, truth: AnyMaps, climatology: AnyMaps, table: RegionTable
) -> Array64:
    """Weighted sums of what `NUM_ERRORS` lists, in float64, shape [B, 5, R].

    A point that is not finite spoils all regions.

    Args:
        forecast: Shape [B, Y, X].
        truth: Likewise.
        climatology: Likewise.
        table: The regions.
    """
    is_single = all(one.dtype == np.float32 for one in (forecast, truth, climatology))
    sums = np.zeros((forecast.shape[0], NUM_ERRORS, table.has_cell.shape[2]))
    ours, theirs, mean = (
        _plain(one, "f4" if is_single else "f8") for one in (forecast, truth, climatology)
    )
    _sum_errors(ours, theirs, mean, table, sums)
    return sums


def _plain(values: AnyMaps, kind: str) -> npt.NDArray[Any]:
    """Values in one layout and read-only: each kind of array more would be compiled anew."""
    plain = np.require(values, dtype=kind, requirements="C").view()
    plain.flags.writeable = False
    return plain
