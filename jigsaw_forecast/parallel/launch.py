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
from pathlib import Path
from typing import Protocol

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.parallel.rank_environment import (
    distributed_environment as distributed_environment,
)

TIMEOUT_VARIABLE = "JIGSAW_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 600.0
_LAUNCHER_PID = "JIGSAW_LAUNCHER_PID"  # set for ranks that this module launched
_MODULE = "jigsaw_forecast.cli.main"  # what each rank runs again
_CLAIM = "first-failure.json"
_EXIT_STOPPED = 3
_PARENT_CHECK_PERIOD_S = 0.5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STARTED_AT_S = time.time()
# torch's C++ parts print a stack of many lines for each connection that a dead peer breaks
_TORCH_LOG_LEVEL = ("TORCH_CPP_LOG_LEVEL", "ERROR")

_log = logging.getLogger(__name__)


class Peers(Protocol):
    """What this module needs of the watch over the other ranks, which imports torch."""

    def find_ended_peer(self) -> str:
        """Which rank has ended the run, as far as is known; empty where none has."""

    def tell(self, message: str) -> None:
        """Tells the other ranks why this one ends."""


_peers: Peers | None = None


def set_peers(peers: Peers | None) -> None:
    """Sets through whom this process knows the other ranks of its run, None for nobody."""
    global _peers
    _peers = peers


def find_ended_peer() -> str:
    """Which rank has ended the run, as far as is known; empty where none has."""
    return _peers.find_ended_peer() if _peers is not None else ""


def read_timeout_s() -> float:
    """Seconds that a rank may wait for the others, from the environment.

    Raises:
        MeshError: The variable is no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e7:  # also refuses NaN
        raise MeshError(
            f"{TIMEOUT_VARIABLE}={text}: expected a positive number of seconds, for example 600"
        )
    return seconds


def launched_here() -> bool:
    """Whether this process is a rank that this module's own launcher started."""
    return _LAUNCHER_PID in os.environ and "RANK" in os.environ


def ensure_ranks(num_ranks: int, argv: list[str]) -> int | None:
    """Sees to it that the command runs on `num_ranks` ranks.

    Where a launcher started this process, exports the variables that `torch.distributed` reads
    (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE where it is known, MASTER_ADDR, MASTER_PORT)
    and ties the process to the launcher's life where the launcher is torch's. Where none did and
    more than one rank is wanted, launches them, waits for them, and forwards SIGTERM and SIGINT to
    them.

    Args:
        num_ranks: Size of the mesh.
        argv: Arguments of the command line, without the program's name.

    Returns:
        None when this process is a rank and goes on; the exit code when it launched ranks and
        they have ended.

    Raises:
        MeshError: The launcher started another number of ranks, or the environment is wrong.
    """
    environment = distributed_environment()
    read_timeout_s()  # what is wrong with it is said before anything starts
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
    if environment.local_world_size is not None:
        os.environ["LOCAL_WORLD_SIZE"] = str(environment.local_world_size)
    os.environ.setdefault(*_TORCH_LOG_LEVEL)
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


def claim_failure(exit_code: int, message: str = "") -> bool:
    """Whether this process is the one that tells the user about the run's failure.

    The first rank of a machine that fails claims the right; the others end silently, since what
    they have to say is the same or follows from the first. A process without peers always may.

    Args:
        exit_code: What this process is about to exit with; the launcher returns the claimer's.
        message: Why, for the ranks of other machines; empty where they know.
    """
    if _peers is not None:
        _peers.tell(message)
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
    os.environ.setdefault(*_TORCH_LOG_LEVEL)
    # how long a signalled agent leaves its ranks: a step and a save take longer than torch's 30 s,
    # and the watch ends ranks that hang
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(read_timeout_s())))
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
            elastic_launch(config, sys.executable)(*module_arguments(_MODULE), *argv)
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


def module_arguments(module: str) -> tuple[str, ...]:
    """Arguments of an interpreter that runs a module and finds others where this process does."""
    # -m puts the working folder first on the path, where a user's zarr/ would hide the package
    in_working_folder = bool({"", os.getcwd()} & set(sys.path))
    return ("-m", module) if in_working_folder else ("-P", "-m", module)


def _read_claim(folder: Path) -> int | None:
    for claim in folder.glob(f"*/attempt_*/{_CLAIM}"):
        return int(json.loads(claim.read_text(encoding="utf-8"))["exit_code"])
    return None


def _report_silent_death(exit_codes: dict[int, int]) -> int:
    """Says what nobody else could: a rank ended without a word. Returns the run's exit code."""
    # SIGABRT is how torch ends a rank whose peer is gone, SIGTERM how the agent ends the rest
    follows = (-signal.SIGABRT, -signal.SIGTERM)
    rank, exit_code = min(exit_codes.items(), key=lambda item: (item[1] in follows, item[1] >= 0))
    host = platform.node()
    if exit_code == _EXIT_STOPPED:
        _log.error("rank %d on host %s was stopped by a signal", rank, host)
    if exit_code >= 0:
        return exit_code
    name = signal.Signals(-exit_code).name
    hint = "; the system kills so when memory runs out" if exit_code == -signal.SIGKILL else ""
    _log.error("rank %d on host %s was ended by %s%s", rank, host, name, hint)
    # a kill or a termination comes from outside; SIGSEGV and its like are bugs
    from_outside = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
    return _EXIT_STOPPED if exit_code in from_outside else 1


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
