"""How much of the communication hides behind the products, on a link where it matters.

    python benchmarks/overlap.py [--chunks 1 2 4 8] [--share 0.5] [--rounds 5] [--json FILE]

Two ranks, one thread each, in two network namespaces of the benchmark's own, joined by a link
that is shaped to a rate at which communication alone takes `--share` of the step's time.
For every mesh, mode and chunk count three times are measured, in turn:

    t_step           the step
    t_compute        the same step on both ranks with the collectives replaced by nothing
    t_communication  the same collectives without the step, begun and awaited in the same order
    hidden         = (t_compute + t_communication - t_step) / min(t_compute, t_communication)

Each starts on both ranks at once and takes as long as the slower one. The bytes that the mesh
counted are set beside those that the interface of the namespace received in the same steps;
what is above 1 is TCP's and IP's.

Needs root on Linux and iproute2. Where namespaces or shaping are not permitted, or with --delay,
a delay in the collectives, proportional to the bytes received, stands in for the link; the table
says so. Everything made is removed at the end, by an error or a signal too.
"""

import argparse
import json
import os
import select
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from body import add_size_options, body_config
from shaped_link import (
    ADDRESSES,
    INTERFACE,
    Link,
    NotPermittedError,
    ended_by_signals,
    shaped_link,
)

ANSWER_TIMEOUT_S = 600.0
PORT = 29500  # torch's usual one; the namespaces have all ports to themselves
AXES = ("domain", "tensor")
MODES = ("forward", "streamed", "training")
PARTS = ("step", "compute", "communication")
MIB = 2.0**20
# the step that communication takes a share of depends on the rate itself, and on what it hides
NUM_CORRECTIONS = 3


class Pair:
    """The two ranks and what lies between them."""

    def __init__(self, link: Link | None) -> None:
        """Starts the ranks, inside the link's namespaces or, without one, side by side."""
        self.link = link
        self.ranks: list[subprocess.Popen[str]] = []
        address, port = (ADDRESSES[0], PORT) if link else ("localhost", free_port())
        environment = {
            **os.environ,
            "WORLD_SIZE": "2",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        if link:
            environment["GLOO_SOCKET_IFNAME"] = INTERFACE
        program = [sys.executable, str(Path(__file__).with_name("overlap_rank.py"))]
        for rank in (0, 1):
            self.ranks.append(
                subprocess.Popen(
                    link.command(rank, *program) if link else program,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**environment, "RANK": str(rank)},
                )
            )

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Both ranks' answers to an order.

        Raises:
            RuntimeError: A rank ended or gave no answer in time.
        """
        for process in self.ranks:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < len(self.ranks):
            waiting = {p.stdout: r for r, p in enumerate(self.ranks) if r not in answers}
            ready, _, _ = select.select(list(waiting), [], [], ANSWER_TIMEOUT_S)
            if not ready:
                raise RuntimeError(f"no answer to {do!r} in {ANSWER_TIMEOUT_S} s")
            for pipe in ready:
                line = pipe.readline()
                if not line:
                    raise RuntimeError(f"rank {waiting[pipe]} ended on {do!r}")
                answers[waiting[pipe]] = json.loads(line)
        return [answers[rank] for rank in range(len(self.ranks))]

    def set_rate(self, bytes_per_s: float | None) -> None:
        """Shapes the link, or sets the delay that stands in for it."""
        if self.link:
            self.link.set_rate(bytes_per_s)
        else:
            self.ask("delay", bytes_per_s=bytes_per_s)

    def seconds(self, what: str) -> float:
        """The slower rank's time for a step or a part of it."""
        return max(answer["seconds"] for answer in self.ask("measure", what=what))

    def close(self) -> None:
        """Ends the ranks."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.wait()


@contextmanager
def started_pair(*, delay: bool) -> Iterator[Pair]:
    """The ranks on a shaped link, or with a delay where that is asked for or all there is."""
    if not delay:
        try:
            with shaped_link() as link, running(link) as pair:
                yield pair
                return
        except NotPermittedError as error:
            print(f"no namespaces with a shaped link here: {error}")
    with running(None) as pair:
        yield pair


@contextmanager
def running(link: Link | None) -> Iterator[Pair]:
    pair = Pair(link)
    try:
        yield pair
    finally:
        pair.close()


def calibrate(pair: Pair, num_bytes: int, share: float) -> float:
    """Sets and returns the bytes a second at which communication lasts a share of the step."""
    compute_s = statistics.median(pair.seconds("compute") for _ in range(3))
    rate = num_bytes / (compute_s * share)
    for _ in range(NUM_CORRECTIONS):
        pair.set_rate(rate)
        rate *= pair.seconds("communication") / (share * pair.seconds("step"))
    pair.set_rate(rate)
    return rate


def measure(pair: Pair, num_rounds: int) -> dict[str, Any]:
    """Times of a step and its parts, in turn, and what came in."""
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    totals = {"counted": 0, "interface": 0, "packets": 0}
    for _ in range(num_rounds):
        for part in PARTS:
            answers = pair.ask("measure", what=part)
            times[part].append(max(answer["seconds"] for answer in answers))
            if part == "step":
                for name in totals:
                    totals[name] += answers[0][name]
    hidden = [
        (compute + communication - step) / min(compute, communication)
        for step, compute, communication in zip(*(times[part] for part in PARTS), strict=True)
    ]
    per_step = {name: total / num_rounds for name, total in totals.items()}
    return {"seconds": times, "hidden": hidden, "received_per_step": per_step}


def measure_all(pair: Pair, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for every mesh, mode and chunk count."""
    config = body_config(options).model_dump_json()
    for axis in options.axes:
        for mode in options.modes:
            rate = None
            for chunks in options.chunks:
                case = {"axis": axis, "mode": mode, "chunks": chunks}
                if rate is None:
                    pair.set_rate(None)
                built = pair.ask("build", config=config, **case)
                num_bytes = max(answer["bytes"] for answer in built)
                if rate is None:  # one rate for all chunk counts of a case
                    rate = calibrate(pair, num_bytes, options.share)
                figures = measure(pair, options.rounds)
                yield case | {"bytes_per_s": rate, "calls": built[0]["calls"]} | figures


