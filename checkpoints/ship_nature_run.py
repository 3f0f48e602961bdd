"""Makes the shipped checkpoint's folder from a training's last checkpoint and its nature run.

    python checkpoints/ship_nature_run.py outputs/nature-run/checkpoints/step-00006400 nature.zarr

Writes `checkpoints/nature-run/`: the weights as they are, `model.json` with the shipped name and
notice, `initial.zarr` (initial conditions) and `truth.zarr` (what the forecasts can be compared
with).
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec

from jigsaw_forecast.checkpoint.format import read_manifest, verify_digests, write_manifest

NAME = "nature-run"
NOTICE = "A simulated planet (jcm, SPEEDY physics at T31), not the Earth."
INIT_TIMES = ("2026-06-23T00", "2026-06-23T12", "2026-06-24T00", "2026-06-24T12")
TRUTH = slice("2026-06-24T00", "2026-07-05T00")
SURFACE = ("total_precipitation_6hr", "land_sea_mask", "geopotential_at_surface")


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / NAME)
    options = parser.parse_args()
    verify_digests(options.checkpoint)
    output: Path = options.output
    output.mkdir()
    manifest = read_manifest(options.checkpoint)
    for shard in manifest.shards:
        shutil.copy(options.checkpoint / shard, output / shard)
    shipped = manifest.model_copy(update={"name": NAME, "notice": NOTICE})
    write_manifest(output, shipped)

    variables = [field.variable for field in manifest.architecture.prognostic_fields]
    names = [*dict.fromkeys(variables), *SURFACE]
    store = xr.open_zarr(options.store)[names]
    write(store.sel(time=np.array(INIT_TIMES, "datetime64[ns]")), output / "initial.zarr")
    write(store.sel(time=TRUTH), output / "truth.zarr")


def write(data: xr.Dataset, path: Path) -> None:
    """One chunk a variable and time, sealed with a crc32c."""
    data = data.load().drop_encoding()
    data.attrs["notice"] = NOTICE
    encoding = {
        name: {
            "chunks": tuple(1 if dim == "time" else size for dim, size in variable.sizes.items()),
            "compressors": [
                BloscCodec(cname="zstd", clevel=9, shuffle="bitshuffle"),
                Crc32cCodec(),
            ],
        }
        for name, variable in data.data_vars.items()
    }
    data.to_zarr(path, zarr_format=3, encoding=encoding, consolidated=False)


if __name__ == "__main__":
    main()
