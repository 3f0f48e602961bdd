"""Other ways to write the fields of a forecast: bare loops, xarray, and earth2studio's backend."""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import torch
import xarray as xr
import zarr
from read_grib import INIT_TIME, header
from zarr.codecs import Crc32cCodec

from jigsaw_forecast.fields import WEATHERBENCH_FIELDS
from jigsaw_forecast.forecast.zarr_writer import COMPRESSOR
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State

FIELDS = WEATHERBENCH_FIELDS
STEP_HOURS = 6


def lead_times(num_leads: int) -> list[np.timedelta64]:
    return [np.timedelta64(STEP_HOURS * step, "h") for step in range(1, num_leads + 1)]


def write_bare_zarr(output: Path, maps: Any, num_leads: int, grid: str) -> None:
    """One array, one map a chunk, our codecs."""
    array = zarr.create_array(
        output / "bare.zarr", shape=(num_leads, *maps.shape), chunks=(1, 1, *maps.shape[1:]),
        dtype="f4", fill_value=np.nan, compressors=[COMPRESSOR, Crc32cCodec()],
    )  # fmt: skip
    array = array.with_config({"write_empty_chunks": True})  # spares it a look at every value
    for step in range(num_leads):
        for number, values in enumerate(maps):
            array[step, number] = values


def write_bare_grib(output: Path, maps: Any, num_leads: int, grid: str) -> None:
    """As eccodes' example of writing does: a clone, its keys, its values."""
    template = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    for key, value in header(Grid.parse(grid)).items():
        eccodes.codes_set(template, key, value)
    with (output / "bare.grib2").open("wb") as stream:
        for step in range(1, num_leads + 1):
            for field, values in zip(FIELDS, maps, strict=False):  # the first ones
                handle = eccodes.codes_clone(template)
                eccodes.codes_set(handle, "step", STEP_HOURS * step)
                eccodes.codes_set(handle, "paramId", field.spec.param_ids[0])
                if field.level_hpa:
                    eccodes.codes_set(handle, "level", field.level_hpa)
                eccodes.codes_set_values(handle, values.astype(np.float64).ravel())
                eccodes.codes_write(handle, stream)
                eccodes.codes_release(handle)


def write_with_xarray(output: Path, states: Iterable[State], num_leads: int, grid: str) -> None:
    """One dataset a lead time, appended; chunks and codec are xarray's own choice."""
    levels = sorted({field.level_hpa for field in FIELDS if field.level_hpa})
    place = {name: [i for i, f in enumerate(FIELDS) if f.variable == name]
             for name in dict.fromkeys(field.variable for field in FIELDS)}  # fmt: skip
    parsed = Grid.parse(grid)
    for number, state in enumerate(states):
        data = state.data.numpy()
        arrays = {}
        for name, indices in place.items():
            has_levels = bool(FIELDS[indices[0]].level_hpa)
            dims = ("time", "prediction_timedelta", *(["level"] if has_levels else []))
            values = data[indices][None, None] if has_levels else data[indices][None]
            arrays[name] = ((*dims, "latitude", "longitude"), values)
        coordinates = {
            "time": [state.init_time.astype("datetime64[ns]")],
            "prediction_timedelta": [state.lead_time.astype("timedelta64[ns]")],
            "level": levels, "latitude": parsed.latitudes, "longitude": parsed.longitudes,
        }  # fmt: skip
        append = {"append_dim": "prediction_timedelta"} if number else {}
        xr.Dataset(arrays, coords=coordinates).to_zarr(
            output / "x.zarr", zarr_format=3, consolidated=False, **append
        )


def write_with_earth2studio(
    output: Path, states: Iterable[State], num_leads: int, grid: str
) -> None:
    """One array a field and no compression, as its workflow `deterministic` writes them."""
    parsed, names = Grid.parse(grid), [field.short_name for field in FIELDS]
    coordinates = OrderedDict(
        time=np.array([INIT_TIME]), lead_time=np.array(lead_times(num_leads)),
        lat=parsed.latitudes, lon=parsed.longitudes,
    )  # fmt: skip
    try:
        from earth2studio.io.zarr import ZarrBackend  # heavy, and not everywhere
    except ImportError:
        backend: Any = LikeZarrBackend(output / "e.zarr")
    else:
        backend = ZarrBackend(str(output / "e.zarr"))
    backend.add_array(coordinates.copy(), names)
    for state in states:
        own = coordinates | {"lead_time": np.array([state.lead_time])}
        maps = [part.squeeze(2) for part in state.data[None, None].split(1, dim=2)]
        backend.write(maps, OrderedDict(own), names)


class LikeZarrBackend:
    """What earth2studio 0.19's ZarrBackend asks of zarr, for where it is not installed."""

    def __init__(self, path: Path) -> None:
        self.root = zarr.group(zarr.storage.LocalStore(path))
        self.coordinates: dict[str, Any] = {}

    def add_array(self, coordinates: Any, names: list[str]) -> None:
        for dim, values in coordinates.items():
            self.root.create_array(
                dim, shape=values.shape, chunks=values.shape, dtype=values.dtype,
                dimension_names=[dim], fill_value=None, compressors=None,
            )  # fmt: skip
            self.root[dim][:] = values
        self.coordinates = dict(coordinates)
        shape = tuple(len(values) for values in coordinates.values())
        for name in names:
            self.root.create_array(
                name, shape=shape, chunks=(1, 1, *shape[2:]), dtype="float32",
                dimension_names=list(coordinates), fill_value=None, compressors=None,
            )  # fmt: skip

    def write(self, maps: list[torch.Tensor], coordinates: Any, names: list[str]) -> None:
        assert all(dim in self.root for dim in coordinates)
        found = [np.where(np.isin(self.coordinates[dim], v))[0] for dim, v in coordinates.items()]
        selection = tuple(slice(int(one[0]), int(one[-1]) + 1) for one in found)
        for values, name in zip(maps, names, strict=True):
            assert name in self.root
            self.root[name][selection] = values.numpy()
