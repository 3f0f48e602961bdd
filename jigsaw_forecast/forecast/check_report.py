"""The report of a check, as text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jigsaw_forecast.data.conversions import to_si
from jigsaw_forecast.forecast.check_input import MISSING, FieldRow, InputCheck

GB = 1e9
_HEADINGS = (
    "field", "status", "from", "message", "level", "units", "grid", "min", "max", "plausible",
)  # fmt: skip
_MOST_TABLES = 1


@dataclass(frozen=True)
class MemoryCheck:
    """Bytes of the busiest rank.

    Attributes:
        parameter_bytes: Of its pieces of the weights.
        activation_bytes: Most that a step holds beside them.
        buffer_bytes: Most that travels at once.
        base_bytes: Of a process before the model.
        peak_bytes: Most at once of all of these.
        available_bytes: What the rank may take, None where that is not known.
    """

    parameter_bytes: int
    activation_bytes: int
    buffer_bytes: int
    base_bytes: int
    peak_bytes: int
    available_bytes: int | None

    @property
    def shortage(self) -> str:
        """What is wrong, otherwise empty."""
        if self.available_bytes is None or self.peak_bytes <= self.available_bytes:
            return ""
        return (
            f"too little memory: a rank needs {self.peak_bytes / GB:.2f} GB, "
            f"{self.available_bytes / GB:.2f} GB is available to each; use a larger --mesh or "
            "--weights streamed (`jigsaw-forecast plan` lists what fits)"
        )


@dataclass(frozen=True)
class DiskCheck:
    """One file system that products go to.

    Attributes:
        folders: On it.
        needed_bytes: At most, before compression.
        free_bytes: Now.
    """

    folders: Sequence[str]
    needed_bytes: int
    free_bytes: int

    @property
    def shortage(self) -> str:
        """What is wrong, otherwise empty."""
        if self.needed_bytes <= self.free_bytes:
            return ""
        return (
            f"too little disk in {', '.join(self.folders)}: products need up to "
            f"{_size(self.needed_bytes)}, {_size(self.free_bytes)} is free; free some "
            "space, or write fewer --variables or lead times"
        )


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of the run by rates; an estimate, not a measurement of it.

    Attributes:
        read: Of initial states, over the ranks.
        step: Of one rollout step.
        rollout: Of all steps.
        write: Of products, over the ranks; goes on beside the rollout.
        device: Kind of device.
        source: Where its rates come from.
    """

    read: float
    step: float
    rollout: float
    write: float
    device: str
    source: str

    @property
    def total(self) -> float:
        """Reading, then the slower of computing and writing."""
        return self.read + max(self.rollout, self.write)


