"""`jigsaw-forecast selfcheck`: whether this machine can run what the project needs."""

import json
import math
import os
import platform
import statistics
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from jigsaw_forecast import __version__
from jigsaw_forecast.cli.options import command_line
from jigsaw_forecast.cli.run import Device
from jigsaw_forecast.errors import ForecastError
from jigsaw_forecast.parallel.launch import ensure_ranks

# The libraries are imported where they are checked: torch takes seconds and --help must not wait.

_LIBRARIES = (
    "torch",
    "numpy",
    "xarray",
    "zarr",
    "eccodes",
    "cfgrib",
    "earthkit-data",
    "earthkit-meteo",
    "netCDF4",
    "safetensors",
    "pydantic",
    "typer",
    "rich",
    "matplotlib",
)
# 16 bit over a span of 2 K: half a packing step, with a margin for the float32 reference value
_PACKING_TOLERANCE_K = 1e-3
_SLOW_SHARE = 0.8  # of the median, below which a rank is called slow
_LEGEND = (
    "GFLOP/s: float32 matrix products, all ranks at once; alone: one rank of a machine at a time",
    "link: from the rank before; others: gathers over that axis, all ranks at once",
    f"slow: below {_SLOW_SHARE:.0%} of the median rank; other work on the machine shows as well",
)
_WHOLE_FROM = 100.0  # numbers from here on are shown without decimals


def selfcheck(
    context: typer.Context,
    mesh: Annotated[
        str,
        typer.Option(
            "--mesh",
            metavar="AXIS=DEGREE,...",
            help="Also start these ranks, measure their matrix and link rates, mark the slow.",
        ),
    ] = "",
    device: Annotated[
        Device, typer.Option("--device", help="Where the ranks of --mesh compute.")
    ] = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> int | None:
    """Reports versions, GRIB coding, devices and communication backends.

    Ends with exit code 2 where something that every forecast needs does not work.

    \b
    Examples:
      jigsaw-forecast selfcheck
      jigsaw-forecast selfcheck --mesh domain=2
    """
    from jigsaw_forecast.cli.parse import parse_mesh

    degrees = parse_mesh(mesh)
    exit_code = ensure_ranks(math.prod(degrees.values()), command_line(context))
    if exit_code is not None:
        return exit_code
    rates = _measure(degrees, device) if mesh else []
    if os.environ.get("RANK", "0") != "0":
        return None
    report: dict[str, Any] = {"jigsaw-forecast": __version__, "python": platform.python_version()}
    report["versions"], problems = _find_versions()
    for name, check in (
        ("eccodes", _check_eccodes),
        ("devices", _find_devices),
        ("backends", _find_backends),
    ):
        try:
            report[name] = check()
        except Exception as error:  # noqa: BLE001  whatever a library raises is a finding
            problems.append(f"{name}: {error}")
    if mesh:
        report["ranks"] = rates
        problems += [f"rank {r['rank']}: wrong sum" for r in rates if not r["sum_is_right"]]
    report["problems"] = problems
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(_lines(report)))
    if problems:
        raise ForecastError("selfcheck failed: " + "; ".join(problems))
    return None


def _find_versions() -> tuple[dict[str, str], list[str]]:
    versions, problems = {}, []
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            problems.append(f"missing: the Python package {library}; pip install {library}")
    return versions, problems


def _check_eccodes() -> dict[str, str]:
    """Encodes a temperature map as GRIB 2 in a file, reads it back and compares."""
    import eccodes
    import numpy as np

    expected = 280.0 + np.sin(np.linspace(0.0, 6.0, 16 * 31))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "temperature.grib2"
        handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        try:
            eccodes.codes_set_long(handle, "paramId", 167)
            eccodes.codes_set_long(handle, "bitsPerValue", 16)
            eccodes.codes_set_string(handle, "packingType", "grid_ccsds")
            eccodes.codes_set_values(handle, expected)
            with path.open("wb") as file:
                eccodes.codes_write(handle, file)
        finally:
            eccodes.codes_release(handle)
        with path.open("rb") as file:
            handle = eccodes.codes_grib_new_from_file(file)
        try:
            name = eccodes.codes_get_string(handle, "shortName")
            found = eccodes.codes_get_values(handle)
        finally:
            eccodes.codes_release(handle)
    difference = float(np.abs(found - expected).max())
    if name != "2t" or difference > _PACKING_TOLERANCE_K:
        raise ForecastError(
            f"a GRIB 2 map of 2t came back as {name} with a difference of {difference:g} K"
        )
    return {
        "library": eccodes.codes_get_api_version(),
        "definitions": eccodes.codes_definition_path(),
        "round_trip": f"2t, CCSDS, 16 bit: largest difference {difference:.1e} K",
    }


