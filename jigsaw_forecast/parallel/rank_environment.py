"""A process's place among the ranks that torchrun, srun or mpirun started, from their variables."""

import os
import re
import zlib
from dataclasses import dataclass

from jigsaw_forecast.errors import MeshError

_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # below the ports that Linux hands out by itself (32768)


@dataclass(frozen=True)
class RankEnvironment:
    """This process's place among the ranks that a launcher started.

    Attributes:
        rank: From 0 over all machines.
        world_size: Number of ranks.
        local_rank: From 0 on this machine; chooses the GPU.
        master_addr: Host of rank 0.
        master_port: Port on which rank 0 gathers the others.
        launcher: `torchrun` (also this project's own launcher), `srun` or `mpirun`.
        local_world_size: Number of ranks on this machine, None where the launcher does not say.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    launcher: str
    local_world_size: int | None = None


def distributed_environment() -> RankEnvironment | None:
    """Reads this process's place among the ranks from the launcher's variables, None without one.

    An srun or mpirun of a single task counts as no launcher: it is how a command gets its share of
    a node, on which it may launch ranks of its own.

    Raises:
        MeshError: The launcher's variables are incomplete or contradict each other.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _torchrun_environment()
    if "SLURM_PROCID" in os.environ and (
        # a batch script has SLURM_PROCID too; these two exist only inside an srun step
        "SLURM_STEP_ID" in os.environ or "SLURM_LAUNCH_NODE_IPADDR" in os.environ
    ):
        environment = _slurm_environment()
    elif "OMPI_COMM_WORLD_RANK" in os.environ:
        environment = _mpi_environment("OMPI_COMM_WORLD_", "OMPI_COMM_WORLD_LOCAL_")
    elif "PMI_RANK" in os.environ:
        environment = _mpi_environment("PMI_", "MPI_LOCAL")
    else:
        return None
    return environment if environment.world_size > 1 else None


def _torchrun_environment() -> RankEnvironment:
    values = _integers("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    if not os.environ.get("MASTER_ADDR"):
        raise MeshError("RANK and WORLD_SIZE are set, missing: MASTER_ADDR (the host of rank 0)")
    return _checked(
        RankEnvironment(
            rank=values["RANK"],
            world_size=values["WORLD_SIZE"],
            local_rank=values["LOCAL_RANK"],
            master_addr=os.environ["MASTER_ADDR"],
            master_port=values["MASTER_PORT"],
            launcher="torchrun",
        )
    )


def _slurm_environment() -> RankEnvironment:
    # SLURM_NTASKS may be the whole job's; the step's own count wins where Slurm gives it
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    values = _integers("srun", "SLURM_PROCID", size, "SLURM_LOCALID")
    num_nodes = os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES"))
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if "MASTER_ADDR" in os.environ:
        address = os.environ["MASTER_ADDR"]
    elif num_nodes == "1":
        address = "127.0.0.1"
    elif nodes:
        address = first_host(nodes)  # task 0 runs on the step's first node
    elif "SLURM_LAUNCH_NODE_IPADDR" in os.environ:
        address = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    else:
        raise MeshError("srun gave no node list, missing: MASTER_ADDR (the host of task 0)")
    job = f"{os.environ.get('SLURM_JOB_ID', '')}.{os.environ.get('SLURM_STEP_ID', '')}"
    return _checked(
        RankEnvironment(
            rank=values["SLURM_PROCID"],
            world_size=values[size],
            local_rank=values["SLURM_LOCALID"],
            master_addr=address,
            master_port=_master_port(job),
            launcher="srun",
            local_world_size=_slurm_local_size(num_nodes, values[size]),
        )
    )


def _slurm_local_size(num_nodes: str | None, num_tasks: int) -> int | None:
    """Tasks of the step on this node, None where Slurm does not say."""
    if num_nodes == "1":
        return num_tasks
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE")
    node = os.environ.get("SLURM_NODEID", "")
    per_node = tasks_per_node(counts) if counts else []
    return per_node[int(node)] if node.isdigit() and int(node) < len(per_node) else None


def tasks_per_node(text: str) -> list[int]:
    """The tasks on each node of a Slurm step: `4(x2),3` gives 4, 4, 3; empty for other texts."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return []
        found += [int(match[1])] * int(match[2] or "1")
    return found


def _mpi_environment(prefix: str, local_prefix: str) -> RankEnvironment:
    """Reads Open MPI's (OMPI_COMM_WORLD_RANK ...) or Hydra's (PMI_RANK, MPI_LOCALRANKID ...)."""
    is_open_mpi = prefix.startswith("OMPI")
    local_rank = f"{local_prefix}RANK" if is_open_mpi else f"{local_prefix}RANKID"
    local_size = f"{local_prefix}SIZE" if is_open_mpi else f"{local_prefix}NRANKS"
    values = _integers("mpirun", f"{prefix}RANK", f"{prefix}SIZE", local_rank)
    address = os.environ.get("MASTER_ADDR")
    if not address:
        if os.environ.get(local_size) != str(values[f"{prefix}SIZE"]):
            raise MeshError(
                "mpirun started ranks on several hosts, missing: MASTER_ADDR; pass it to all "
                "ranks, for example mpirun -x MASTER_ADDR=HOST_OF_RANK_0"
            )
        address = "127.0.0.1"
    # one number for all ranks of a job: the namespace, or mpirun's process on a single host
    job = os.environ.get("PMIX_NAMESPACE") or os.environ.get("PMI_JOBID") or str(os.getppid())
    return _checked(
        RankEnvironment(
            rank=values[f"{prefix}RANK"],
            world_size=values[f"{prefix}SIZE"],
            local_rank=values[local_rank],
            master_addr=address,
            master_port=_master_port(job),
            launcher="mpirun",
            local_world_size=_integers("mpirun", local_size)[local_size]
            if local_size in os.environ
            else None,
        )
    )


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: `node[003-010,12],gpu1` gives `node003`."""
    head, bracket, rest = node_list.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0]
    inside, _, tail = rest.partition("]")
    first = inside.replace(",", "-").partition("-")[0]
    return head + first + tail.partition(",")[0]


def _master_port(job: str) -> int:
    if "MASTER_PORT" in os.environ:
        return _integers("launcher", "MASTER_PORT")["MASTER_PORT"]
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS


def _integers(launcher: str, *names: str) -> dict[str, int]:
    """The variables as numbers; one error names all that are missing or no numbers."""
    missing = [name for name in names if name not in os.environ]
    wrong = [
        f"{name}={os.environ[name]!r} is not a number"
        for name in names
        if name in os.environ and not os.environ[name].strip().isdigit()
    ]
    if missing or wrong:
        found = [f"missing: {', '.join(missing)}"] if missing else []
        raise MeshError(
            f"the environment that {launcher} gives a rank is incomplete: "
            f"{'; '.join(wrong + found)}"
        )
    return {name: int(os.environ[name]) for name in names}


def _checked(environment: RankEnvironment) -> RankEnvironment:
    if not 0 <= environment.rank < environment.world_size:
        raise MeshError(
            f"{environment.launcher} calls this rank {environment.rank} of "
            f"{environment.world_size} ranks; expected 0 to {environment.world_size - 1}"
        )
    return environment
