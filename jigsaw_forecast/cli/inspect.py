"""`jigsaw-forecast inspect`: what a checkpoint or a data file holds."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jigsaw_forecast.errors import CheckpointError, DataError, MeshError
from jigsaw_forecast.log import count, track

if TYPE_CHECKING:
    from jigsaw_forecast.data.records import FieldRecord, Source

_log = logging.getLogger(__name__)
_MAX_SHARDS_SHOWN = 4
_PRESSURE_LEVEL = "isobaricInhPa"  # as `data.records` has it
# What two maps share that are one field at two times.
_OF_A_FIELD = (
    "variable", "short_name", "level", "level_type", "grid", "units", "usable", "why",
)  # fmt: skip
_COLUMNS = (
    "variable", "level", "valid_time", "message", "grid", "units", "min", "max", "mean", "missing",
)  # fmt: skip


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
    field in it, its extremes as decoded, and whether a forecast can start from it. A field that
    is there at many times has one line; --json has an object for each.

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
    typer.echo("\n".join(_table(_together(rows))))
    _log.info("%s", _verdict(path, rows))


def _verdict(path: Path, rows: list[dict[str, Any]]) -> str:
    """Whether a forecast can start from a file, as far as can be told without a checkpoint."""
    times = len({row["valid_time"] for row in rows} - {None})
    found = f"{path}: {count(len(rows), 'map')} at {count(times, 'time')}"
    usable = [row for row in rows if row["usable"]]
    if not usable:
        return f"{found}; no forecast can start from them: none is usable"
    levels: dict[str, set[Any]] = {}
    for row in usable:
        levels.setdefault(row["variable"], set()).add(row["level"])
    names = [
        f"{name} ({count(len(held), 'level')})" if len(held) > 1 else name
        for name, held in levels.items()
    ]
    first = next((row["valid_time"] for row in usable if row["valid_time"]), None) or "TIME"
    return (
        f"{found}; a forecast can start from {len(usable)} of them: {', '.join(names)}\n"
        "whether that is all that a checkpoint needs: "
        f"jigsaw-forecast check CHECKPOINT --init {first} --input {path}"
    )


def _together(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each field: maps that differ in time or member only are told together."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: dict[tuple[Any, ...], int] = {}
    for row in rows:
        own = tuple(row[name] for name in _OF_A_FIELD)
        place = (*own, row["valid_time"], row["init_time"], row["member"])
        seen[place] = seen.get(place, 0) + 1  # the same twice is two lines: it is a fault
        groups.setdefault((*own, seen[place]), []).append(row)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: list[dict[str, Any]]) -> dict[str, Any]:
    times = sorted({str(row["valid_time"]) for row in group})
    members = {row["member"] for row in group}
    span = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]} ({len(times)} times)"
    if len(members) > 1:
        span = f"{span} ({count(len(members), 'member')})"
    messages = [row["message"] for row in group]
    present = [row for row in group if row["mean"] is not None]
    return group[0] | {
        "valid_time": span,
        "message": f"{min(messages)}-{max(messages)}" if messages[0] else 0,
        "min": min((row["min"] for row in present), default=None),
        "max": max((row["max"] for row in present), default=None),
        "mean": sum(row["mean"] for row in present) / len(present) if present else None,
        "missing": sum(row["missing"] for row in group),
    }


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
    shown = [row | {"level": _level(row), "message": row["message"] or None} for row in rows]
    cells = [list(_COLUMNS)] + [[_cell(row[name]) for name in _COLUMNS] for row in shown]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    remarks = ["", *(f"not usable: {row['why']}" if not row["usable"] else "" for row in rows)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), remark]
        ).rstrip()
        for line, remark in zip(cells, remarks, strict=True)
    ]


def _level(row: dict[str, Any]) -> str | None:
    """`500 hPa`, or the level as coded with what it is a level of."""
    if row["level"] is None or row["level_type"] == "surface":
        return None
    kind = "hPa" if row["level_type"] == _PRESSURE_LEVEL else row["level_type"]
    return f"{row['level']:.10g} {kind}".rstrip()


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
