"""Stores and training sets: what is read, in which order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from jigsaw_forecast.data.convert import ConvertRequest, convert
from jigsaw_forecast.data.convert_fields import Selection
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.mock import mock_fields, write_mock_store
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_set import Batch, ReadAhead, SampleOrder, TrainingSet
from jigsaw_forecast.data.weather_store import Period, WeatherStore
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.parallel.mesh import Axis, Mesh, single_rank_mesh

CONFIG = ModelConfig(
    grid="8x4",
    fields=("z500", "t500", "t850", "2t"),
    diagnostics=("tp",),
    forcings=("land_sea_mask", "insolation"),
    patch=(2, 2),
    overlap=0,
    channels=4,
    token_hidden=4,
    channel_hidden=4,
    num_blocks=1,
)
FIELDS = (*CONFIG.prognostic_fields, *CONFIG.diagnostic_fields)
# all levels that the store has, so that it can be written whole
STORED = (*FIELDS, Field("geopotential", 850))
GRID = Grid.parse("8x4")
TIMES = np.arange(
    np.datetime64("2020-02-27T00", "h"), np.datetime64("2020-03-08T00", "h"), np.timedelta64(6, "h")
)
PERIOD = Period.parse("2020-02-27/2020-03-07")
ROWS = slice(0, 4)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "mock.zarr"
    write_mock_store(path, STORED, GRID, TIMES)
    return path


def _set(path: Path, mesh: Mesh | None = None, *, allow_gaps: bool = False) -> TrainingSet:
    store = open_store(path, FIELDS)
    pieces = sample_pieces(CONFIG, mesh or single_rank_mesh())
    statics = {"land_sea_mask": store.static("land_sea_mask")}
    names = CONFIG.forcings[pieces.forcings]
    maps = ForcingMaps(names, GRID, statics, rows=pieces.rows)
    return TrainingSet(store, CONFIG, pieces, PERIOD, maps, allow_gaps=allow_gaps)


def _normalised(path: Path, *, in_memory: bool, allow_gaps: bool = False) -> TrainingSet:
    data = _set(path, allow_gaps=allow_gaps)
    if in_memory:
        data.load()
    data.normalise(data.build_statistics(CONFIG, single_rank_mesh()))
    return data


def _rewritten(path: Path, target: Path, change: xr.Dataset) -> Path:
    change.drop_encoding().to_zarr(target, zarr_format=3, consolidated=False)
    return target


def test_a_period_includes_its_last_day() -> None:
    period = Period.parse("2020-01-01/2020-12-31")
    assert period.end == np.datetime64("2020-12-31T23:59:59")
    assert Period.parse("2020-01-01T06/2020-01-02T12").end == np.datetime64("2020-01-02T12")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("1979/2019", "2019-12-31T23:59:59"),
        ("2020-01/2020-02", "2020-02-29T23:59:59"),
        ("1979-01-01/2019", "2019-12-31T23:59:59"),
    ],
)
def test_a_period_includes_its_last_year_or_month(text: str, end: str) -> None:
    assert Period.parse(text).end == np.datetime64(end)


@pytest.mark.parametrize(
    "text", ["2020", "2020-01-02/2020-01-01", "a/b", "/2020-01-01", "20200101/20201231", "1/2/3"]
)
def test_a_period_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"START/END|ends before"):
        Period.parse(text)


def test_read_gives_fields_in_the_order_asked(store_path: Path) -> None:
    fields = (Field("2m_temperature"), Field("temperature", 850), Field("geopotential", 500))
    store = WeatherStore(store_path, fields)
    found = store.read(np.array([3, 4, 9]), fields, slice(1, 3))
    expected = mock_fields(STORED, GRID, TIMES)
    places = [STORED.index(field) for field in fields]
    np.testing.assert_array_equal(found, expected[[3, 4, 9]][:, places, 1:3])


def test_bytes_read_are_counted(store_path: Path) -> None:
    store = WeatherStore(store_path, FIELDS)
    store.read(np.array([0, 1]), FIELDS[:3], slice(0, 2))
    assert store.bytes_read == 2 * 3 * 2 * 8 * 4


def test_transposed_ascending_stores_read_alike(store_path: Path, tmp_path: Path) -> None:
    data = xr.open_zarr(store_path, chunks=None, consolidated=False).load()
    turned = data.isel(latitude=slice(None, None, -1)).transpose("time", ..., "latitude")
    turned_path = _rewritten(store_path, tmp_path / "turned.zarr", turned)
    indices = np.arange(5)
    plain = WeatherStore(store_path, FIELDS).read(indices, FIELDS, slice(1, 4))
    np.testing.assert_array_equal(
        WeatherStore(turned_path, FIELDS).read(indices, FIELDS, slice(1, 4)), plain
    )
    np.testing.assert_array_equal(
        WeatherStore(turned_path, FIELDS).static("land_sea_mask"),
        WeatherStore(store_path, FIELDS).static("land_sea_mask"),
    )


def test_missing_fields_and_levels_are_all_listed(store_path: Path) -> None:
    wanted = (*FIELDS, Field("geopotential", 50), Field("specific_humidity", 500))
    with pytest.raises(
        DataError, match=r"missing fields: z50, q500; it holds .*levels \[500, 850\]"
    ):
        WeatherStore(store_path, wanted)


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such store"):
        WeatherStore(tmp_path / "none.zarr", FIELDS)


def test_a_file_is_refused_with_how_to_train_on_it(tmp_path: Path) -> None:
    path = tmp_path / "weather.nc"
    path.touch()
    with pytest.raises(DataError, match=r"is a file.*data convert .*weather\.nc .*weather\.zarr"):
        WeatherStore(path, FIELDS)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable zarr store"):
        WeatherStore(tmp_path, FIELDS)


def test_gaps_in_time_are_listed(store_path: Path, tmp_path: Path) -> None:
    data = xr.open_zarr(store_path, chunks=None, consolidated=False).load()
    keep = np.delete(np.arange(len(TIMES)), [5, 6, 20])
    store = WeatherStore(
        _rewritten(store_path, tmp_path / "gaps.zarr", data.isel(time=keep)), FIELDS
    )
    with pytest.raises(DataError) as caught:
        store.check_gaps(PERIOD, np.timedelta64(6, "h"))
    assert f"{TIMES[4].astype('datetime64[s]')} to {TIMES[7].astype('datetime64[s]')}" in str(
        caught.value
    )
    assert f"{TIMES[19].astype('datetime64[s]')}" in str(caught.value)


def test_a_period_that_the_store_does_not_fill_is_refused(store_path: Path) -> None:
    store = WeatherStore(store_path, FIELDS)
    with pytest.raises(DataError, match="2020-03-07T18:00:00 to 2020-03-31"):
        store.check_gaps(Period.parse("2020-02-27/2020-03-31"), np.timedelta64(6, "h"))


def test_nan_and_implausible_values_name_field_and_time(store_path: Path, tmp_path: Path) -> None:
    data = xr.open_zarr(store_path, chunks=None, consolidated=False).load()
    data["2m_temperature"][7, 1, 1] = np.nan
    data["temperature"][2, 1, 0, 0] = 900.0
    path = _rewritten(store_path, tmp_path / "bad.zarr", data)
    store = WeatherStore(path, FIELDS)
    with pytest.raises(DataError) as caught:
        store.read(np.arange(len(TIMES)), FIELDS, ROWS)
    message = str(caught.value)
    assert "t850 at 2020-02-27T12:00:00" in message
    assert "2t at 2020-02-28T18:00:00" in message


def test_the_grid_must_be_the_models(store_path: Path) -> None:
    config = CONFIG.model_copy(update={"grid": "16x8"})
    store = WeatherStore(store_path, FIELDS)
    pieces = sample_pieces(config, single_rank_mesh())
    maps = ForcingMaps(("insolation",), config.grid_object, {})
    with pytest.raises(DataError, match=r"grid 8x4, but the recipe's model has 16x8"):
        TrainingSet(store, config, pieces, PERIOD, maps)


def test_normalised_anomalies_have_no_mean_and_unit_deviation(store_path: Path) -> None:
    data = _normalised(store_path, in_memory=True)
    batch = data.batch(np.array([0]), len(TIMES) - 1)
    states = batch.states[0].double().numpy()
    cell = (GRID.area_weights() / (4 * 8))[:, None]
    np.testing.assert_allclose(states.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose((np.square(states).mean(0) * cell).sum((1, 2)), 1.0, rtol=1e-4)


def test_in_memory_and_streamed_give_the_same_batch(store_path: Path) -> None:
    loaded = _normalised(store_path, in_memory=True).batch(np.array([4, 1]), 3)
    streamed = _normalised(store_path, in_memory=False).batch(np.array([4, 1]), 3)
    for one, other in (
        (loaded.states, streamed.states),
        (loaded.diagnostics, streamed.diagnostics),
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_batch_is_a_start_and_what_follows_with_forcings_at_each_start(store_path: Path) -> None:
    data = _normalised(store_path, in_memory=True)
    batch = data.batch(np.array([2, 5]), 3)
    assert batch.states.shape == (2, 4, 4, 4, 8)
    assert batch.diagnostics.shape == (2, 3, 1, 4, 8)
    later = data.batch(np.array([5]), 3)
    np.testing.assert_array_equal(batch.states[0, 3], later.states[0, 0])
    statics = {"land_sea_mask": WeatherStore(store_path, FIELDS).static("land_sea_mask")}
    maps = ForcingMaps(CONFIG.forcings, GRID, statics)
    np.testing.assert_array_equal(batch.forcings[1, 2], maps.at(TIMES[7]))


def test_the_ranks_pieces_make_the_whole_batch(store_path: Path) -> None:
    statistics = _set(store_path).build_statistics(CONFIG, single_rank_mesh())
    whole = _normalised(store_path, in_memory=True).batch(np.array([3]), 1)
    mesh = _mesh_of(domain=2, tensor=2)
    states = np.full(whole.states.shape, np.nan, dtype=np.float32)
    forcings = np.full(whole.forcings.shape, np.nan, dtype=np.float32)
    for domain in range(2):
        for tensor in range(2):
            peer = mesh.at(domain, tensor)
            pieces = sample_pieces(CONFIG, peer)
            data = _set(store_path, peer)
            data.normalise(statistics)
            part = data.batch(np.array([3]), 1)
            states[:, :, pieces.fields, pieces.rows] = part.states
            forcings[:, :, pieces.forcings, pieces.rows] = part.forcings
    np.testing.assert_array_equal(states, whole.states)
    np.testing.assert_array_equal(forcings, whole.forcings)


def _mesh_of(data: int = 1, domain: int = 1, tensor: int = 1, replica: int = 0) -> Mesh:
    return Mesh(
        Axis("data", data, replica, None),
        Axis("domain", domain, 0, None),
        Axis("tensor", tensor, 0, None),
        Axis("model", domain * tensor, 0, None),
        single_rank_mesh().device,
    )


@pytest.fixture(scope="module")
def converted(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "set.zarr"
    convert(ConvertRequest((store_path,), path, Selection(FIELDS), num_bands=2))
    return path


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_training_set_gives_the_batches_of_the_store_that_it_was_made_of(
    store_path: Path, converted: Path, in_memory: bool
) -> None:
    starts = np.array([6, 0, 6])
    expected = _normalised(store_path, in_memory=True).batch(starts, 2)
    found = _normalised(converted, in_memory=in_memory).batch(starts, 2)
    np.testing.assert_array_equal(found.states.numpy(), expected.states.numpy())
    np.testing.assert_array_equal(found.diagnostics.numpy(), expected.diagnostics.numpy())
    np.testing.assert_array_equal(found.forcings.numpy(), expected.forcings.numpy())


@pytest.fixture
def gappy(store_path: Path, tmp_path: Path) -> Path:
    """The store without three of its times: sequences of 5, 13 and the rest."""
    data = xr.open_zarr(store_path, chunks=None, consolidated=False).load()
    keep = np.delete(np.arange(len(TIMES)), [5, 6, 20])
    return _rewritten(store_path, tmp_path / "gaps.zarr", data.isel(time=keep))


def test_gaps_are_refused_unless_allowed(gappy: Path) -> None:
    with pytest.raises(DataError, match=r"\(2 missing\).*\(1 missing\); set data.allow_gaps"):
        _set(gappy)
    _set(gappy, allow_gaps=True)


def test_with_gaps_the_samples_are_those_whose_times_are_all_there(gappy: Path) -> None:
    data = _normalised(gappy, in_memory=False, allow_gaps=True)
    sizes = (5, 13, len(TIMES) - 21)
    for num_steps in (0, 1, 3, 12):
        assert data.num_samples(num_steps) == sum(max(size - num_steps, 0) for size in sizes)
    every = np.arange(data.num_samples(3))
    times = data.valid_times(every, 3)
    assert (np.diff(times, axis=1) == np.timedelta64(6, "h")).all()
    batch = data.batch(every[-1:], 3)
    expected = mock_fields(STORED, GRID, times[-1].astype("datetime64[h]"))
    scale, shift = data._scale, data._shift
    assert scale is not None
    assert shift is not None
    places = [STORED.index(field) for field in CONFIG.prognostic_fields]
    physical = batch.states[0].numpy() * scale[:4] + shift[:4]
    np.testing.assert_allclose(physical, expected[:, places], rtol=1e-4)


def test_no_tendency_spans_a_gap(gappy: Path) -> None:
    found = _set(gappy, allow_gaps=True).build_statistics(CONFIG, single_rank_mesh())
    times = WeatherStore(gappy, FIELDS).times.astype("datetime64[h]")
    places = [STORED.index(field) for field in CONFIG.prognostic_fields]
    values = mock_fields(STORED, GRID, times)[:, places].astype(np.float64)
    whole = np.diff(times) == np.timedelta64(6, "h")
    cell = (GRID.area_weights() / (4 * 8))[:, None]
    change = (np.square(np.diff(values, axis=0)[whole]).mean(0) * cell).sum((1, 2))
    np.testing.assert_allclose(found.tendency_std, np.sqrt(change), rtol=1e-5)


def test_statistics_of_some_times_are_those_of_pairs_spread_over_all(store_path: Path) -> None:
    found = _set(store_path).build_statistics(CONFIG, single_rank_mesh(), num_times=6)
    last = len(TIMES) - 2
    starts = [0, round(last / 2), last]
    places = [STORED.index(field) for field in CONFIG.prognostic_fields]
    values = mock_fields(STORED, GRID, TIMES)[:, places].astype(np.float64)
    cell = (GRID.area_weights() / (4 * 8))[:, None]
    change = values[[start + 1 for start in starts]] - values[starts]
    expected = np.sqrt((np.square(change).mean(0) * cell).sum((1, 2)))
    np.testing.assert_allclose(found.tendency_std, expected, rtol=1e-5)
    used = values[[place for start in starts for place in (start, start + 1)]]
    np.testing.assert_allclose(found.mean, used.mean(0), rtol=1e-6)


@pytest.mark.parametrize("degrees", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_the_ranks_read_each_byte_of_a_sample_once(
    large_chunks: Path, degrees: tuple[int, int]
) -> None:
    domain, tensor = degrees
    mesh = _mesh_of(domain=domain, tensor=tensor)
    fields = LARGE.prognostic_fields
    files = [large_chunks / "values" / f"c.{shard}.0.0.0" for shard in range(1, 4)]
    index_bytes = len(files) * (4 * len(fields) * 16 + 4)  # bands x fields, offset and length
    counted = []
    for i, j in np.ndindex(domain, tensor):
        pieces = sample_pieces(LARGE, mesh.at(i, j))
        store = open_store(large_chunks, fields, num_threads=1)
        own = fields[pieces.fields]
        store.read(np.arange(1), own, pieces.rows)  # starts its thread
        known, first, before = store.disk_bytes_read, _bytes_read(), _bytes_read()
        store.read(np.arange(1, 4), own, pieces.rows)
        counted.append(_bytes_read() - before - (before - first))  # the counter's own text
        assert abs(counted[-1] - (store.disk_bytes_read - known)) < 16  # its length may change
        counted[-1] = store.disk_bytes_read - known
    chunk_bytes = sum(file.stat().st_size for file in files) - index_bytes
    own_bytes = [count - index_bytes for count in counted]
    assert sum(own_bytes) == chunk_bytes
    if tensor == 1:  # fields differ in how far they shrink, bands of all fields hardly
        assert max(own_bytes) < 1.2 * chunk_bytes / domain


LARGE = CONFIG.model_copy(update={"grid": "64x32", "diagnostics": ()})


@pytest.fixture(scope="module")
def large_chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of four times in four bands."""
    folder = tmp_path_factory.mktemp("large")
    fields = LARGE.prognostic_fields
    stored = (*fields, Field("geopotential", 850))
    write_mock_store(folder / "mock.zarr", stored, LARGE.grid_object, TIMES[:4])
    path = folder / "set.zarr"
    convert(ConvertRequest((folder / "mock.zarr",), path, Selection(fields), num_bands=4))
    return path


