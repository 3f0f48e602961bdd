"""Regrids global fields between regular and Gaussian latitude-longitude grids, axis by axis."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from jigsaw_forecast.data.records import Float32Array, Float64Array
from jigsaw_forecast.grid import Grid

_COARSER = 1.01  # spacing ratio above which an axis counts as coarsened
_SAME = 1e-3  # of a spacing: closer axes are one axis


def regrid(
    values: npt.NDArray[np.floating],
    latitudes: npt.ArrayLike,
    longitudes: npt.ArrayLike,
    grid: Grid,
    is_vector: Sequence[bool] | None = None,
) -> Float32Array:
    """Regrids maps: area-weighted along a coarsened axis, linear along a refined one.

    Coarsening is first-order conservative: each target cell is the mean of the source cells under
    it, weighted by overlap (sin latitude, longitude). Refining interpolates linearly, periodic in
    longitude; beyond the last source row scalars run to the zonal mean of that row at the pole,
    wind components keep the row's value. Wind components are treated one by one: within a row
    or two of the poles, where east and north turn, this is approximate. Equal axes stay as
    they are, to the last bit.

    Args:
        values: Shape [F, Y, X] without missing points.
        latitudes: Degrees north, strictly descending, shape [Y], the whole globe.
        longitudes: Degrees east, strictly ascending from [0, 360), shape [X], the whole circle.
        grid: The target.
        is_vector: For each map whether it is a wind component; none by default.

    Returns:
        Shape [F, grid.num_lat, grid.num_lon].

    Source: Jones (1999), Monthly Weather Review 127, 2204, for the conservative weights.
    """
    source_lat = np.asarray(latitudes, dtype=np.float64)
    source_lon = np.asarray(longitudes, dtype=np.float64)
    rows = latitude_weights(source_lat, grid.latitudes)
    columns = longitude_weights(source_lon, grid.longitudes)
    if rows is None and columns is None:
        return np.ascontiguousarray(values, dtype=np.float32)
    num_maps = values.shape[0]
    out = np.empty((num_maps, grid.num_lat, grid.num_lon), dtype=np.float32)
    for index in range(num_maps):
        field = np.asarray(values[index], dtype=np.float64)
        if rows is not None:
            is_wind = is_vector is not None and is_vector[index]
            field = rows @ _with_poles(field, keep_last_row=is_wind)
        if columns is not None:
            field = (columns @ field.T).T
        out[index] = field
    return out


def latitude_weights(source: Float64Array, target: Float64Array) -> sparse.csr_matrix | None:
    """Weights [target rows, source rows + 2], None where the axes are equal.

    The first and last source columns of the matrix stand for the poles' values.
    """
    spacing = 180.0 / source.size
    if source.size == target.size and np.abs(source - target).max() < _SAME * spacing:
        return None
    if 180.0 / target.size > _COARSER * spacing:
        source_bounds = np.sin(np.deg2rad(_row_bounds(source)))
        target_bounds = np.sin(np.deg2rad(_row_bounds(target)))
        overlap = _overlaps(target_bounds[::-1], source_bounds[::-1])[::-1, ::-1]
        weights = overlap / overlap.sum(axis=1, keepdims=True)
        return sparse.csr_matrix(np.pad(weights, ((0, 0), (1, 1))))
    padded = np.concatenate([[90.0], source, [-90.0]])
    if source[0] >= 90.0 - _SAME * spacing:  # the row on the pole is the pole's value
        padded[0] = 90.0 + spacing
    if source[-1] <= -90.0 + _SAME * spacing:
        padded[-1] = -90.0 - spacing
    return _linear(-padded, -target)


def longitude_weights(source: Float64Array, target: Float64Array) -> sparse.csr_matrix | None:
    """Weights [target columns, source columns] on the circle, None where the axes are equal."""
    spacing = 360.0 / source.size
    if source.size == target.size and np.abs(source - target).max() < _SAME * spacing:
        return None
    size = source.size
    if 360.0 / target.size > _COARSER * spacing:
        half = 180.0 / target.size
        bounds = np.concatenate([target - half, [target[-1] + half]])
        edges = np.concatenate([source - spacing / 2, [source[-1] + spacing / 2]])
        overlap = sum(_overlaps(bounds, edges + turn) for turn in (-360.0, 0.0, 360.0))
        return sparse.csr_matrix(overlap / np.sum(overlap, axis=1, keepdims=True))
    around = np.concatenate([source - 360.0, source, source + 360.0])
    tripled = _linear(around, target)
    return (tripled[:, :size] + tripled[:, size : 2 * size] + tripled[:, 2 * size :]).tocsr()


def _with_poles(field: Float64Array, keep_last_row: bool) -> Float64Array:
    """The map with a row for each pole added."""
    north, south = field[:1], field[-1:]
    if not keep_last_row:
        north = np.broadcast_to(north.mean(), north.shape)
        south = np.broadcast_to(south.mean(), south.shape)
    return np.concatenate([north, field, south])


def _row_bounds(latitudes: Float64Array) -> Float64Array:
    """Cell bounds midway between descending rows, the outermost on the poles."""
    middle = (latitudes[1:] + latitudes[:-1]) / 2
    return np.concatenate([[90.0], middle, [-90.0]])


def _overlaps(target_bounds: Float64Array, source_bounds: Float64Array) -> Float64Array:
    """Lengths of overlap [target cells, source cells] of cells with ascending bounds."""
    low = np.maximum(target_bounds[:-1, None], source_bounds[None, :-1])
    high = np.minimum(target_bounds[1:, None], source_bounds[None, 1:])
    overlap: Float64Array = np.clip(high - low, 0.0, None)
    return overlap


def _linear(source: Float64Array, target: Float64Array) -> sparse.csr_matrix:
    """Weights of linear interpolation between ascending points."""
    right = np.clip(np.searchsorted(source, target, side="right"), 1, source.size - 1)
    left = right - 1
    fraction = np.clip((target - source[left]) / (source[right] - source[left]), 0.0, 1.0)
    rows = np.arange(target.size)
    return sparse.csr_matrix(
        (
            np.concatenate([1.0 - fraction, fraction]),
            (np.concatenate([rows, rows]), np.concatenate([left, right])),
        ),
        shape=(target.size, source.size),
    )
