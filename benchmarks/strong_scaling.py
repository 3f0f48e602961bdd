"""One sample on two ranks: Jigsaw beside torch's own ways, in one interleaved run.

    python benchmarks/strong_scaling.py [--rounds 7] [--steps 1] [--blocks 3] [--json FILE]

Two independent one-rank runs at the same time are the reference: their combined rate is what the
machine can give to two ranks. Every contender keeps its own warm processes, one thread a rank (but
for the one that has two threads), and waits while the others run. Each round steps all of them,
in turning order. A step starts on all ranks of a contender at once and takes as long as the slower
one. Before any timing, all contenders must give the same output and the same gradients.

Prints one table. Received bytes are per rank and step: counted by Jigsaw where they arrive, for
torch's wrappers by what the calls they make have to receive. State is parameters, gradients and
AdamW's moments per rank; peak is each process's own (VmHWM less mapped files).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import torch
import torch.distributed as dist
from body import add_size_options, body_config
from contenders import KINDS, REFERENCE, Mode, Stepper, assemble, peak_bytes, reset_peak

from jigsaw_forecast.model.config import ModelConfig

ANSWER_TIMEOUT_S = 600.0
MODES: tuple[Mode, ...] = ("forward", "streamed", "training")
# float32 sums of a few thousand terms in another order differ by about 1e-6; a wrong term or a
# missing reduction changes the first digits
TOLERANCE = 1e-4
MIB = 2.0**20


class Crew:
    """The processes of one contender."""

    def __init__(self, name: str, config: ModelConfig, chunks: int | None, folder: Path) -> None:
        """Starts them; they wait for orders."""
        context = multiprocessing.get_context("forkserver")
        self.name, self.kind = name, KINDS[name]
        # the semaphore is gone when nobody here holds it
        self.barrier = context.Barrier(self.kind.num_ranks)
        self.connections = []
        self.processes = []
        for rank in range(self.kind.num_ranks):
            ours, theirs = context.Pipe()
            store = folder / f"{name}.store"
            arguments = (theirs, self.barrier, name, rank, config, chunks, store)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def ask(self, order: str, *arguments: Any) -> list[Any]:
        """Every rank's answer to an order.

        Raises:
            RuntimeError: A rank failed, ended or gave no answer in time.
        """
        for pipe in self.connections:
            pipe.send((order, arguments))
        answers: dict[int, Any] = {}
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while len(answers) < len(self.connections):
            waiting = [pipe for r, pipe in enumerate(self.connections) if r not in answers]
            ready = connection.wait(waiting, deadline_s - time.monotonic())
            if not ready:
                raise RuntimeError(f"{self.name}: no answer to {order!r} in {ANSWER_TIMEOUT_S} s")
            for pipe in ready:
                rank = self.connections.index(pipe)
                try:
                    is_good, answer = pipe.recv()
                except (EOFError, ConnectionResetError):
                    is_good, answer = False, "it ended without a word"
                if not is_good:  # told at once: its peer may wait for it
                    raise RuntimeError(f"{self.name} rank {rank} on {order!r}: {answer}")
                answers[rank] = answer
        return [answers[rank] for rank in range(len(self.connections))]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self.connections:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def serve(
    pipe: connection.Connection,
    barrier: Any,
    name: str,
    rank: int,
    config: ModelConfig,
    chunks: int | None,
    store: Path,
) -> None:
    """What one process of a crew does until its pipe closes."""
    kind = KINDS[name]
    torch.set_num_threads(kind.num_threads)
    if kind.is_group:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=kind.num_ranks
        )
    stepper: Stepper | None = None
    while True:
        try:
            order, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = None
            if order == "build":
                stepper = None  # the old one goes before the new one comes
                stepper = Stepper(kind.build(config, chunks), config, *arguments)
            elif order == "drop":
                stepper = None
            elif order == "time":
                assert stepper is not None
                answer = time_steps(stepper, barrier, *arguments)
            elif order == "reset_peak":
                answer = reset_peak()
            elif order == "peak":
                answer = peak_bytes()
            else:
                assert stepper is not None
                answer = getattr(stepper, order)()
            pipe.send((True, answer))
        except BaseException:  # noqa: BLE001  told to the parent, which ends the run
            pipe.send((False, traceback.format_exc()))


def time_steps(stepper: Stepper, barrier: Any, num_steps: int) -> list[float]:
    """Seconds of each step of this rank, all ranks of the crew starting together."""
    seconds = []
    for _ in range(num_steps):
        barrier.wait(ANSWER_TIMEOUT_S)
        start_s = time.perf_counter()
        stepper.step()
        seconds.append(time.perf_counter() - start_s)
    return seconds


def compare(crews: list[Crew], config: ModelConfig, mode: Mode) -> dict[str, dict[str, float]]:
    """Largest relative differences of each contender's output and gradients from the reference.

    Raises:
        RuntimeError: One differs by more than rounding.
    """
    grid = config.grid_object
    shape = (1, len(config.fields), grid.num_model_lat, grid.num_lon)
    expected: dict[str, Any] = {}
    found: dict[str, dict[str, float]] = {}
    for crew in crews:
        answers = crew.ask("compare")
        is_cut = crew.name.startswith("jigsaw")
        for group in [answers] if is_cut else [[answer] for answer in answers]:
            output = assemble(group, shape)
            gradients = total_gradients(group)
            if not expected:
                expected = {"output": output, "gradients": gradients}
            error = np.abs(output - expected["output"]).max() / np.abs(expected["output"]).max()
            errors = [
                abs(product - expected["gradients"][name][0]) / expected["gradients"][name][1]
                for name, (product, _) in gradients.items()
            ]
            worst = {"output": float(error), "gradients": max(errors, default=0.0)}
            if not all(value <= TOLERANCE for value in worst.values()):  # also where it is NaN
                raise RuntimeError(f"{crew.name}, {mode}: not the reference's model: {worst}")
            found[crew.name] = worst
    return found


def total_gradients(answers: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Each gradient's product with a random tensor and its norm, over the ranks' pieces."""
    totals: dict[str, tuple[float, float]] = {}
    for name in answers[0].get("gradients", {}):
        parts = [answer["gradients"][name] for answer in answers]
        square = sum(part[1] for part in parts)
        # no gradient at all (a list of no diagnostics) is right where the product is zero too
        totals[name] = (sum(part[0] for part in parts), square**0.5 or 1.0)
    return totals