def _find_devices() -> dict[str, Any]:
    import torch

    cuda = [
        {
            "name": torch.cuda.get_device_properties(index).name,
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        }
        for index in range(torch.cuda.device_count())
    ]
    return {"cpu_cores": os.cpu_count(), "cpu_threads": torch.get_num_threads(), "cuda": cuda}


def _find_backends() -> list[str]:
    from jigsaw_forecast.parallel.rates import available_backends

    backends = available_backends()
    if "gloo" not in backends:
        raise ForecastError("missing: torch.distributed's gloo backend")
    return backends


def _measure(degrees: dict[str, int], device: Device) -> list[dict[str, Any]]:
    from jigsaw_forecast.parallel.mesh import choose_device, close_mesh, make_mesh
    from jigsaw_forecast.parallel.rates import measure_rates

    mesh = make_mesh(degrees, choose_device(device.value), {"command": "selfcheck"})
    try:
        return [asdict(rank) for rank in measure_rates(mesh)]
    finally:
        close_mesh()


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"jigsaw-forecast {report['jigsaw-forecast']}, Python {report['python']}"]
    lines += [f"{library} {version}" for library, version in report["versions"].items()]
    lines += [f"eccodes {key}: {value}" for key, value in report.get("eccodes", {}).items()]
    devices = report.get("devices")
    if devices:
        lines.append(f"cpu: {devices['cpu_cores']} cores, {devices['cpu_threads']} threads")
        lines += [
            f"cuda: {d['name']}, {d['memory_bytes'] / 2**30:.0f} GiB" for d in devices["cuda"]
        ]
    lines.append(f"backends: {', '.join(report.get('backends', []))}")
    lines += _rank_table(report.get("ranks", []))
    if report["problems"]:
        return lines
    slow = [
        str(rank["rank"]) for rank in report.get("ranks", []) if _slow_in(rank, report["ranks"])
    ]
    if slow:
        ranks = f"rank{'s' if len(slow) > 1 else ''} {', '.join(slow)}"
        return [*lines, f"all works; {ranks} slower than the others: the slowest sets the pace"]
    return [*lines, "all is well"]


def _rank_table(ranks: list[dict[str, Any]]) -> list[str]:
    """One row for each rank, aligned; rates well below the median are marked."""
    if not ranks:
        return []
    columns = _columns(ranks)
    rows = [["rank", "host", "device", *columns, ""]]
    for index, rank in enumerate(ranks):
        values = [values[index] for values in columns.values()]
        slow = _slow_in(rank, ranks)
        rows.append(
            [
                str(rank["rank"]),
                rank["host"],
                rank["device"],
                *(f"{value:.0f}" if value >= _WHOLE_FROM else f"{value:.2f}" for value in values),
                f"slow: {', '.join(slow)}" if slow else "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [*(_align(row, widths) for row in rows), *_LEGEND]


def _columns(ranks: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {
        "GFLOP/s": [rank["matrix_flops_per_second"] / 1e9 for rank in ranks],
        "alone": [rank["matrix_flops_per_second_alone"] / 1e9 for rank in ranks],
        "link GB/s": [rank["link_bytes_per_second"] / 1e9 for rank in ranks],
        **{
            f"{axis} GB/s": [rank["axis_bytes_per_second"][axis] / 1e9 for rank in ranks]
            for axis in ranks[0]["axis_bytes_per_second"]
        },
    }


def _slow_in(rank: dict[str, Any], ranks: list[dict[str, Any]]) -> list[str]:
    """The columns in which a rank is well below the median."""
    index = ranks.index(rank)
    return [
        name
        for name, values in _columns(ranks).items()
        if values[index] < _SLOW_SHARE * statistics.median(values)
    ]


def _align(row: list[str], widths: list[int]) -> str:
    """Host and device to the left, numbers to the right, remarks as they are."""
    cells = [
        cell.ljust(width) if column in (1, 2) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row[:-1], widths[:-1], strict=True))
    ]
    return "  ".join([*cells, row[-1]]).rstrip()
