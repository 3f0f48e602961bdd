"""`jigsaw-forecast inspect`: what a checkpoint or a data file holds."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.errors import CheckpointError, DataError, MeshError
from jigsaw_forecast.log import track

if TYPE_CHECKING:
    from jigsaw_forecast.data.records import FieldRecord, Source

_MAX_SHARDS_SHOWN = 4
_COLUMNS = ("variable", "level", "valid_time", "grid", "units", "min", "max", "mean", "missing")


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|FILE", help="Checkpoint (name or folder) or GRIB, zarr, netCDF."
        ),
    ],
    mesh: Annotated[
        str | None,
        typer.Option(
            "--mesh",
            metavar="AXIS=DEGREE,...",
            help="Show what each rank of this mesh would hold and read: domain=2,tensor=2.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Shows what a checkpoint or a data file holds.

    A checkpoint: architecture, grid, fields, provenance, licence and digests. A data file: every
    field in it, its extremes as decoded, and whether a forecast can start from it.

    \b
    Examples:
      jigsaw-forecast inspect nature-run
      jigsaw-forecast inspect nature-run --mesh domain=2,tensor=2
      jigsaw-forecast inspect gfs.grb --json
    """
    # numpy takes a tenth of a second to import and --help must not wait
    from jigsaw_forecast.cli.parse import parse_mesh

    path = Path(target)
    degrees = None if mesh is None else parse_mesh(mesh)
    if not path.exists() or (path / "model.json").is_file():
        _inspect_checkpoint(target, degrees, as_json=as_json)
    elif degrees is not None:
        raise MeshError(f"{path} is no checkpoint; --mesh shows how the ranks share one")
    else:
        _inspect_data(path, as_json=as_json)


def _inspect_checkpoint(name: str, degrees: dict[str, int] | None, *, as_json: bool) -> None:
    # torch and safetensors take seconds to import and --help must not wait
    from jigsaw_forecast.checkpoint.describe import describe_checkpoint
    from jigsaw_forecast.checkpoint.format import find_checkpoint

    try:
        folder = find_checkpoint(name)
    except CheckpointError as error:
        raise DataError(f"{name}: no such file; {error}") from None
    description = describe_checkpoint(folder, degrees)
    if as_json:
        typer.echo(json.dumps(description, indent=1, default=str))
    else:
        typer.echo("\n".join(_outline(_shortened(description))))


def _shortened(description: dict[str, Any]) -> dict[str, Any]:
    """A description that fits a screen: `--json` has what is left out."""
    from jigsaw_forecast.checkpoint.progress import format_bytes

    shown = dict(description)
    shown["bytes"] = format_bytes(description["bytes"])
    shown["plausible"] = {
        variable: ", ".join(
            f"{name} {low:.4g} to {high:.4g}".removeprefix(f"{variable} ")
            for name, low, high in bounds
        )
        for variable, bounds in _by_variable(description["plausible"]).items()
    }
    shards = shown.pop("shards")
    if len(shards) > _MAX_SHARDS_SHOWN:
        shown["shards"] = f"{len(shards)} files; --json lists their digests"
    else:
        shown["shards"] = {
            name: f"{format_bytes(shard['bytes'])}, sha256 {shard['sha256']}"
            for name, shard in shards.items()
        }
    if "mesh" in shown:
        mesh = shown.pop("mesh")
        ranks = mesh.pop("ranks")
        shown["mesh"] = ",".join(f"{axis}={degree}" for axis, degree in mesh.items())
        shown["ranks of one model group"] = {
            f"rank {rank['rank']} (domain {rank['domain']}, tensor {rank['tensor']})": (
                f"stores {format_bytes(rank['parameter_bytes'])} of parameters, "
                f"reads {format_bytes(rank['bytes_to_read'])}"
            )
            for rank in ranks
        }
    return shown


def _by_variable(
    plausible: dict[str, list[float]],
) -> dict[str, list[tuple[str, float, float]]]:
    """Ranges of fields that differ in the level only, together; equal neighbours as one."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for name, (low, high) in plausible.items():
        variable = name.rstrip("0123456789") or name
        ranges = found.setdefault(variable, [])
        if ranges and ranges[-1][1:] == (low, high):
            first = ranges[-1][0].partition("-")[0]
            ranges[-1] = (f"{first}-{name.removeprefix(variable)}", low, high)
        else:
            ranges.append((name, low, high))
    return found


def _inspect_data(path: Path, *, as_json: bool) -> None:
    # the readers' libraries take seconds to import and --help must not wait
    from jigsaw_forecast.data.source import open_source

    source = open_source(path)
    rows = _describe_fields(source)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo("\n".join(_table(rows)))


def _describe_fields(source: "Source") -> list[dict[str, Any]]:
    records = source.records()
    return [
        _describe_field(source, record)
        for record in track(records, f"reading {source.path}", len(records), "fields")
    ]


def _describe_field(source: "Source", record: "FieldRecord") -> dict[str, Any]:
    statistics = source.statistics(record)
    is_empty = not math.isfinite(statistics.mean)
    why = record.why or ("every point is missing" if is_empty else "")
    return {
        "variable": record.variable,
        "level": record.level,
        "valid_time": _time(record.valid_time),
        "init_time": _time(record.init_time),
        "member": record.member or 0,  # a file that numbers no members holds one
        "grid": record.grid,
        "min": _number(statistics.min),
        "max": _number(statistics.max),
        "mean": _number(statistics.mean),
        "missing": statistics.missing,
        "usable": record.usable and not is_empty,
        "why": why,
        "short_name": record.short_name,
        "level_type": record.level_type,
        "units": record.units,
        "message": record.message,
    }


def _time(time: Any) -> str | None:
    text = str(time)
    return None if text == "NaT" else text


def _number(value: float) -> float | None:
    """The value, or None where every point is missing: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Aligned columns, one line a field, with the reason where a forecast cannot use it."""
    cells = [list(_COLUMNS)] + [[_cell(row[name]) for name in _COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    remarks = ["", *(f"not usable: {row['why']}" if not row["usable"] else "" for row in rows)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), remark]
        ).rstrip()
        for line, remark in zip(cells, remarks, strict=True)
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _outline(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _outline(value, f"{indent}  ")
        elif isinstance(value, list | tuple):
            yield f"{indent}{key}: {', '.join(map(str, value))}"
        else:
            yield f"{indent}{key}: {value}"
