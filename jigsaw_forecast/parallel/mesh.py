"""The mesh of ranks: `data x domain x tensor`, rank order data-major, tensor fastest."""

import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from jigsaw_forecast import __version__
from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.log import count
from jigsaw_forecast.parallel.accounting import Kind, Traffic
from jigsaw_forecast.parallel.agreement import agree_on_plan, meet
from jigsaw_forecast.parallel.launch import read_timeout_s
from jigsaw_forecast.parallel.watch import start_watch, stop_watch, waiting

AXIS_NAMES = ("data", "domain", "tensor")
# torch's own timeout comes after the watch's, which can say who is missed
GRACE_AFTER_WATCH_S = 60.0


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as seen from this rank.

    Attributes:
        name: `data`, `domain`, `tensor`, or `model` (domain x tensor, domain-major).
        size: Degree of the axis.
        index: This rank's place on it.
        group: Process group of the ranks along it; None where size is 1.
        weight_group: The same ranks' group for weights and their gradients, None where it is
            `group`: a group carries one collective after the other, and an activation must not
            wait behind a weight that is needed a layer later.
    """

    name: str
    size: int
    index: int
    group: dist.ProcessGroup | None
    weight_group: dist.ProcessGroup | None = None

    def group_for(self, kind: Kind) -> dist.ProcessGroup | None:
        """The process group that carries bytes of this kind."""
        return self.weight_group or self.group if kind == "weights" else self.group


@dataclass(frozen=True)
class Mesh:
    """The ranks of one run and this rank's place among them.

    Attributes:
        data: Replicas of the model group over samples or initial times.
        domain: Latitude bands.
        tensor: Field groups and hidden features.
        model: The ranks that share one sample: domain x tensor, domain-major.
        device: Where this rank computes.
        traffic: Bytes received by this rank.
    """

    data: Axis
    domain: Axis
    tensor: Axis
    model: Axis
    device: torch.device
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    def axis(self, name: str) -> Axis:
        """The axis of this name."""
        axis = getattr(self, name)
        assert isinstance(axis, Axis)
        return axis

    @property
    def rank(self) -> int:
        """This process's rank in the whole run."""
        return self.data.index * self.model.size + self.model.index

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data.size * self.model.size

    @property
    def degrees(self) -> dict[str, int]:
        """Degree by axis name."""
        return {name: self.axis(name).size for name in AXIS_NAMES}

    def at(self, domain: int, tensor: int) -> "Mesh":
        """The mesh as the rank (domain, tensor) of this model group sees it; for layout only."""
        model_index = domain * self.tensor.size + tensor
        return Mesh(
            self.data,
            Axis("domain", self.domain.size, domain, None),
            Axis("tensor", self.tensor.size, tensor, None),
            Axis("model", self.model.size, model_index, None),
            self.device,
        )


def check_degrees(degrees: Mapping[str, int]) -> dict[str, int]:
    """The degree of every axis, 1 where left out.

    Raises:
        MeshError: An axis is unknown or a degree is not positive.
    """
    unknown = [name for name in degrees if name not in AXIS_NAMES]
    wrong = [f"{name}={degree}" for name, degree in degrees.items() if degree < 1]
    if unknown or wrong:
        raise MeshError(
            f"mesh axes are {', '.join(AXIS_NAMES)} with degrees of at least 1; "
            f"found {', '.join([*unknown, *wrong])}"
        )
    return {name: degrees.get(name, 1) for name in AXIS_NAMES}


