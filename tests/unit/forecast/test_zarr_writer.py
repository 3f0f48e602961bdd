"""Claims about forecast stores, read back by xarray and by plain zarr."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.output import open_writer
from jigsaw_forecast.forecast.product import OutputSpec
from jigsaw_forecast.grid import Grid
from tests.unit.forecast.made_up import FIELDS, INIT, hours, make_spec, make_state

FINE = Grid(181, 360, has_poles=True)


def write_all(path: Path, spec: OutputSpec) -> None:
    writer = open_writer(path, spec, overwrite=False)
    for hour, lead in zip(spec.lead_hours, spec.lead_times, strict=True):
        writer.write(make_state(spec, hour))
        writer.mark_done(INIT, lead)
    writer.finish()


@pytest.mark.parametrize("grid", [Grid(8, 16, has_poles=False), FINE])
def test_plain_open_zarr_gives_the_values_to_the_bit(tmp_path: Path, grid: Grid) -> None:
    spec = make_spec(grid=grid)
    write_all(tmp_path / "f.zarr", spec)
    store = xr.open_zarr(tmp_path / "f.zarr")
    state = make_state(spec, 6)
    for field, expected in zip(FIELDS, state.data.numpy(), strict=True):
        found = store[field.variable].sel(time=INIT, prediction_timedelta=hours(6)[0])
        if field.level_hpa:
            found = found.sel(level=field.level_hpa)
        assert np.array_equal(found.values, expected)


@pytest.mark.parametrize("grid", [Grid(8, 16, has_poles=False), FINE])
def test_chunks_are_zarrs_own_to_the_last_byte(tmp_path: Path, grid: Grid) -> None:
    spec = make_spec(grid=grid)
    write_all(tmp_path / "f.zarr", spec)
    shutil.copytree(
        tmp_path / "f.zarr", tmp_path / "again.zarr", ignore=shutil.ignore_patterns("c")
    )
    group = zarr.open_group(tmp_path / "f.zarr", mode="r")
    again = zarr.open_group(tmp_path / "again.zarr", mode="r+")
    for name in spec.variables:
        array, copy = group[name], again[name]
        assert isinstance(array, zarr.Array)
        assert isinstance(copy, zarr.Array)
        copy.with_config({"write_empty_chunks": True})[...] = array[...]
        chunks = [path for path in (tmp_path / "f.zarr" / name / "c").rglob("*") if path.is_file()]
        assert chunks
        for chunk in chunks:
            other = tmp_path / "again.zarr" / chunk.relative_to(tmp_path / "f.zarr")
            assert chunk.read_bytes() == other.read_bytes()


def test_plain_open_zarr_decodes_times_and_axes(tmp_path: Path) -> None:
    spec = make_spec()
    write_all(tmp_path / "f.zarr", spec)
    store = xr.open_zarr(tmp_path / "f.zarr")
    assert store.time.values[0] == INIT
    assert store.prediction_timedelta.dtype.kind == "m"
    assert list(store.prediction_timedelta.values) == list(hours(0, 6))
    assert list(store.level.values) == [500, 850]
    assert np.array_equal(store.latitude, spec.grid.latitudes)
    assert np.array_equal(store.longitude, spec.grid.longitudes)
    dims = ("time", "prediction_timedelta", "level", "latitude", "longitude")
    assert store["geopotential"].dims == dims
    assert store["2m_temperature"].dims == (*dims[:2], *dims[3:])


def test_initial_time_with_minutes_is_kept(tmp_path: Path) -> None:
    init = np.datetime64("2026-06-24T00:30:15", "s")
    spec = make_spec(init_times=(init,))
    writer = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    assert xr.open_zarr(tmp_path / "f.zarr.partial").time.values[0] == init
    writer.abort()


def test_cf_attributes_and_provenance_are_written(tmp_path: Path) -> None:
    write_all(tmp_path / "f.zarr", make_spec())
    store = xr.open_zarr(tmp_path / "f.zarr")
    assert store["geopotential"].attrs["units"] == "m2 s-2"
    assert store["2m_temperature"].attrs["standard_name"] == "air_temperature"
    assert store.attrs["notice"] == "a simulated planet"
    assert store.attrs["fields"] == "z500 z850 q500 2t 10u msl tp"


def test_coarse_grids_have_all_levels_in_a_chunk_and_one_unit(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    assert writer.units()[0] == FIELDS[:2]
    assert [len(unit) for unit in writer.units()] == [2, 1, 1, 1, 1, 1]
    array = zarr.open_array(tmp_path / "f.zarr.partial" / "geopotential")
    assert array.chunks == (1, 1, 2, 8, 16)
    writer.abort()


def test_one_degree_grids_have_one_map_in_a_chunk_and_a_unit(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "f.zarr", make_spec(grid=FINE), overwrite=False)
    assert writer.units() == [(field,) for field in FIELDS]
    array = zarr.open_array(tmp_path / "f.zarr.partial" / "geopotential")
    assert array.chunks == (1, 1, 1, 181, 360)
    writer.abort()


def test_ranks_write_their_own_units_of_one_lead_time(tmp_path: Path) -> None:
    spec = make_spec(lead_times=hours(6))
    whole = make_state(spec, 6)
    creator = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    other = open_writer(tmp_path / "f.zarr", spec, overwrite=False, is_creator=False)
    for index, unit in enumerate(creator.units()):
        rows = [FIELDS.index(field) for field in unit]
        part = type(whole)(whole.data[rows], unit, spec.grid, INIT, whole.lead_time)
        (creator if index % 2 else other).write(part)
    other.finish()
    creator.mark_done(INIT, whole.lead_time)
    creator.finish()
    store = xr.open_zarr(tmp_path / "f.zarr")
    assert np.array_equal(store["geopotential"][0, 0].values, whole.data[:2].numpy())
    assert np.array_equal(store["2m_temperature"][0, 0].values, whole.data[3].numpy())


def test_half_a_unit_is_refused(tmp_path: Path) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    with pytest.raises(ValueError, match="not whole units"):
        writer.write(make_state(spec, 6, fields=FIELDS[:1]))
    writer.abort()


def test_level_that_was_not_asked_for_is_nan(tmp_path: Path) -> None:
    fields = (Field("geopotential", 500), Field("specific_humidity", 850))
    write_all(tmp_path / "f.zarr", make_spec(fields=fields))
    store = xr.open_zarr(tmp_path / "f.zarr")
    assert bool(store["geopotential"].sel(level=500).notnull().all())
    assert bool(store["geopotential"].sel(level=850).isnull().all())


def test_finished_lead_times_are_in_the_final_store(tmp_path: Path) -> None:
    write_all(tmp_path / "f.zarr", make_spec())
    record = xr.open_zarr(tmp_path / "f.zarr").attrs["finished_lead_times"]
    assert record == [["2026-06-24T00:00:00", 0], ["2026-06-24T00:00:00", 6]]


def test_new_run_is_refused_while_a_rank_of_the_aborted_one_may_write(tmp_path: Path) -> None:
    creator = open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    other = open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False, is_creator=False)
    creator.abort()
    with pytest.raises(OutputError, match="written by another run"):
        open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    other.abort()
    open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False).abort()


@pytest.mark.parametrize("is_creator_first", [True, False])
def test_last_rank_to_abort_clears_what_others_wrote(
    tmp_path: Path, is_creator_first: bool
) -> None:
    spec = make_spec()
    creator = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    other = open_writer(tmp_path / "f.zarr", spec, overwrite=False, is_creator=False)
    first, last = (creator, other) if is_creator_first else (other, creator)
    first.abort()
    last.write(make_state(spec, 6))
    assert (tmp_path / "f.zarr.partial").exists()
    last.abort()
    assert list(tmp_path.iterdir()) == []


def test_rank_that_aborts_leaves_the_others_alone(tmp_path: Path) -> None:
    creator = open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    other = open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False, is_creator=False)
    other.abort()
    assert (tmp_path / "f.zarr.partial/zarr.json").exists()
    with pytest.raises(OutputError, match="written by another run"):
        open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    creator.abort()


def test_rank_cannot_join_a_product_that_nobody_makes(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False, is_creator=False)
    assert list(tmp_path.iterdir()) == []


def test_unwritten_lead_time_reads_as_nan(tmp_path: Path) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    store = xr.open_zarr(tmp_path / "f.zarr.partial")
    assert bool(store["2m_temperature"].isnull().all())
    writer.abort()


def test_map_that_is_nan_is_written_as_a_chunk(tmp_path: Path) -> None:
    write_all(tmp_path / "f.zarr", make_spec())
    assert (tmp_path / "f.zarr/total_precipitation_6hr/c/0/0/0/0").is_file()


def test_flipped_bit_is_an_error_when_read(tmp_path: Path) -> None:
    write_all(tmp_path / "f.zarr", make_spec())
    chunk = tmp_path / "f.zarr/2m_temperature/c/0/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        xr.open_zarr(tmp_path / "f.zarr")["2m_temperature"].load()