def _bytes_read() -> int:
    """Bytes that this process had read before, as the kernel counts them."""
    io = Path("/proc/self/io")
    if not io.exists():
        pytest.skip("no /proc/self/io on this system")
    return int(io.read_text().split()[1])


def test_an_epoch_takes_every_sample_once() -> None:
    order = SampleOrder(12, (5,))
    taken = np.concatenate([order.starts(step, 4, single_rank_mesh()) for step in range(3)])
    assert sorted(taken.tolist()) == list(range(12))


def test_replicas_share_the_batch_that_one_rank_would_take() -> None:
    whole = SampleOrder(10, (5,)).starts(3, 4, single_rank_mesh())
    parts = [
        SampleOrder(10, (5,)).starts(3, 4, _mesh_of(data=2, replica=replica)) for replica in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return SampleOrder(50, (seed,)).starts(number, 50, single_rank_mesh()).tolist()

    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)


def test_read_ahead_gives_batches_in_order() -> None:
    def make(step: int) -> Batch:
        return Batch(*(np.full(1, step) for _ in range(3)))  # type: ignore[arg-type]

    batches = ReadAhead(make, 3, 8)
    try:
        assert [int(batches.take().states[0]) for _ in range(5)] == [3, 4, 5, 6, 7]
    finally:
        batches.close()


def test_read_ahead_raises_what_reading_raised() -> None:
    def make(step: int) -> Batch:
        raise DataError("bad sample")

    batches = ReadAhead(make, 0, 1)
    try:
        with pytest.raises(DataError, match="bad sample"):
            batches.take()
    finally:
        batches.close()


def test_a_batch_goes_to_a_device_whole() -> None:
    batch = Batch(torch.zeros(1, 2, 3), torch.zeros(1, 1, 1), torch.zeros(1, 1, 2))
    moved = batch.to(torch.device("meta"))
    devices = {part.device.type for part in (moved.states, moved.diagnostics, moved.forcings)}
    assert devices == {"meta"}
