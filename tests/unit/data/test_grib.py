"""GribSource: framing, headers, scan orders, missing values, and what it refuses."""

from pathlib import Path

import eccodes
import numpy as np
import pytest

from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.source import open_source
from jigsaw_forecast.errors import DataError
from tests.unit.data.grib_files import (
    LATITUDES,
    LONGITUDES,
    message,
    temperature_map,
    write,
)

STEP = 128 / 65536  # of 16 bit packing of the map's range
SOUTH_NORTH = {
    "jScansPositively": 1,
    "latitudeOfFirstGridPointInDegrees": float(LATITUDES[-1]),
    "latitudeOfLastGridPointInDegrees": float(LATITUDES[0]),
}


def read_one(path: Path) -> np.ndarray:
    source = GribSource(path)
    (record,) = source.records()
    assert record.axes is not None
    np.testing.assert_allclose(record.axes.latitudes, LATITUDES, atol=1e-9)
    np.testing.assert_allclose(record.axes.longitudes, LONGITUDES, atol=1e-9)
    return next(source.read([record]))


@pytest.mark.parametrize("edition", [1, 2])
def test_a_field_is_read_with_its_headers(tmp_path: Path, edition: int) -> None:
    path = write(tmp_path / "a.grib", message(temperature_map(), edition))
    (record,) = GribSource(path).records()
    assert (record.variable, record.level, record.level_type) == (
        "temperature",
        500,
        "isobaricInhPa",
    )
    assert record.valid_time == np.datetime64("2026-06-24T00:00")
    assert record.grid == "regular_ll 8x16"
    assert record.usable, record.why
    np.testing.assert_allclose(read_one(path), temperature_map(), atol=STEP)


@pytest.mark.parametrize("edition", [1, 2])
def test_south_to_north_is_turned(tmp_path: Path, edition: int) -> None:
    data = message(temperature_map()[::-1], edition, **SOUTH_NORTH)
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


@pytest.mark.parametrize("edition", [1, 2])
def test_columns_first_are_transposed(tmp_path: Path, edition: int) -> None:
    data = message(temperature_map().T, edition, jPointsAreConsecutive=1)
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


def test_east_to_west_is_turned(tmp_path: Path) -> None:
    data = message(
        temperature_map()[:, ::-1],
        iScansNegatively=1,
        longitudeOfFirstGridPointInDegrees=337.5,
        longitudeOfLastGridPointInDegrees=0.0,
    )
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


def test_alternating_rows_are_turned(tmp_path: Path) -> None:
    snake = temperature_map().copy()
    snake[1::2] = snake[1::2, ::-1]
    data = message(snake, alternativeRowScanning=1)
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


@pytest.mark.parametrize(("first", "last"), [(180.0, 157.5), (-180.0, 157.5), (-90.0, 247.5)])
def test_any_longitude_origin_is_rolled_to_zero(tmp_path: Path, first: float, last: float) -> None:
    shift = int(first / 22.5) % 16
    data = message(
        np.roll(temperature_map(), -shift, axis=1),
        longitudeOfFirstGridPointInDegrees=first,
        longitudeOfLastGridPointInDegrees=last,
    )
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


def test_a_wrong_increment_in_the_header_changes_nothing(tmp_path: Path) -> None:
    data = message(temperature_map(), iDirectionIncrementInDegrees=2.0)
    np.testing.assert_allclose(read_one(write(tmp_path / "a", data)), temperature_map(), atol=STEP)


def test_a_bitmap_reads_as_missing(tmp_path: Path) -> None:
    holed = temperature_map()
    holed[2, 3] = np.nan
    values = read_one(write(tmp_path / "a", message(holed)))
    assert np.argwhere(np.isnan(values)).tolist() == [[2, 3]]


def test_a_constant_field_is_read(tmp_path: Path) -> None:
    values = read_one(write(tmp_path / "a", message(np.full((8, 16), 273.0))))
    np.testing.assert_array_equal(values, 273.0)


def test_statistics_are_over_points_that_are_not_missing(tmp_path: Path) -> None:
    holed = temperature_map()
    holed[0, 0] = np.nan
    source = GribSource(write(tmp_path / "a", message(holed)))
    found = source.statistics(source.records()[0])
    assert found.missing == 1
    assert (found.min, found.max) == pytest.approx((201.0, 327.0), abs=STEP)
    assert found.mean == pytest.approx(np.nanmean(holed), abs=STEP)


def test_every_field_of_a_multi_field_message_is_found(tmp_path: Path) -> None:
    u = eccodes.codes_new_from_message(message(temperature_map() - 264.0, paramId=131))
    v = eccodes.codes_new_from_message(message(264.0 - temperature_map(), paramId=132))
    multi = eccodes.codes_grib_multi_new()
    eccodes.codes_grib_multi_append(u, 0, multi)
    eccodes.codes_grib_multi_append(v, 4, multi)
    path = tmp_path / "uv.grib2"
    with path.open("wb") as stream:
        eccodes.codes_grib_multi_write(multi, stream)
    for handle in (u, v):
        eccodes.codes_release(handle)
    eccodes.codes_grib_multi_release(multi)
    source = GribSource(path)
    records = source.records()
    assert [(r.variable, r.message) for r in records] == [
        ("u_component_of_wind", 1),
        ("v_component_of_wind", 1),
    ]
    first, second = source.read(records)
    np.testing.assert_allclose(first, temperature_map() - 264.0, atol=STEP)
    np.testing.assert_allclose(second, 264.0 - temperature_map(), atol=STEP)


