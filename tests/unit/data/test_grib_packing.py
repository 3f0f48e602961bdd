"""Damaged GRIB 2 messages: what eccodes would crash on is refused before it is asked."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import eccodes
import numpy as np
import pytest

from jigsaw_forecast.data.grib import GribSource
from jigsaw_forecast.data.grib_packing import why_not_unpackable
from jigsaw_forecast.errors import DataError
from tests.conftest import ROOT

PACKINGS = (
    "grid_simple",
    "grid_complex",
    "grid_complex_spatial_differencing",
    "grid_ccsds",
    "grid_ieee",
    "grid_jpeg",
    "grid_png",
)
ROWS, COLUMNS = 13, 24


def message(
    packing: str, *, has_bitmap: bool = False, is_constant: bool = False, edition: int = 2
) -> bytes:
    lat = np.linspace(-1, 1, ROWS)[:, None]
    lon = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)
    values = 280 + 0 * lon + 0 * lat if is_constant else 280 + 20 * lat + 9 * np.sin(lon) * lat
    handle = eccodes.codes_grib_new_from_samples(f"regular_ll_sfc_grib{edition}")
    keys = {
        "Ni": COLUMNS,
        "Nj": ROWS,
        "latitudeOfFirstGridPointInDegrees": 90.0,
        "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfLastGridPointInDegrees": 345.0,
        "iDirectionIncrementInDegrees": 15.0,
        "jDirectionIncrementInDegrees": 15.0,
        "paramId": 167,
        "bitsPerValue": 16,
    }
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    if has_bitmap:
        values = values.copy()
        values[3, 4:9] = 9999.0
        eccodes.codes_set(handle, "bitmapPresent", 1)
        eccodes.codes_set(handle, "missingValue", 9999.0)
    eccodes.codes_set_values(handle, values.ravel())
    eccodes.codes_set(handle, "packingType", packing)
    found: bytes = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return found


@cache
def packings() -> tuple[str, ...]:
    """Those that this eccodes was built with."""
    found = []
    for packing in PACKINGS:
        with suppress(eccodes.CodesInternalError):
            message(packing)
            found.append(packing)
    return tuple(found)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["plain", "has_bitmap", "is_constant"])
def test_whole_messages_of_every_packing_are_let_through(packing: str, kind: str) -> None:
    if packing not in packings() or (packing, kind) == ("grid_png", "is_constant"):
        pytest.skip(f"this eccodes does not pack {packing} {kind}")
    whole = message(packing, **({} if kind == "plain" else {kind: True}))
    assert why_not_unpackable(whole) == ""


@pytest.mark.parametrize("edition", [1, 2])
@pytest.mark.parametrize(
    "packing", [*PACKINGS, "grid_second_order", "grid_simple_log_preprocessing"]
)
@pytest.mark.parametrize("has_bitmap", [False, True])
def test_every_packing_is_read_as_eccodes_reads_it_in_double_precision(
    packing: str, has_bitmap: bool, edition: int, tmp_path: Path
) -> None:
    """Some packings eccodes reads to double precision only, one of them wrong to single."""
    try:
        whole = message(packing, has_bitmap=has_bitmap, edition=edition)
    except eccodes.CodesInternalError:
        pytest.skip(f"this eccodes does not pack {packing} in edition {edition}")
    if (packing, edition) == ("grid_second_order", 2):
        pytest.skip("eccodes does not read back what it packs so in edition 2")
    handle = eccodes.codes_new_from_message(whole)
    eccodes.codes_set(handle, "missingValue", -1e34)
    expected = eccodes.codes_get_values(handle).reshape(ROWS, COLUMNS)
    eccodes.codes_release(handle)
    (tmp_path / "a.grib").write_bytes(whole)
    source = GribSource(tmp_path / "a.grib")
    (values,) = source.read(source.records())
    assert values.dtype == np.float32
    assert np.isnan(values).sum() == (5 if has_bitmap else 0)
    np.testing.assert_allclose(
        values, np.where(expected == -1e34, np.nan, expected), rtol=2e-7, equal_nan=True
    )


@pytest.mark.parametrize("has_bitmap", [False, True])
def test_whole_messages_of_edition_1_are_let_through(has_bitmap: bool) -> None:
    assert why_not_unpackable(message("grid_simple", has_bitmap=has_bitmap, edition=1)) == ""


def test_no_damage_ends_the_process(tmp_path: Path) -> None:
    whole = {name: message(name) for name in PACKINGS if name in packings()}
    for has_bitmap in (False, True):
        bitmap = "-bitmap" if has_bitmap else ""
        whole[f"edition-1{bitmap}"] = message("grid_simple", has_bitmap=has_bitmap, edition=1)
    paths = []
    for name, content in whole.items():
        paths.append(tmp_path / f"{name}.grib")
        paths[-1].write_bytes(content)
    script = ROOT / "benchmarks" / "damaged_grib.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, paths), "--cases", "12"], capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{12 * len(paths)} damaged copies" in done.stdout


def section(whole: bytes, number: int) -> int:
    """Where a section begins."""
    position = 16
    while whole[position + 4] != number:
        position += int.from_bytes(whole[position : position + 4], "big")
    return position


@pytest.mark.parametrize(
    ("octet", "value", "told"),
    [
        (35, 200, "groups"),  # number of groups, last octet
        (37, 40, "bits for the groups' widths"),
        (47, 60, "bits for the groups' widths and lengths"),
        (20, 200, "bits a value"),
        (49, 77, "spatial differencing of order"),
    ],
)
def test_headers_of_complex_packing_that_contradict_the_data_are_named(
    tmp_path: Path, octet: int, value: int, told: str
) -> None:
    damaged = bytearray(message("grid_complex_spatial_differencing"))
    damaged[section(damaged, 5) + octet - 1] = value
    path = tmp_path / "bad.grib2"
    path.write_bytes(damaged)
    source = GribSource(path)
    with pytest.raises(DataError, match=r"message 1 \(2t\) cannot be decoded") as refused:
        source.statistics(source.records()[0])
    assert told in str(refused.value) or "data section" in str(refused.value)
    assert "fetch it again" in str(refused.value)


@pytest.mark.parametrize(
    ("octet", "value", "told"),
    [
        (4, 115, "a grid section of 32 bytes where its headers need 114"),
        (5, 10, "a grid section of 32 bytes where its headers need 42"),
        (9, 200, "a bitmap of"),
    ],
)
def test_sections_of_edition_1_that_contradict_each_other_are_named(
    octet: int, value: int, told: str
) -> None:
    damaged = bytearray(message("grid_simple", has_bitmap=True, edition=1))
    damaged[8 + int.from_bytes(damaged[8:11], "big") + octet] = value
    assert told in why_not_unpackable(bytes(damaged))


def test_a_constant_field_without_groups_is_whole() -> None:
    # as NCEP's encoder writes it: no bits, no groups, the reference value for every point
    whole = bytearray(message("grid_complex_spatial_differencing"))
    start = section(whole, 5)
    whole[start + 19] = 0
    whole[start + 31 : start + 35] = bytes(4)
    assert why_not_unpackable(bytes(whole)) == ""


@pytest.mark.parametrize("edition", [1, 2])
def test_a_unit_of_time_that_no_table_has_is_refused(edition: int, tmp_path: Path) -> None:
    damaged = bytearray(message("grid_simple", edition=edition))
    start = 8 if edition == 1 else section(damaged, 4)
    damaged[start + 17] = 17  # eccodes divides by zero
    (tmp_path / "bad.grib").write_bytes(damaged)
    with pytest.raises(DataError, match="its unit of time is 17, which no code table has"):
        GribSource(tmp_path / "bad.grib").records()


def test_a_damaged_picture_is_told_by_its_checksum() -> None:
    if "grid_png" not in packings():
        pytest.skip("this eccodes does not pack grid_png")
    damaged = bytearray(message("grid_png"))
    damaged[-40] ^= 1
    assert "checksum of its PNG picture is wrong" in why_not_unpackable(bytes(damaged))


def test_data_that_are_cut_short_are_named() -> None:
    damaged = bytearray(message("grid_simple"))
    damaged[section(damaged, 5) + 19] = 24  # bits a value, where the data hold 16
    assert "a data section of" in why_not_unpackable(bytes(damaged))


@pytest.mark.parametrize("packing", ["grid_simple", "grid_jpeg"])
def test_a_bitmap_of_another_number_of_points_is_named(packing: str) -> None:
    if packing not in packings():
        pytest.skip(f"this eccodes does not pack {packing}")
    damaged = bytearray(message(packing, has_bitmap=True))
    damaged[section(damaged, 6) + 6] ^= 0b1000  # one point less
    there = ROWS * COLUMNS - 5
    assert why_not_unpackable(bytes(damaged)) == (
        f"{there} values where the bitmap has {there - 1} points"
    )


@pytest.mark.skipif("grid_jpeg" not in packings(), reason="this eccodes does not pack grid_jpeg")
@pytest.mark.parametrize(
    ("octet", "value", "told"),
    [
        (1, 0, "no JPEG 2000 picture"),
        (11, 90, "a JPEG 2000 picture of 90 x"),  # width, last octet
    ],
)
def test_a_jpeg_picture_of_another_size_is_named(octet: int, value: int, told: str) -> None:
    damaged = bytearray(message("grid_jpeg"))
    damaged[section(damaged, 7) + 5 + octet] = value
    assert told in why_not_unpackable(bytes(damaged))


@pytest.mark.parametrize("has_bitmap", [False, True])
@pytest.mark.parametrize(
    ("octet", "value", "told"),
    [
        (22, 60, "60, "),  # bits of the groups' widths
        (23, 1, "values in all"),  # bits of their lengths
        (17, 200, "bytes where its headers need"),  # number of groups, last octet
    ],
)
def test_headers_of_second_order_packing_that_contradict_the_data_are_named(
    has_bitmap: bool, octet: int, value: int, told: str
) -> None:
    whole = message("grid_second_order", has_bitmap=has_bitmap, edition=1)
    assert why_not_unpackable(whole) == ""
    start = 8
    for _ in range(3 if has_bitmap else 2):
        start += int.from_bytes(whole[start : start + 3], "big")
    damaged = bytearray(whole)
    damaged[start + octet - 1] = value
    assert told in why_not_unpackable(bytes(damaged))