def choose_device(name: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`: auto takes GPUs where each local rank has one.

    Raises:
        MeshError: CUDA is asked for and not there.
    """
    # where no launcher says how many ranks share this machine, all may
    num_ranks = os.environ.get("WORLD_SIZE", "1")
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks))
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if num_gpus >= max(num_local_ranks, 1) else "cpu"
    if name == "cuda" and num_gpus < num_local_ranks:
        if num_gpus == 0:
            raise MeshError(
                "device cuda: torch finds no GPU on this machine; use --device cpu, or install "
                "the driver and a torch built for CUDA"
            )
        raise MeshError(
            f"device cuda: {num_local_ranks} ranks on this machine, {count(num_gpus, 'GPU')}; "
            "use a smaller --mesh or --device cpu"
        )
    return name


def single_rank_mesh(device: str | torch.device = "cpu") -> Mesh:
    """A mesh of one rank; its collectives do nothing."""
    data, domain, tensor, model = (Axis(name, 1, 0, None) for name in (*AXIS_NAMES, "model"))
    return Mesh(data, domain, tensor, model, torch.device(device))


def make_mesh(
    degrees: Mapping[str, int],
    device: str | torch.device = "cpu",
    plan: Mapping[str, str] | None = None,
) -> Mesh:
    """The mesh with these degrees over all ranks of the run.

    Starts torch.distributed from the launcher's environment where it has not been started.

    Args:
        degrees: Degree by axis name; axes left out are 1.
        device: `cpu` or `cuda`; on CUDA the rank takes device LOCAL_RANK.
        plan: What this rank is about to do, by name; compared with the other ranks' together
            with versions and mesh.

    Raises:
        MeshError: The degrees do not multiply to the number of ranks, or ranks differ.
        StoppedError: Not all ranks came in time.

    Communication:
        Starts the watch, compares the plans through the store, creates the process groups.
    """
    full = check_degrees(degrees)
    size = math.prod(full.values())
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1 and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return single_rank_mesh(device)
    text = ",".join(f"{name}={degree}" for name, degree in full.items())
    own_plan = {
        "jigsaw-forecast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "mesh": text,
        "device": device.type,
    }
    _join(device, own_plan | dict(plan or {}))
    if dist.get_world_size() != size:
        raise MeshError(
            f"mesh {text} needs {size} ranks, found {dist.get_world_size()}; "
            "change --mesh or the number of ranks that the launcher starts"
        )
    ranks = torch.arange(size).view(*full.values())
    data, domain, tensor = (int(place) for place in (ranks == dist.get_rank()).nonzero()[0])
    with waiting("the creation of the mesh's groups"):
        # in the same order on all ranks, and weights apart: what is large is not to delay chunks
        model_group = _group_along(ranks.flatten(1), 1)
        axes = {
            name: Axis(
                name,
                full[name],
                index,
                _group_along(ranks, dim),
                _group_along(ranks, dim) if name != "data" else None,
            )
            for dim, (name, index) in enumerate(
                zip(AXIS_NAMES, (data, domain, tensor), strict=True)
            )
        }
    model = Axis(
        "model", full["domain"] * full["tensor"], domain * full["tensor"] + tensor, model_group
    )
    return Mesh(axes["data"], axes["domain"], axes["tensor"], model, device)


def _group_along(ranks: torch.Tensor, dim: int) -> dist.ProcessGroup | None:
    """This rank's group of the ranks along one dim of the mesh; None where it is alone."""
    if ranks.shape[dim] == 1:
        return None
    rows = ranks.movedim(dim, -1).flatten(0, -2).tolist()
    timeout = timedelta(seconds=read_timeout_s() + GRACE_AFTER_WATCH_S)
    own: dist.ProcessGroup | None
    own, _ = dist.new_subgroups_by_enumeration(rows, timeout=timeout)
    return own


def _join(device: torch.device, plan: Mapping[str, str]) -> None:
    """Meets the other ranks, compares plans, starts the watch, and joins torch.distributed.

    Nothing that depends on the ranks' being alike comes before the comparison.

    Raises:
        MeshError: Ranks differ.
        StoppedError: Not all ranks came in time.
    """
    timeout_s = read_timeout_s()
    if dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
    else:
        store, rank, num_ranks = meet(timeout_s)
    start_watch(store, rank, num_ranks)
    with waiting("the comparison of plans"):
        agree_on_plan(plan, store, rank, num_ranks, timeout_s + GRACE_AFTER_WATCH_S)
    if not dist.is_initialized():
        with waiting("the connection of all ranks"):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(seconds=timeout_s + GRACE_AFTER_WATCH_S),
            )


def close_mesh() -> None:
    """Ends torch.distributed where it was started, and the watch.

    Where an error is on its way the watch goes on, to tell the other ranks of it.
    """
    has_failed = sys.exc_info()[0] is not None
    if not has_failed:
        stop_watch()
    # NCCL's orderly end waits for the other ranks, of which one may be gone
    if dist.is_initialized() and not (has_failed and dist.get_backend() == "nccl"):
        dist.destroy_process_group()