def test_editions_1_and_2_are_read_from_one_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a", message(temperature_map(), 1), message(temperature_map(), 2, level=850)
    )
    assert [record.level for record in GribSource(path).records()] == [500, 850]


def test_levels_below_one_hpa_keep_their_fraction(tmp_path: Path) -> None:
    surface = {"scaleFactorOfFirstFixedSurface": 0, "scaledValueOfFirstFixedSurface": 10}  # Pa
    data = message(temperature_map(), **surface)
    assert GribSource(write(tmp_path / "a", data)).records()[0].level == 0.1


def test_an_average_is_not_usable(tmp_path: Path) -> None:
    data = message(temperature_map(), productDefinitionTemplateNumber=8, stepType="avg")
    (record,) = GribSource(write(tmp_path / "a", data)).records()
    assert not record.usable
    assert "not a value at a point in time" in record.why


def test_wind_along_the_grid_is_not_usable(tmp_path: Path) -> None:
    data = message(temperature_map() - 264.0, paramId=131, uvRelativeToGrid=1)
    (record,) = GribSource(write(tmp_path / "a", data)).records()
    assert not record.usable
    assert "uvRelativeToGrid" in record.why


def test_a_regional_grid_is_not_usable(tmp_path: Path) -> None:
    data = message(temperature_map(), longitudeOfLastGridPointInDegrees=150.0)
    (record,) = GribSource(write(tmp_path / "a", data)).records()
    assert not record.usable
    assert "regional grid" in record.why


def test_zero_bytes_between_messages_are_padding(tmp_path: Path) -> None:
    one = message(temperature_map())
    path = write(tmp_path / "a", one, bytes(100), one, bytes(20))
    assert len(GribSource(path).records()) == 2


def test_only_the_fields_asked_for_are_read(tmp_path: Path) -> None:
    one = message(temperature_map())
    source = GribSource(write(tmp_path / "a", *[one] * 50))
    before = source.bytes_read
    next(source.read(source.records()[10:11]))
    assert source.bytes_read - before == len(one)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><head><title>404</title></head></html>", "HTML page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither GRIB, netCDF nor zarr"),
        (message(temperature_map())[:-10], "is truncated: message 1 at byte 0"),
        (message(temperature_map()) * 2 + b"GRIB", "is truncated: message 3"),
        (message(temperature_map()) + b"padding" + message(temperature_map()), "belong to no GRIB"),
        (message(temperature_map()) + b"<html>", "belong to no GRIB message"),
        (message(temperature_map())[:-4] + b"7778", "no 7777"),
        (b"\x1f\x8b\x08" + bytes(50), "is compressed with gzip; unpack it first"),
        (b"BZh91AY" + bytes(50), "is compressed with bzip2; unpack it first"),
        (b"BUFR" + bytes(50), "is BUFR: observations, no fields"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"# Notes on GRIB files\n", "neither GRIB, netCDF nor zarr"),
        (b"GRIC" + message(temperature_map())[4:], "neither GRIB"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.grib"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        open_source(path)
    assert "broken.grib" in str(caught.value)


def test_a_length_that_lies_is_refused(tmp_path: Path) -> None:
    data = bytearray(message(temperature_map()))
    data[15] -= 8
    with pytest.raises(DataError, match="damaged: message 1"):
        open_source(write(tmp_path / "a", bytes(data)))


def test_damaged_packing_is_refused_by_message(tmp_path: Path) -> None:
    data = bytearray(message(temperature_map()))
    packing = data.find(bytes([0, 0, 0, 21, 5]))
    data[packing + 9 : packing + 11] = (777).to_bytes(2, "big")  # template number
    source = open_source(write(tmp_path / "a", bytes(data)))
    with pytest.raises(DataError, match=r"message 1 .* cannot be decoded"):
        list(source.read(source.records()))


def test_eccodes_itself_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its lines on stderr would stand before the one message of the command."""
    data = message(temperature_map(), packingType="grid_ieee")
    GribSource(write(tmp_path / "a", data))
    handle = eccodes.codes_new_from_message(data)
    with pytest.raises(eccodes.CodesInternalError):
        eccodes.codes_get_values(handle, ktype=np.float32)
    eccodes.codes_release(handle)
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_is_refused_or_gives_a_field(tmp_path: Path) -> None:
    """Whatever the bit, reading ends with values or with a DataError, never in another way."""
    whole = message(temperature_map(), edition=1)
    rng = np.random.default_rng(1)
    num_refused = 0
    for bit in rng.integers(0, 8 * 200, 150):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        try:
            source = open_source(write(tmp_path / "a", bytes(data)))
            for record in source.records():
                source.statistics(record)
        except DataError:
            num_refused += 1
    assert 0 < num_refused < 150


def test_a_level_below_zero_has_its_sign(tmp_path: Path) -> None:
    surface = {
        "typeOfFirstFixedSurface": 109,  # potential vorticity
        "scaleFactorOfFirstFixedSurface": 9,
        "scaledValueOfFirstFixedSurface": (1 << 31) + 2000,
    }
    (record,) = GribSource(write(tmp_path / "a", message(temperature_map(), **surface))).records()
    assert record.level_type == "potentialVorticity"
    assert record.level == -2000


def test_an_unknown_parameter_is_told_by_its_numbers(tmp_path: Path) -> None:
    code = {"parameterCategory": 1, "parameterNumber": 219}
    (record,) = GribSource(write(tmp_path / "a", message(temperature_map(), **code))).records()
    assert "discipline 0, parameterCategory 1, parameterNumber 219" in record.why
