"""How a process finds its place among ranks, whoever launched it."""

import os
from pathlib import Path

import pytest

from jigsaw_forecast.errors import MeshError
from jigsaw_forecast.parallel import launch
from jigsaw_forecast.parallel.launch import ensure_ranks
from jigsaw_forecast.parallel.rank_environment import (
    RankEnvironment,
    distributed_environment,
    first_host,
    tasks_per_node,
)

PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "TORCHELASTIC_", "JIGSAW_LAUNCHER")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OTHERS = ("LOCAL_WORLD_SIZE", "TORCH_CPP_LOG_LEVEL", launch.TIMEOUT_VARIABLE)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts each test outside of any launcher and undoes what `ensure_ranks` exports."""
    for name in os.environ:
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    for name in (*NAMES, *OTHERS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def set_slurm(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    defaults = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NNODES": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "gpu[007-008]",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    }
    set_all(monkeypatch, **(defaults | values))


def test_a_bare_process_has_no_place() -> None:
    assert distributed_environment() is None


def test_a_bare_process_with_a_mesh_of_one_goes_on() -> None:
    assert ensure_ranks(1, []) is None


def test_torchrun_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="node1")
    set_all(monkeypatch, MASTER_PORT="29500")
    assert distributed_environment() == RankEnvironment(3, 4, 1, "node1", 29500, "torchrun")
    assert ensure_ranks(4, []) is None


def test_a_mesh_of_another_size_than_torchrun_started_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", MASTER_ADDR="localhost")
    set_all(monkeypatch, MASTER_PORT="29500")
    with pytest.raises(MeshError, match="the mesh has 2 ranks, torchrun started 4; start 2"):
        ensure_ranks(2, [])


def test_all_that_torchrun_left_out_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost")
    with pytest.raises(MeshError, match="missing: LOCAL_RANK, MASTER_PORT"):
        distributed_environment()


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, RANK="zero", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_PORT="1")
    with pytest.raises(MeshError, match="RANK='zero' is not a number"):
        distributed_environment()


def test_a_rank_beyond_the_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, RANK="2", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_PORT="1", MASTER_ADDR="a")
    with pytest.raises(MeshError, match="calls this rank 2 of 2 ranks; expected 0 to 1"):
        distributed_environment()


def test_srun_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch)
    found = distributed_environment()
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank) == (5, 8, 1)
    assert (found.master_addr, found.launcher) == ("gpu007", "srun")
    assert 1024 < found.master_port < 32768


def test_the_translation_of_srun_is_what_torch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch)
    assert ensure_ranks(8, []) is None
    values = {name: os.environ[name] for name in NAMES if name != "MASTER_PORT"}
    assert values == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu007"}


@pytest.mark.parametrize(("node", "num_tasks"), [("0", "4"), ("1", "4"), ("2", "3")])
def test_srun_tells_how_many_ranks_share_a_node(
    monkeypatch: pytest.MonkeyPatch, node: str, num_tasks: str
) -> None:
    set_slurm(monkeypatch, SLURM_NNODES="3", SLURM_NTASKS="11", SLURM_NODEID=node)
    set_all(monkeypatch, SLURM_STEP_TASKS_PER_NODE="4(x2),3")
    assert ensure_ranks(11, []) is None
    assert os.environ["LOCAL_WORLD_SIZE"] == num_tasks


def test_the_tasks_of_a_step_on_one_node_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, SLURM_NNODES="1")
    assert ensure_ranks(8, []) is None
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"


@pytest.mark.parametrize(
    ("text", "counts"), [("4(x2),3", [4, 4, 3]), ("2", [2]), ("1,2(x3)", [1, 2, 2, 2]), ("x", [])]
)
def test_the_task_counts_of_slurm_are_read(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts


def test_all_tasks_of_a_step_choose_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for rank in range(4):
        set_slurm(monkeypatch, SLURM_PROCID=str(rank))
        found = distributed_environment()
        assert found is not None
        ports.add(found.master_port)
    assert len(ports) == 1


def test_a_step_smaller_than_its_job_counts_its_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")
    found = distributed_environment()
    assert found is not None
    assert found.world_size == 2


def test_a_step_on_one_node_needs_no_name_service(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, SLURM_NNODES="1")
    found = distributed_environment()
    assert found is not None
    assert found.master_addr == "127.0.0.1"


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_LOCALID="0", SLURM_NNODES="1")
    assert distributed_environment() is None


def test_an_srun_of_one_task_may_launch_ranks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_NNODES="1")
    assert distributed_environment() is None


def test_torchrun_inside_of_srun_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch)
    set_all(monkeypatch, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="a", MASTER_PORT="1")
    found = distributed_environment()
    assert found is not None
    assert found.launcher == "torchrun"


def test_open_mpi_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_LOCAL_SIZE="2",
        PMIX_NAMESPACE="prterun-7@1",
    )
    found = distributed_environment()
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank) == (1, 2, 1)
    assert (found.master_addr, found.launcher) == ("127.0.0.1", "mpirun")
    assert found.local_world_size == 2


def test_hydra_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, PMI_RANK="2", PMI_SIZE="4", MPI_LOCALRANKID="2", MPI_LOCALNRANKS="4")
    found = distributed_environment()
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank) == (2, 4, 2)
    assert found.local_world_size == 4


def test_mpirun_over_hosts_needs_the_address_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, PMI_RANK="2", PMI_SIZE="4", MPI_LOCALRANKID="0", MPI_LOCALNRANKS="2")
    with pytest.raises(MeshError, match="missing: MASTER_ADDR; pass it to all ranks"):
        distributed_environment()


@pytest.mark.parametrize("text", ["0", "-3", "nan", "soon", ""])
def test_a_timeout_that_is_no_positive_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(launch.TIMEOUT_VARIABLE, text)
    with pytest.raises(MeshError, match=f"JIGSAW_TIMEOUT_S={text}: expected a positive number"):
        ensure_ranks(2, [])


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[003-010,12],gpu1", "node003"),
        ("node[7,9]", "node7"),
        ("login1,gpu[1-2]", "login1"),
        ("rack[1-2]-gpu,x", "rack1-gpu"),
    ],
)
def test_the_first_host_of_a_slurm_node_list_is_found(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


def test_a_process_without_peers_tells_its_failure() -> None:
    assert launch.claim_failure(2)


def test_of_two_ranks_that_fail_one_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = []
    for rank in ("1", "0"):
        error_file = tmp_path / "attempt_0" / rank / "error.json"
        error_file.parent.mkdir(parents=True)
        set_all(monkeypatch, RANK=rank, WORLD_SIZE="2", TORCHELASTIC_ERROR_FILE=str(error_file))
        told.append(launch.claim_failure(2))
    assert told == [True, False]


def test_a_claim_of_an_earlier_run_silences_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch.tempfile, "gettempdir", lambda: str(tmp_path))
    set_all(monkeypatch, RANK="0", WORLD_SIZE="2", MASTER_PORT="29500")
    assert launch.claim_failure(2)
    (claim,) = tmp_path.iterdir()
    os.utime(claim, (0, 0))
    assert launch.claim_failure(2)
    assert not launch.claim_failure(2)
