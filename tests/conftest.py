"""What all tests share: one thread a process, and the folder of real files."""

import os
from pathlib import Path

import pytest

# two cores are shared by up to eight ranks; set before the first test module imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real GRIB, zarr and netCDF files; the test skips where there is none."""
    named = os.environ.get("JIGSAW_TEST_DATA")
    folder = (Path(named) if named else ROOT.parent / "shared" / "data") / "real"
    if not folder.is_dir():
        pytest.skip(f"no real files: {folder} does not exist; set JIGSAW_TEST_DATA")
    return folder
