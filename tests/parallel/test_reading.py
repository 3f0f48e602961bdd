"""An initial state on several ranks: each message decoded once, every refusal the same on all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.fields import Field
from tests.integration import inputs
from tests.parallel import reading
from tests.parallel.ranks import RankPool

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (4, 2)]
GRAVITY = 9.80665
Z500, T850, Q850, T2M = (reading.field_named(name) for name in ("z500", "t850", "q850", "2t"))


def whole_state(rows: int = 13, columns: int = 48) -> dict[Field, np.ndarray]:
    fields = [field for field in reading.CONFIG.prognostic_fields if field != Q850]
    values = inputs.maps(fields, rows, columns)
    lat = np.linspace(0, np.pi, rows)[:, None]
    values[Q850] = (0.01 * np.sin(lat) ** 2 * np.ones((1, columns))).astype(np.float32)
    return {field: values[field] for field in reading.CONFIG.prognostic_fields}


def write(path: Path, values: dict[Field, np.ndarray], **ids: int) -> str:
    return str(inputs.write_grib(path, values, time=reading.INIT, param_ids=ids))


@pytest.mark.parametrize(("domain", "tensor"), MESHES)
def test_the_pieces_make_the_state_and_no_message_is_decoded_twice(
    ranks: Callable[[int], RankPool], tmp_path: Path, domain: int, tensor: int
) -> None:
    values = whole_state()
    path = write(tmp_path / "in.grib2", values | {Z500: values[Z500] / GRAVITY}, z500=156)
    pieces = ranks(domain * tensor).run(
        {"domain": domain, "tensor": tensor}, reading.read_piece, path
    )
    found = {str(field): np.full((12, 48), np.nan) for field in reading.CONFIG.prognostic_fields}
    for row_start, names, data, _ in pieces:
        for name, band in zip(names, data, strict=True):
            if name == "tp":
                assert np.isnan(band).all()
            else:
                found[name][row_start : row_start + len(band)] = band
    for field, expected in values.items():
        packing = 2.0**-23 * np.ptp(expected) + 1e-6 * abs(expected).max()
        np.testing.assert_allclose(found[str(field)], expected[:-1], rtol=0, atol=packing)
    decoded = [message for *_, messages in pieces for message in messages]
    assert sorted(decoded) == list(range(1, 8))
    shares = [len(messages) for *_, messages in pieces]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("domain", "tensor"), [(2, 2), (4, 2)])
def test_humidity_takes_the_temperature_of_its_level_along(
    ranks: Callable[[int], RankPool], tmp_path: Path, domain: int, tensor: int
) -> None:
    values = whole_state()
    relative = np.full_like(values[Q850], 50.0)
    path = write(tmp_path / "in.grib2", values | {Q850: relative}, q850=157)
    pieces = ranks(domain * tensor).run(
        {"domain": domain, "tensor": tensor}, reading.read_piece, path
    )
    decoded = [message for *_, messages in pieces for message in messages]
    assert sorted(decoded) == list(range(1, 8))
    (owner,) = [messages for *_, messages in pieces if 3 in messages]
    assert 2 in owner


def test_a_finer_input_is_regridded_the_same_on_any_mesh(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    path = write(tmp_path / "in.grib2", whole_state(25, 96))
    ((_, _, whole, _),) = ranks(1).run({}, reading.read_piece, path, True)
    pieces = ranks(4).run({"domain": 4}, reading.read_piece, path, True)
    np.testing.assert_array_equal(np.concatenate([data for _, _, data, _ in pieces], axis=1), whole)


def test_a_replica_without_an_initial_time_takes_part(
    ranks: Callable[[int], RankPool], tmp_path: Path
) -> None:
    path = write(tmp_path / "in.grib2", whole_state())
    assert all(ranks(4).run({"data": 2, "domain": 2}, reading.idle_piece, path))


def truncated(path: Path) -> None:
    write(path, whole_state())
    path.write_bytes(path.read_bytes()[:-100])


def without_two(path: Path) -> None:
    values = whole_state()
    write(path, {f: v for f, v in values.items() if f not in (Z500, T2M)})


def of_mixed_grids(path: Path) -> None:
    write(path, {f: v for f, v in whole_state().items() if f != T2M})
    fine = inputs.maps([T2M], 25, 96)
    inputs.write_grib(path, fine, time=reading.INIT, append=True)


def with_missing_points(path: Path) -> None:
    values = whole_state()
    values[T2M][2, 3] = np.nan
    values[Z500][4, 5:7] = np.nan
    write(path, values)


def with_duplicates(path: Path) -> None:
    values = whole_state()
    write(path, values)
    inputs.write_grib(path, {T850: values[T850] + 1}, time=reading.INIT, append=True)


def flipped(path: Path) -> None:
    """A bit of the packed values of 2t: the reference value's exponent."""
    values = whole_state()
    values[T2M] = values[T2M] * 64
    write(path, values)


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (lambda path: path.write_bytes(b""), ["is empty"]),
    "html": (lambda path: path.write_bytes(b"<html>404</html>"), ["HTML page"]),
    "no grib": (lambda path: path.write_bytes(b"x" * 99), ["neither GRIB, netCDF nor zarr"]),
    "truncated": (truncated, ["is truncated: message 7"]),
    "missing": (without_two, ["missing z500", "missing 2t"]),
    "time": (
        lambda path: inputs.write_grib(path, whole_state(), time=reading.INIT - 86400),
        ["missing all fields at valid time 2026-06-24T00:00", "2026-06-23T00:00"],
    ),
    "mixed grids": (of_mixed_grids, ["mixed grids", "regular_ll 25x96", "regular_ll 13x48"]),
    "height": (
        lambda path: write(path, whole_state() | {Z500: whole_state()[Z500] / GRAVITY}),
        ["look like geopotential height"],
    ),
    "missing points": (
        with_missing_points,
        ["z500 (message 1): 2 of 624 points", "2t (message 6): 1 of 624 points"],
    ),
    "regional": (
        lambda path: inputs.write_grib(path, whole_state(), time=reading.INIT, south=-30.0),
        ["regional grid"],
    ),
    "another grid": (lambda path: write(path, whole_state(25, 96)), ["add --regrid"]),
    "duplicates": (with_duplicates, ["t850 occurs twice", "message 2 and message 8"]),
    "implausible": (flipped, ["2t (message 6)", "implausible"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_all_ranks_with_one_message(
    ranks: Callable[[int], RankPool], tmp_path: Path, name: str
) -> None:
    make, says = BAD[name]
    make(tmp_path / "in.grib2")
    messages = ranks(4).run({"domain": 2, "tensor": 2}, reading.refusal, str(tmp_path / "in.grib2"))
    assert len(set(messages)) == 1
    for part in says:
        assert part in messages[0], messages[0]
