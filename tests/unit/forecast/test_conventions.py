"""Products read by others' tools: CF checkers, cf-xarray, plain xarray, WeatherBench's names."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.forecast.grib_keys import spelled_out
from jigsaw_forecast.forecast.output import open_writer
from jigsaw_forecast.forecast.product import OutputSpec
from tests.unit.forecast.made_up import FIELDS, INIT, hours, make_spec, make_state

# weatherbench2: dims of a forecast by initial time, https://weatherbench2.readthedocs.io
BY_INIT_DIMS = ("time", "prediction_timedelta", "level", "latitude", "longitude")


CHECKER = """
import sys
from compliance_checker.runner import CheckSuite, ComplianceChecker
CheckSuite.load_all_available_checkers()
ComplianceChecker.run_checker(
    sys.argv[1], ["cf:1.11"], 0, "strict", output_filename=sys.argv[2], output_format="json"
)
"""
# What WeatherBench's readers need and a checker of CF complains of: `time` is the initial time (a
# forecast_reference_time), lead time comes second, names begin with 2m and 10m.
LAYOUT = (
    "'time' should have standard_name='time', found: 'forecast_reference_time'",
    "should begin with a letter",
    "not in the recommended order T, Z, Y, X",
)


def write_all(path: Path, spec: OutputSpec) -> Path:
    writer = open_writer(path, spec, overwrite=False)
    for member in spec.members or (None,):
        for hour, lead in zip(spec.lead_hours, spec.lead_times, strict=True):
            writer.write(make_state(spec, hour), member)
            writer.mark_done(INIT, lead, member)
    writer.finish()
    return path


@pytest.fixture(scope="module", params=["single", "members"])
def netcdf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cf") / "f.nc"
    changes: dict[str, object] = {"attributes": {"title": "test", "history": "a test"}}
    if request.param == "members":
        changes |= {"members": (0, 1), "num_members": 2}
    return write_all(path, make_spec(**changes))


def test_compliance_checker_finds_what_weatherbenchs_layout_asks_for_alone(
    netcdf: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("compliance_checker") is None:
        pytest.skip("compliance-checker is not installed")
    found = tmp_path / "found.json"
    # its libraries do not go well with those of this process
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECKER, str(netcdf), str(found)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert found.exists(), done.stdout + done.stderr
    (report,) = json.loads(found.read_text()).values()
    told = [text for result in report["all_priorities"] for text in result["msgs"]]
    others = [text for text in told if not any(part in text for part in LAYOUT)]
    assert others == []


def test_cf_xarray_finds_axes_and_standard_names(netcdf: Path) -> None:
    pytest.importorskip("cf_xarray", reason="cf-xarray is not installed")
    with xr.open_dataset(netcdf) as data:
        assert data.cf.axes["X"] == ["longitude"]
        assert data.cf.axes["Y"] == ["latitude"]
        assert data.cf.axes["Z"] == ["level"]
        assert data.cf.coordinates["latitude"] == ["latitude"]
        assert data.cf.standard_names["geopotential"] == ["geopotential"]
        assert data.cf.standard_names["forecast_period"] == ["prediction_timedelta"]
        assert data.cf.standard_names["forecast_reference_time"] == ["time"]
        assert data.cf["air_pressure_at_mean_sea_level"].name == "mean_sea_level_pressure"


@pytest.mark.parametrize("name", ["f.zarr", "f.nc"])
def test_a_product_has_the_layout_of_weatherbench_without_arguments(
    tmp_path: Path, name: str
) -> None:
    path = write_all(tmp_path / name, make_spec())
    data = xr.open_zarr(path) if name.endswith(".zarr") else xr.open_dataset(path)
    assert data["geopotential"].dims == BY_INIT_DIMS
    assert data["2m_temperature"].dims == tuple(d for d in BY_INIT_DIMS if d != "level")
    assert data["time"].dtype.kind == "M"
    assert data["prediction_timedelta"].dtype.kind == "m"
    # what weatherbench2's evaluation does first: valid times, then truth at them
    valid = data["time"] + data["prediction_timedelta"]
    assert valid.values.astype("datetime64[h]").tolist() == [
        [(INIT + lead).astype("datetime64[h]").item() for lead in hours(0, 6)]
    ]
    assert data["geopotential"].sel(level=500).shape == (1, 2, 8, 16)
    assert data["geopotential"].dtype == np.float32
    data.close()


@pytest.mark.parametrize(
    ("keys", "packing", "bits"),
    [
        ({}, "grid_ccsds", 16),
        ({"packing": "ccsds", "bits": "12"}, "grid_ccsds", 12),
        ({"packing": "simple", "bits": "24"}, "grid_simple", 24),
        ({"packing": "simple", "bits": "8"}, "grid_simple", 8),
    ],
)
def test_packing_and_bits_are_those_asked_for_and_the_values_as_near(
    tmp_path: Path, keys: dict[str, str], packing: str, bits: int
) -> None:
    spec = make_spec(grib_keys=spelled_out(keys), lead_times=hours(6))
    path = write_all(tmp_path / "f.grib2", spec)
    state = make_state(spec, 6)
    with path.open("rb") as file:
        for index, field in enumerate(FIELDS):
            message = eccodes.codes_grib_new_from_file(file)
            assert eccodes.codes_get(message, "packingType") == packing
            assert eccodes.codes_get(message, "bitsPerValue") == bits
            found = eccodes.codes_get_values(message)
            eccodes.codes_release(message)
            expected = state.data[index].numpy().astype(np.float64).ravel()
            if field.variable.startswith("total_precipitation"):
                expected = expected.clip(min=0) * 1000.0  # kg m-2
                found = found.clip(min=0)
            # the step is the next power of 2 at most, and the reference value is rounded
            step = 2 * np.ptp(expected) / (2**bits - 1)
            rounding = float(np.spacing(np.float32(np.abs(expected).max())))
            assert np.abs(found - expected).max() <= step + rounding, field