def run_mode(crews: list[Crew], config: ModelConfig, mode: Mode, options: Any) -> dict[str, Any]:
    """Everything measured in one mode: contender -> figures."""
    can_reset = True
    for crew in crews:
        tell(f"{mode}: building {crew.name}")
        crew.ask("build", mode)
    differences = compare(crews, config, mode)
    figures: dict[str, Any] = {}
    for crew in crews:
        can_reset = all(crew.ask("reset_peak")) and can_reset
        crew.ask("step")
        figures[crew.name] = {"rounds": [], "difference": differences[crew.name]}
    for number in range(options.rounds):
        turn = number % len(crews)
        for crew in (*crews[turn:], *crews[:turn]):
            figures[crew.name]["rounds"].append(crew.ask("time", options.steps))
        tell(f"{mode}: round {number + 1} of {options.rounds}")
    for crew in crews:
        own = figures[crew.name]
        own["peak_bytes"] = max(crew.ask("peak")) if can_reset else None
        own["received"] = crew.ask("counts")
        own["state_bytes"] = crew.ask("state_bytes")
        crew.ask("drop")
    for crew in crews:
        figures[crew.name] |= rates(figures[crew.name]["rounds"], KINDS[crew.name])
    reference = figures[REFERENCE]["samples_per_second"]
    for own in figures.values():
        pairs = zip(own["samples_per_second"], reference, strict=True)
        own["efficiency"] = [rate / best for rate, best in pairs]
    return figures


def rates(rounds: list[list[list[float]]], kind: contenders.Kind) -> dict[str, list[float]]:
    """Seconds a step and samples a second in each round.

    Runs that do not wait for each other have each their own rate, and the rates are added.
    """
    seconds = [
        statistics.mean(max(ranks) for ranks in zip(*by_rank, strict=True)) for by_rank in rounds
    ]
    if not kind.is_group:
        per_second = [sum(1 / statistics.mean(own) for own in by_rank) for by_rank in rounds]
    else:
        per_second = [kind.samples / value for value in seconds]
    return {"seconds_per_step": seconds, "samples_per_second": per_second}


def print_table(mode: Mode, figures: dict[str, Any]) -> None:
    what = {
        "forward": "forward, resident weights",
        "streamed": "forward, streamed weights (Jigsaw)",
        "training": "training step (forward, backward, AdamW)",
    }
    print(f"\n{what[mode]}")
    print(
        f"{'':18} {'s a step':>9} {'min':>7} {'max':>7} {'samples/s':>10} {'efficiency':>10} "
        f"{'min':>6} {'max':>6} {'MiB received':>13} {'MiB state':>10} {'MiB peak':>9}"
    )
    for name, own in figures.items():
        seconds, efficiency = own["seconds_per_step"], own["efficiency"]
        received = max(sum(rank.values()) for rank in own["received"]) / MIB
        state = max(sum(rank.values()) for rank in own["state_bytes"]) / MIB
        peak = "-" if own["peak_bytes"] is None else f"{own['peak_bytes'] / MIB:.0f}"
        print(
            f"{name:18} {statistics.median(seconds):9.3f} {min(seconds):7.3f} "
            f"{max(seconds):7.3f} {statistics.median(own['samples_per_second']):10.4f} "
            f"{statistics.median(efficiency):10.3f} {min(efficiency):6.3f} {max(efficiency):6.3f} "
            f"{received:13.2f} {state:10.1f} {peak:>9}"
        )


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_size_options(parser)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps of each contender in a round")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["forward", "training"])
    names = [name for name in KINDS if name != REFERENCE]
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=names,
        default=[name for name in names if name != "independent-plain"],
        help="beside the reference, which always runs",
    )
    parser.add_argument("--chunks", type=int, help="Jigsaw's chunk count; default: the model's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    load = os.getloadavg()[0]  # other work on the machine spoils all of this
    config = body_config(options)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "contenders"])
    names = [REFERENCE, *options.contenders]
    crews: list[Crew] = []
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            crews += [Crew(name, config, options.chunks, Path(folder)) for name in names]
            base = max(crews[0].ask("peak"))
            for mode in options.modes:
                results[mode] = run_mode(crews, config, mode, options)
        finally:
            for crew in crews:
                crew.close()
    size = (
        f"N={config.num_tokens} C={config.channels} D_n={config.token_hidden} "
        f"D_c={config.channel_hidden}, {config.num_blocks} blocks, float32"
    )
    print(
        f"{size}; median of {options.rounds} rounds of {options.steps}, torch {torch.__version__}"
    )
    for mode, figures in results.items():
        print_table(mode, figures)
    worst = max(max(own["difference"].values()) for f in results.values() for own in f.values())
    print(f"\nlargest relative difference between contenders' outputs or gradients: {worst:.1e}")
    print(f"a process without a model peaks at {base / MIB:.0f} MiB")
    print(f"load average before the start {load:.2f}")
    if options.json:
        sizes = {name: value for name, value in vars(options).items() if name != "json"}
        figures = {"options": sizes, "load": load, "results": results}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
