"""Replicas that share out the times of a training set find the statistics of one that has all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.data import training_set
from jigsaw_forecast.data.forcings import ForcingMaps
from jigsaw_forecast.data.mock import write_mock_store
from jigsaw_forecast.data.store import Period
from jigsaw_forecast.data.stores import open_store
from jigsaw_forecast.data.training_set import TrainingSet
from jigsaw_forecast.errors import DataError
from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.sample import sample_pieces
from jigsaw_forecast.parallel.mesh import Mesh, single_rank_mesh
from tests.parallel.ranks import RankPool

CONFIG = ModelConfig(
    grid="16x8",
    fields=("z500", "t500", "2t"),
    diagnostics=("tp",),
    forcings=("sin_year",),
    patch=(1, 1),
    overlap=1,
    channels=8,
    token_hidden=8,
    channel_hidden=8,
    num_blocks=1,
    step_hours=12,
)
NUM_TIMES, GAP = 41, 18
TIMES = np.datetime64("2020-01-01T00", "h") + np.arange(NUM_TIMES) * np.timedelta64(6, "h")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    fields = (*CONFIG.prognostic_fields, *CONFIG.diagnostic_fields)
    write_mock_store(folder / "whole.zarr", fields, CONFIG.grid_object, TIMES)
    data = xr.open_zarr(folder / "whole.zarr", chunks=None, consolidated=False).load()
    gappy = data.isel(time=[place for place in range(NUM_TIMES) if place != GAP])
    gappy.drop_encoding().to_zarr(folder / "gappy.zarr", zarr_format=3, consolidated=False)
    return folder / "gappy.zarr"


def build(
    mesh: Mesh, path: str, times_per_read: int, num_times: int | None = None
) -> tuple[dict[str, np.ndarray], float]:
    """Statistics as this rank finds them, and how often it read its piece of the period."""
    fields = (*CONFIG.prognostic_fields, *CONFIG.diagnostic_fields)
    pieces = sample_pieces(CONFIG, mesh)
    grid = CONFIG.grid_object
    maps = ForcingMaps(CONFIG.forcings[pieces.forcings], grid, {}, rows=pieces.rows)
    period = Period(TIMES[0], TIMES[-1])
    data = TrainingSet(
        open_store(Path(path), fields), CONFIG, pieces, period, maps, allow_gaps=True
    )
    usual = training_set.TIMES_PER_READ
    training_set.TIMES_PER_READ = times_per_read
    try:
        found = data.build_statistics(CONFIG, mesh, num_times=num_times)
    finally:
        training_set.TIMES_PER_READ = usual
    piece = len(data.fields) * (pieces.rows.stop - pieces.rows.start) * grid.num_lon * 4
    return found.to_arrays(), data.num_bytes_read / (piece * len(data.times))


@pytest.mark.parametrize(
    ("data", "domain", "tensor", "times_per_read", "num_times"),
    [(2, 1, 1, 1, None), (2, 1, 1, 7, None), (4, 1, 1, 3, None), (2, 2, 1, 5, 12)],
)
def test_replicas_share_out_the_times(
    ranks: Callable[[int], RankPool],
    store: Path,
    data: int,
    domain: int,
    tensor: int,
    times_per_read: int,
    num_times: int | None,
) -> None:
    expected, num_reads = build(single_rank_mesh(), str(store), times_per_read, num_times)
    found = ranks(data * domain * tensor).run(
        {"data": data, "domain": domain, "tensor": tensor},
        build,
        str(store),
        times_per_read,
        num_times,
    )
    for name, array in expected.items():
        for arrays, _ in found:
            np.testing.assert_array_equal(arrays[name], found[0][0][name])
        np.testing.assert_allclose(found[0][0][name], array, rtol=1e-6)
    assert max(part for _, part in found) <= num_reads / data + (times_per_read + 2) / NUM_TIMES


def test_where_one_replica_has_all_times_no_bit_changes(
    ranks: Callable[[int], RankPool], store: Path
) -> None:
    one_pair = (str(store), 120, 2)
    expected, _ = build(single_rank_mesh(), *one_pair)
    for arrays, _ in ranks(2).run({"data": 2}, build, *one_pair):
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)


def refusal(mesh: Mesh, path: str) -> str:
    """What this rank says of a period of one time."""
    pieces = sample_pieces(CONFIG, mesh)
    maps = ForcingMaps(CONFIG.forcings[pieces.forcings], CONFIG.grid_object, {}, rows=pieces.rows)
    fields = (*CONFIG.prognostic_fields, *CONFIG.diagnostic_fields)
    store = open_store(Path(path), fields)
    data = TrainingSet(store, CONFIG, pieces, Period(TIMES[0], TIMES[0]), maps)
    try:
        data.build_statistics(CONFIG, mesh)
    except DataError as error:
        return str(error)
    return ""


def test_too_few_times_are_refused_by_all(ranks: Callable[[int], RankPool], store: Path) -> None:
    found = ranks(2).run({"data": 2}, refusal, str(store))
    assert found == ["statistics need 2 times, found 1"] * 2
