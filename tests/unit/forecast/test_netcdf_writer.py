"""Claims about netCDF products, read back by xarray."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jigsaw_forecast.forecast.output import open_writer
from tests.unit.forecast.made_up import FIELDS, INIT, hours, make_spec, make_state


@pytest.fixture
def written(tmp_path: Path) -> Path:
    spec = make_spec()
    writer = open_writer(tmp_path / "f.nc", spec, overwrite=False)
    for lead in (0, 6):
        writer.write(make_state(spec, lead))
        writer.mark_done(INIT, np.timedelta64(lead, "h"))
    writer.finish()
    return tmp_path / "f.nc"


def test_open_dataset_gives_the_values_to_the_bit(written: Path) -> None:
    expected = make_state(make_spec(), 6).data.numpy()
    with xr.open_dataset(written) as file:
        for field, values in zip(FIELDS, expected, strict=True):
            found = file[field.variable].sel(time=INIT, prediction_timedelta=hours(6)[0])
            if field.level_hpa:
                found = found.sel(level=field.level_hpa)
            assert np.array_equal(found.values, values)


def test_open_dataset_decodes_init_lead_and_valid_time(written: Path) -> None:
    with xr.open_dataset(written) as file:
        assert file.time.values[0] == INIT
        assert list(file.prediction_timedelta.values) == list(hours(0, 6))
        assert file.valid_time.values[0, 1] == INIT + hours(6)[0]
        assert "valid_time" in file["geopotential"].coords


def test_file_says_that_it_follows_cf(written: Path) -> None:
    with xr.open_dataset(written) as file:
        assert file.attrs["Conventions"] == "CF-1.11"
        assert file.time.attrs["standard_name"] == "forecast_reference_time"
        assert file.prediction_timedelta.attrs["standard_name"] == "forecast_period"
        assert file["mean_sea_level_pressure"].attrs["units"] == "Pa"


def test_precipitation_is_nan_at_lead_zero(written: Path) -> None:
    with xr.open_dataset(written) as file:
        assert bool(file["total_precipitation_6hr"][0, 0].isnull().all())
        assert bool(file["total_precipitation_6hr"][0, 1].notnull().all())