@dataclass(frozen=True)
class CheckReport:
    """What a run would do.

    Attributes:
        checkpoint: Folder.
        grid: The model's.
        mesh: Degrees.
        init_times: UTC.
        num_rollout_steps: Of each forecast.
        num_lead_times: That would be written.
        statics: Static fields, which the checkpoint holds.
        inputs: Of every initial time and member.
        memory: Of the busiest rank, None where the mesh does not divide.
        seconds: None where rates are not known.
        disks: File systems that products go to.
        problems: All that would stop the run.
        notice: What must be said of the model, where the input is not its own; else empty.
    """

    checkpoint: str
    grid: str
    mesh: Mapping[str, int]
    init_times: Sequence[str]
    num_rollout_steps: int
    num_lead_times: int
    statics: Sequence[str]
    inputs: Sequence[InputCheck]
    memory: MemoryCheck | None
    seconds: TimeEstimate | None
    disks: Sequence[DiskCheck]
    problems: Sequence[str]
    notice: str = ""

    @property
    def fits(self) -> bool:
        """Whether nothing would stop the run."""
        return not self.problems

    def problems_text(self) -> str:
        """All that would stop the run, in one message."""
        if len(self.problems) == 1:
            return f"the run would fail: {self.problems[0]}"
        lines = ["the run would fail:"]
        above = ""
        for text in self.problems:
            title, _, rest = text.partition(": ")
            # what is wrong with one file stands below its name, which may be long
            lines.append(f"    {rest}" if title == above and rest else f"  - {text}")
            above = title
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "command": "check",
            "checkpoint": self.checkpoint,
            "fits": self.fits,
            "problems": list(self.problems),
            "notice": self.notice,
            "grid": self.grid,
            "mesh": dict(self.mesh),
            "init": list(self.init_times),
            "num_rollout_steps": self.num_rollout_steps,
            "num_lead_times": self.num_lead_times,
            "statics": dict.fromkeys(self.statics, "checkpoint"),
            "inputs": [check.as_json() for check in self.inputs],
            "memory": asdict(self.memory) if self.memory else None,
            "seconds": asdict(self.seconds) | {"total": self.seconds.total}
            if self.seconds
            else None,
            "disk": [asdict(disk) for disk in self.disks],
        }

    def lines(self) -> list[str]:
        """For a terminal; what is wrong is left to `problems_text`."""
        mesh = ",".join(f"{axis}={degree}" for axis, degree in self.mesh.items())
        lines = [
            f"{self.checkpoint}: grid {self.grid}, mesh {mesh}, {len(self.init_times)} initial "
            f"time{'s' if len(self.init_times) > 1 else ''}, {self.num_rollout_steps} steps, "
            f"{self.num_lead_times} lead times written"
        ]
        for index, check in enumerate(self.inputs):
            lines += _input_lines(check, with_table=index < _MOST_TABLES)
        if self.statics:
            lines.append(f"static fields: {', '.join(self.statics)}, from the checkpoint")
        if self.notice:
            lines.append(self.notice)
        lines += self._need_lines()
        if self.fits:
            lines.append("nothing would stop the run")
        return lines

    def _need_lines(self) -> list[str]:
        lines = []
        if (memory := self.memory) is not None:
            free = memory.available_bytes
            lines.append(
                f"memory of the busiest rank: {memory.peak_bytes / GB:.3f} GB ("
                f"parameters {memory.parameter_bytes / GB:.3f}, "
                f"activations {memory.activation_bytes / GB:.3f}, "
                f"buffers {memory.buffer_bytes / GB:.3f}, process {memory.base_bytes / GB:.3f}), "
                f"available {'not known' if free is None else f'{free / GB:.3f} GB'}"
            )
        if (seconds := self.seconds) is not None:
            lines.append(
                f"time, estimated: {seconds.total:.3g} s (read {seconds.read:.3g}, rollout "
                f"{seconds.rollout:.3g} at {seconds.step:.3g} a step, write {seconds.write:.3g} "
                f"beside it) on {seconds.device}, rates {seconds.source}"
            )
        lines += [
            f"disk in {', '.join(disk.folders)}: at most {_size(disk.needed_bytes)} needed, "
            f"{_size(disk.free_bytes)} free"
            for disk in self.disks
        ]
        return lines


def _input_lines(check: InputCheck, *, with_table: bool) -> list[str]:
    counts = ", ".join(f"{number} {name}" for name, number in check.counts().items() if number)
    member = "" if check.member is None else f" member {check.member}"
    regridded = "; regridded" if check.is_regridded else ""
    lines = [f"{check.init_time}{member} from {check.origin}: {counts}{regridded}"]
    rows = check.rows if with_table else [row for row in check.rows if row.why]
    if not rows:
        return lines
    cells = [list(_HEADINGS), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    # the reason of what is missing is among the problems, which follow
    remarks = ["", *("" if row.status == MISSING else row.why for row in rows)]
    return lines + [
        "  ".join(
            ["", *(cell.ljust(width) for cell, width in zip(line, widths, strict=True)), remark]
        ).rstrip()
        for line, remark in zip(cells, remarks, strict=True)
    ]


def _has_own_units(row: FieldRow) -> bool:
    """Whether the file has a field in the units that its values are shown in."""
    return row.units == row.value_units or to_si(row.variable, row.units) == (1.0, 0.0)


def _cells(row: FieldRow) -> list[str]:
    if row.status == MISSING:
        return [row.field, row.status, *["-"] * (len(_HEADINGS) - 2)]
    low, high = row.plausible or (None, None)
    return [
        row.field,
        row.status,
        row.variable if _has_own_units(row) else f"{row.variable} in {row.units}",
        ",".join(str(place) for place in row.messages if place != row.variable) or "-",
        _number(row.level),
        row.value_units,
        row.grid,
        _number(row.min),
        _number(row.max),
        "-" if low is None else f"{_number(low)}..{_number(high)}",
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB else f"{num_bytes / 1e6:.3g} MB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
