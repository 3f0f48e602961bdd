"""How a command comes to run on several ranks: it launches its own, or joins a launcher's.

Started bare with a mesh of more than one rank, the command becomes a launcher: torch's elastic
agent runs the same command line once per rank on this machine. Under torchrun, srun or mpirun the
process is a rank already and only learns where its peers are. torch is imported in the launcher
alone, because this module is loaded before any argument is checked.
"""

import ctypes
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

from jigsaw_forecast.errors import MeshError

_LAUNCHER_PID = "JIGSAW_LAUNCHER_PID"  # set for ranks that this module launched
_MODULE = "jigsaw_forecast.cli.main"  # what each rank runs again
_CLAIM = "first-failure.json"
_EXIT_STOPPED = 3
_PARENT_CHECK_PERIOD_S = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # below the ports that Linux hands out by itself (32768)
_STARTED_AT_S = time.time()

_log = logging.getLogger(__name__)


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
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    launcher: str


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


def launched_here() -> bool:
    """Whether this process is a rank that this module's own launcher started."""
    return _LAUNCHER_PID in os.environ and "RANK" in os.environ


def ensure_ranks(num_ranks: int, argv: list[str]) -> int | None:
    """Sees to it that the command runs on `num_ranks` ranks.

    Where a launcher started this process, exports the variables that `torch.distributed` reads
    (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and ties the process to the launcher's
    life where the launcher is torch's. Where none did and more than one rank is wanted, launches
    them, waits for them, and forwards SIGTERM and SIGINT to them.

    Args:
        num_ranks: Size of the mesh.
        argv: Arguments of the command line, without the program's name.

    Returns:
        None when this process is a rank and goes on; the exit code when it launched ranks and
        they have ended.

    Raises:
        MeshError: The launcher started another number of ranks.
    """
    environment = distributed_environment()
    if environment is None:
        return None if num_ranks == 1 else _launch(num_ranks, argv)
    if environment.world_size != num_ranks:
        raise MeshError(
            f"the mesh has {num_ranks} ranks, {environment.launcher} started "
            f"{environment.world_size}; start {num_ranks} or give a --mesh whose degrees multiply "
            f"to {environment.world_size}"
        )
    os.environ.update(
        RANK=str(environment.rank),
        WORLD_SIZE=str(environment.world_size),
        LOCAL_RANK=str(environment.local_rank),
        MASTER_ADDR=environment.master_addr,
        MASTER_PORT=str(environment.master_port),
    )
    if environment.launcher == "torchrun":
        die_with_launcher()
    return None


def die_with_launcher() -> None:
    """Ends this rank when its launcher dies, which is all that stops it from writing on.

    Torch's agent gives each rank a session of its own, so a launcher that is killed takes no rank
    with it. Linux sends SIGKILL by itself (prctl(2), PR_SET_PDEATHSIG); a thread watches the
    parent for other systems and for a parent that died before the request.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return  # RANK and WORLD_SIZE were set by hand: the parent is a shell, not a launcher
    parent = int(os.environ.get(_LAUNCHER_PID, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_PERIOD_S)
        os._exit(_EXIT_STOPPED)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def claim_failure(exit_code: int) -> bool:
    """Whether this process is the one that tells the user about the run's failure.

    The first rank of a machine that fails claims the right; the others end silently, since what
    they have to say is the same or follows from the first. A process without peers always may.

    Args:
        exit_code: What this process is about to exit with; the launcher returns the claimer's.
    """
    claim = _claim_path()
    if claim is None:
        return True
    text = json.dumps({"rank": int(os.environ["RANK"]), "exit_code": exit_code})
    # written aside and linked: whoever reads the claim finds it whole
    aside = claim.with_name(f"{claim.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        try:
            if claim.stat().st_mtime < _STARTED_AT_S:
                claim.unlink()  # of an earlier run under the same parent
        except FileNotFoundError:
            pass
        try:
            os.link(aside, claim)
        except FileExistsError:
            return False
        finally:
            aside.unlink()
    except OSError as error:
        _log.debug("cannot write %s: %s", claim, error)  # twice told beats untold
    return True


def _claim_path() -> Path | None:
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        return None
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        # torch's agent has made .../attempt_0/LOCAL_RANK/ for error.json
        return Path(error_file).parent.parent / _CLAIM
    job = f"{os.getuid()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    return Path(tempfile.gettempdir()) / f"jigsaw-forecast-{job}-{_CLAIM}"


def _launch(num_ranks: int, argv: list[str]) -> int:
    # torch takes seconds to import; --help and one-rank checks of arguments do without
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_ranks)))
    os.environ[_LAUNCHER_PID] = str(os.getpid())
    # the agent would report what it does to its ranks; the ranks tell the user what matters
    agent_log = logging.getLogger("torch.distributed.elastic")
    agent_log.addHandler(logging.NullHandler())
    agent_log.propagate = False
    with tempfile.TemporaryDirectory(prefix="jigsaw-forecast-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # any free port
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)(*_rank_command(), *argv)
        except ChildFailedError as error:
            claimed = _read_claim(Path(folder))
            if claimed is not None:
                return claimed
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            return _report_silent_death(exit_codes)
        except SignalException as error:
            claimed = _read_claim(Path(folder))
            if claimed is None:
                _log.error("stopped by %s", error.sigval.name)
            return _EXIT_STOPPED if claimed is None else claimed
    return 0


def _rank_command() -> tuple[str, ...]:
    """Interpreter options and module of a rank, finding modules where this process finds them."""
    # -m puts the working folder first on the path, where a user's zarr/ would hide the package
    in_working_folder = bool({"", os.getcwd()} & set(sys.path))
    return ("-m", _MODULE) if in_working_folder else ("-P", "-m", _MODULE)


def _read_claim(folder: Path) -> int | None:
    for claim in folder.glob(f"*/attempt_*/{_CLAIM}"):
        return int(json.loads(claim.read_text(encoding="utf-8"))["exit_code"])
    return None


def _report_silent_death(exit_codes: dict[int, int]) -> int:
    """Says what nobody else could: a rank ended without a word. Returns the run's exit code."""
    # SIGABRT is how torch ends a rank whose peer is gone, SIGTERM how the agent ends the rest
    follows = (-signal.SIGABRT, -signal.SIGTERM)
    rank, exit_code = min(exit_codes.items(), key=lambda item: (item[1] in follows, item[1] >= 0))
    if exit_code == _EXIT_STOPPED:
        _log.error("rank %d was stopped by a signal", rank)
    if exit_code >= 0:
        return exit_code
    name = signal.Signals(-exit_code).name
    hint = "; the system kills so when memory runs out" if exit_code == -signal.SIGKILL else ""
    _log.error("rank %d on host %s was ended by %s%s", rank, platform.node(), name, hint)
    # a kill or a termination comes from outside; SIGSEGV and its like are bugs
    from_outside = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
    return _EXIT_STOPPED if exit_code in from_outside else 1


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        )
    )


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
