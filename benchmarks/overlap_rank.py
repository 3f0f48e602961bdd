"""One rank of `overlap.py`: takes orders as JSON lines on stdin and answers on stdout.

Started by it with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME where it
has an interface of its own.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contenders import Stepper, build_jigsaw
from tape import Tape

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.parallel import collectives
from jigsaw_forecast.parallel.mesh import close_mesh, make_mesh


class Rank:
    """The model that is measured and the tape on its collectives."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.tape.install(collectives)
        self.meshes = {axis: make_mesh({axis: 2}) for axis in ("domain", "tensor")}
        self.stepper: Stepper | None = None

    def build(self, config: str, axis: str, mode: str, chunks: int | None) -> dict[str, Any]:
        """Makes the model, warms it up and records one step."""
        self.stepper = None  # the old one goes first
        built = build_jigsaw(ModelConfig.model_validate_json(config), self.meshes[axis], chunks)
        self.stepper = Stepper(built, built.model.config, mode)
        self.stepper.step()
        before = self._counted()
        self.tape.start_recording()
        self.stepper.step()
        self.tape.mode = "pass"
        counted = self._counted() - before
        if counted != self.tape.received_bytes:
            raise RuntimeError(
                f"the mesh counted {counted} bytes, the tape {self.tape.received_bytes}: "
                "a collective goes around one of them"
            )
        self.tape.replay()
        return {"bytes": counted, "calls": self.tape.num_calls}

    def delay(self, bytes_per_s: float | None) -> dict[str, Any]:
        """Makes every collective last as on a link of this rate."""
        self.tape.bytes_per_s = bytes_per_s
        return {}

    def measure(self, what: str) -> dict[str, Any]:
        """Seconds of a `step`, of its `compute` alone or of its `communication` alone.

        Also what the mesh counted and what the interface received meanwhile.
        """
        assert self.stepper is not None
        action = self.tape.replay if what == "communication" else self.stepper.step
        counted, before = self._counted(), interface_counts()
        dist.barrier()
        self.tape.mode = "mute" if what == "compute" else "pass"
        start_s = time.perf_counter()
        action()
        seconds = time.perf_counter() - start_s
        self.tape.mode = "pass"
        dist.barrier()  # all that was sent has arrived
        after = interface_counts()
        return {
            "seconds": seconds,
            "counted": self._counted() - counted,
            "interface": after[0] - before[0],
            "packets": after[1] - before[1],
        }

    def _counted(self) -> int:
        assert self.stepper is not None
        assert self.stepper.built.mesh is not None
        axes = self.stepper.built.mesh.traffic.received().values()
        return sum(num_bytes for kinds in axes for num_bytes in kinds.values())


def interface_counts() -> tuple[int, int]:
    """Bytes and packets that this rank's interface has received; zeros where it has none."""
    name = os.environ.get("GLOO_SOCKET_IFNAME")
    if name is None:
        return 0, 0
    folder = Path("/sys/class/net") / name / "statistics"
    received, packets = (int((folder / f"rx_{what}").read_text()) for what in ("bytes", "packets"))
    return received, packets


def main() -> None:
    torch.set_num_threads(1)
    # muted collectives leave whatever memory holds in their results, and products of subnormal
    # numbers are slow
    torch.set_flush_denormal(True)
    rank = Rank()
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(rank, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)
    close_mesh()


if __name__ == "__main__":
    main()