def print_head(options: argparse.Namespace, load: float, is_shaped: bool) -> None:
    between = (
        "two namespaces joined by a shaped link"
        if is_shaped
        else "NO LINK: a delay in the collectives, proportional to their bytes, stands in for it"
    )
    print(
        f"N={options.tokens} C={options.channels} D_n={options.token_hidden} "
        f"D_c={options.channel_hidden}, {options.blocks} blocks, float32, median of "
        f"{options.rounds}; load average before the start {load:.2f}\n{between}"
    )
    print(
        f"{'mesh':9} {'mode':9} {'chunks':>7} {'calls':>6} {'MiB/s':>7} {'compute s':>9} "
        f"{'commun. s':>9} {'step s':>7} {'share':>6} {'hidden':>7} {'min':>6} {'max':>6} "
        f"{'counted MiB':>12} {'interface':>10} {'ratio':>6}",
        flush=True,
    )


def print_row(row: dict[str, Any], is_shaped: bool) -> None:
    step, compute, communication = (statistics.median(row["seconds"][part]) for part in PARTS)
    hidden, received = row["hidden"], row["received_per_step"]
    interface = ratio = "-"
    if is_shaped:
        interface = f"{received['interface'] / MIB:.2f}"
        ratio = f"{received['interface'] / received['counted']:.3f}"
    chunks = row["chunks"] or "default"
    print(
        f"{row['axis'] + '=2':9} {row['mode']:9} {chunks:>7} {row['calls']:6} "
        f"{row['bytes_per_s'] / MIB:7.1f} {compute:9.3f} {communication:9.3f} {step:7.3f} "
        f"{communication / step:6.2f} "
        f"{statistics.median(hidden):7.2f} {min(hidden):6.2f} {max(hidden):6.2f} "
        f"{received['counted'] / MIB:12.2f} {interface:>10} {ratio:>6}",
        flush=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def count(text: str) -> int | None:
        return None if text == "default" else int(text)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_size_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument(
        "--chunks", nargs="+", type=count, default=[None, 1, 2, 4, 8], help="counts, or `default`"
    )
    parser.add_argument("--delay", action="store_true", help="no namespaces: a delay stands in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    load = os.getloadavg()[0]  # other work on the machine spoils all of this
    if not 0 < options.share < 1:
        sys.exit(f"error: --share {options.share} is not between 0 and 1")
    with ended_by_signals(), started_pair(delay=options.delay) as pair:
        is_shaped = pair.link is not None
        print_head(options, load, is_shaped)
        rows = []
        for row in measure_all(pair, options):
            print_row(row, is_shaped)
            rows.append(row)
    if options.json:
        sizes = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(
            json.dumps({"options": sizes, "load": load, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
