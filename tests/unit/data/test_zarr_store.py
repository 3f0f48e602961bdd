"""ZarrSource: versions, missing chunks, damage, bytes; expected values are those written."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from jigsaw_forecast.data.source import open_source, plan_initial_state
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from tests.unit.data.grib_files import LATITUDES, LONGITUDES, temperature_map

TIMES = np.datetime64("2026-06-24T00:00", "ns") + np.arange(4) * np.timedelta64(6, "h")
LEVELS = [500, 850]
GRID = Grid(8, 16, has_poles=False)
FIELDS = [Field("temperature", 500), Field("temperature", 850)]
VALUES = temperature_map() + np.arange(8).reshape(4, 2, 1, 1)


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "temperature": (
                ("time", "level", "latitude", "longitude"),
                VALUES.astype("f4"),
                {"units": "K"},
            )
        },
        {"time": TIMES, "level": LEVELS, "latitude": LATITUDES, "longitude": LONGITUDES},
    )


def save(path: Path, zarr_format: int = 3, **encoding: object) -> Path:
    options = {"chunks": (1, 1, 8, 16)} | encoding
    dataset().to_zarr(
        path, zarr_format=zarr_format, encoding={"temperature": options}, consolidated=False
    )
    return path


def read(path: Path) -> np.ndarray:
    plan = plan_initial_state(open_source(path), FIELDS, GRID, TIMES[1], regrid=False, plausible={})
    return plan.read(FIELDS)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_versions_2_and_3_are_read(tmp_path: Path, zarr_format: int) -> None:
    path = save(tmp_path / "a.zarr", zarr_format)
    np.testing.assert_array_equal(read(path), VALUES[1])


def test_a_name_without_zarr_is_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(save(tmp_path / "state.grib")), VALUES[1])


def test_shards_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr", shards=(2, 2, 8, 16))
    np.testing.assert_array_equal(read(path), VALUES[1])


@pytest.mark.filterwarnings("ignore:saving variable:xarray.SerializationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("encoding", [{}, {"dtype": "int16", "scale_factor": 0.5}])
def test_a_missing_chunk_is_missing_values_not_fill(
    tmp_path: Path, zarr_format: int, encoding: dict[str, object]
) -> None:
    path = save(tmp_path / "a.zarr", zarr_format, **encoding)
    chunk = "1.0.0.0" if zarr_format == 2 else "c/1/0/0/0"
    (path / "temperature" / chunk).unlink()
    with pytest.raises(DataError, match=r"t500 .* 128 of 128 points are missing"):
        read(path)


def test_a_missing_chunk_with_a_plausible_fill_value_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr")
    (path / "temperature" / "zarr.json").write_text(
        (path / "temperature" / "zarr.json").read_text().replace('"NaN"', "273.0")
    )
    assert zarr.open_array(path / "temperature").fill_value == 273.0
    (path / "temperature/c/1/1/0/0").unlink()
    with pytest.raises(DataError, match=r"t850 .* 128 of 128 points are missing"):
        read(path)


def test_a_missing_chunk_inside_of_a_shard_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr", shards=(2, 2, 8, 16))
    array = zarr.open_array(path / "temperature", mode="r+")
    array[0:2, 0:2] = np.where(
        np.arange(4).reshape(2, 2, 1, 1) == 2, array.fill_value, VALUES[:2]
    ).astype("f4")
    with pytest.raises(DataError, match=r"t500 .* 128 of 128 points are missing"):
        read(path)


def test_zeros_of_a_version_2_store_with_fill_zero_are_values(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    save(path, 2)
    array = zarr.create_array(
        path / "temperature",
        shape=(4, 2, 8, 16),
        chunks=(1, 1, 8, 16),
        dtype="f4",
        fill_value=0,
        zarr_format=2,
        overwrite=True,
        attributes={"_ARRAY_DIMENSIONS": ["time", "level", "latitude", "longitude"], "units": "K"},
    )
    expected = VALUES.astype("f4")
    expected[1, 0, 0, 0] = 0.0
    array[:] = expected
    np.testing.assert_array_equal(read(path), expected[1])


def test_a_damaged_chunk_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr")
    chunk = path / "temperature/c/1/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(DataError, match="array temperature cannot be read"):
        read(path)


def test_only_the_chunks_asked_for_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr")
    plan = plan_initial_state(open_source(path), FIELDS, GRID, TIMES[1], regrid=False, plausible={})
    before = plan.source.bytes_read
    plan.read(FIELDS[:1])
    assert plan.source.bytes_read - before == (path / "temperature/c/1/0/0/0").stat().st_size


def test_a_store_of_groups_says_which_there_are(tmp_path: Path) -> None:
    dataset().to_zarr(tmp_path / "a.zarr", group="analysis", zarr_format=3, consolidated=False)
    with pytest.raises(DataError, match=r"only groups: give one of .*a\.zarr/analysis"):
        open_source(tmp_path / "a.zarr")
    assert open_source(tmp_path / "a.zarr" / "analysis").records()


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no zarr store: missing one of zarr.json"):
        open_source(tmp_path)
