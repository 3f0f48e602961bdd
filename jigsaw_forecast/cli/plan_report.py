"""What `jigsaw-forecast plan` prints: assumptions, a table of meshes, with beside without."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jigsaw_forecast.plan.devices import DeviceKind
    from jigsaw_forecast.plan.meshes import Workload

GB = 1e9
Row = dict[str, Any]
# Larger model groups leave the fast links of a node several times over.
MOST_COMPARED = 16
# Kieckhefen et al., arXiv:2507.05753: 256 A100, data x domain x tensor, 11 PFLOP/s, against data
# parallelism alone.
PAPER_WITH, PAPER_WITHOUT = 0.72, 0.51
PAPER_RANKS = 256


def assumptions(device: "DeviceKind", workload: "Workload") -> list[str]:
    """Every rate and rule that the figures stand on, one a line."""
    lines = [
        f"  {device.name}: {device.source}",
        f"  products {device.matrix_flops_per_second[workload.dtype] / 1e12:.4g} TFLOP/s in "
        f"{workload.dtype} (--matrix-rate); everything else reads and writes "
        f"{device.memory_bytes_per_second / GB:.4g} GB/s (--memory-rate)",
        f"  memory {device.memory_bytes / GB:.4g} GB (--memory), 5 % of it left free",
        f"  a rank receives {device.link_bytes_per_second / GB:.4g} GB/s within a node "
        f"(--link-rate) of {device.ranks_per_node} ranks (--ranks-per-node), "
        f"{device.node_link_bytes_per_second / GB:.4g} GB/s from others (--node-link-rate), "
        f"{device.latency_s * 1e6:.0f} us a collective (--latency)",
        "  ranks lie tensor fastest, then domain, then data; an axis that spans more ranks than a "
        "node uses the slower link",
    ]
    if workload.mode == "training":
        lines.append(
            "  float32 weights, gradients, AdamW's moments and averaged weights; gradients are "
            "all-reduced over data by a ring while backward goes on"
        )
    lines.append("  no reading of data, no writing, no rank slower than another")
    return lines


_HEADINGS = (
    "data", "domain", "tensor", "param", "grad", "moment", "activ", "buffer", "peak GB",
    "in: data", "domain", "tensor GB", "s/step", "samples/s", "efficiency", "",
)  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """One aligned line for each mesh."""
    cells: list[Sequence[str]] = [_HEADINGS]
    for row in rows:
        mesh = [str(row["mesh"][axis]) for axis in ("data", "domain", "tensor")]
        if row["seconds_per_step"] is None:
            cells.append([*mesh, *[""] * 12, f"does not fit: {row['reason']}"])
            continue
        held, received = row["per_rank"], row["bytes_received_per_step"]
        names = ("parameter", "gradient", "moment", "activation", "buffer", "peak")
        cells.append(
            [
                *mesh,
                *(f"{held[f'{name}_bytes'] / GB:.3f}" for name in names),
                *(f"{received[axis] / GB:.3f}" for axis in ("data", "domain", "tensor")),
                f"{row['seconds_per_step']:.4g}",
                f"{row['samples_per_second']:.4g}",
                f"{row['efficiency']:.3f}",
                "" if row["fits"] else f"does not fit: {row['reason']}",
            ]
        )
    return _align(cells)


def best_line(rows: list[Row]) -> str:
    """The best mesh in words."""
    usable = [row for row in rows if row["fits"]]
    if not usable:
        return "no mesh of so many ranks fits"
    return f"best: {mesh_text(usable[0])}, efficiency {usable[0]['efficiency']:.3f}"


def compare(
    workload: "Workload",
    num_ranks: int,
    describe: Callable[["Workload", Iterable[dict[str, int]]], list[Row]],
) -> list[str]:
    """Training with model groups beside whole models on the data axis alone, and the paper.

    Both take the same samples a step, as many as whole models need to have `batch_size` each: a
    group of four ranks takes four times as many.

    Args:
        workload: A training.
        num_ranks: All ranks.
        describe: Plans meshes of a workload, best first.
    """
    from jigsaw_forecast.plan.meshes import all_meshes

    num_samples = workload.global_batch_size or num_ranks * workload.batch_size
    shared = replace(workload, global_batch_size=num_samples)
    whole = {"data": num_ranks, "domain": 1, "tensor": 1}
    groups = [
        mesh
        for mesh in all_meshes(num_ranks, with_data=True)
        if mesh != whole and num_ranks // mesh["data"] <= MOST_COMPARED
    ]
    per_rank = workload if workload.global_batch_size is None else replace(
        workload, batch_size=max(1, num_samples // num_ranks), global_batch_size=None
    )  # fmt: skip
    (alone,) = describe(per_rank, [{"data": 1, "domain": 1, "tensor": 1}])
    cells: list[Sequence[str]] = [("", "mesh", "efficiency", "scaling", "s/step", "peak GB", "")]
    for name, meshes in (("with Jigsaw", groups), ("without", [whole])):
        row = describe(shared, meshes)[0]
        if row["seconds_per_step"] is None:
            cells.append([name, mesh_text(row), "", "", "", "", f"does not fit: {row['reason']}"])
            continue
        scaling = row["samples_per_second"] / (num_ranks * alone["samples_per_second"])
        cells.append(
            [
                name,
                mesh_text(row),
                f"{row['efficiency']:.3f}",
                f"{scaling:.3f}",
                f"{row['seconds_per_step']:.4g}",
                f"{row['per_rank']['peak_bytes'] / GB:.1f}",
                "fits" if row["fits"] else f"does not fit: {row['reason']}",
            ]
        )
    notes = []
    if num_ranks == PAPER_RANKS:
        for name, scaling in (("paper, with", PAPER_WITH), ("paper, without", PAPER_WITHOUT)):
            cells.append([name, f"{PAPER_RANKS} A100", "", f"{scaling:.2f}", "", "", ""])
        notes.append(
            "paper: scaling efficiency of another model with its own data loading, "
            "arXiv:2507.05753; ours follows from the assumptions above and is not measured"
        )
    return [
        f"with and without Jigsaw: {num_ranks} ranks, {num_samples} samples a step; the best "
        f"model group of 2 to {MOST_COMPARED} ranks, and whole models on the data axis alone",
        *_align(cells, left=2),
        "efficiency: time of the products at the device's rate over the step's time; scaling: "
        "samples per second over those of as many ranks that do not communicate "
        f"({'a rank holds the model' if alone['fits'] else 'were a rank to hold the model'})",
        *notes,
    ]


def mesh_text(row: Row) -> str:
    """`data=4,domain=2,tensor=1`."""
    return ",".join(f"{axis}={degree}" for axis, degree in row["mesh"].items())


def _align(cells: list[Sequence[str]], left: int = 0) -> list[str]:
    """Columns of equal width, the first `left` to the left, the last as it is."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]) - 1)]
    lines = []
    for line in cells:
        columns = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ]
        lines.append("  ".join([*columns, line[-1]]).rstrip())
    return lines
