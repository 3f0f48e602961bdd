"""Before anything is shared: the ranks of a run meet, and compare what they are about to do."""

import contextlib
import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from jigsaw_forecast.errors import MeshError, StoppedError

_LONGEST_SHOWN = 60
_MOST_NAMED = 8
_AGREED = "agreed"
_LAST_READ = timedelta(seconds=5)
_num_calls = 0


def meet(timeout_s: float) -> tuple[Store, int, int]:
    """Waits until all ranks are there.

    Returns:
        The store that they share, this rank and the number of ranks, from the launcher's
        variables.

    Raises:
        StoppedError: Names the ranks that did not come in time.

    Communication:
        One text to the store from each rank.
    """
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    own = f"rank {rank} on host {platform.node()}"
    deadline_s = time.monotonic() + timeout_s
    try:
        # without torch's own wait for the others, which only counts them
        base = TCPStore(
            host,
            port,
            num_ranks,
            is_master=rank == 0 and not has_agent,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        if rank == 0 and not has_agent:
            raise StoppedError(
                f"{own} cannot gather the others at {host}:{port}: {error}; set MASTER_PORT to a "
                "port that is free and MASTER_ADDR to a name of this host"
            ) from error
        keeper = "the launcher" if has_agent else f"rank 0 of {num_ranks}"
        raise StoppedError(
            f"{keeper} could not be reached by {own} at {host}:{port} within {timeout_s:g} s: it "
            "has not started, has ended, or the network does not let it through"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"jigsaw/{attempt}", base)
    keys = [f"came/{other}" for other in range(num_ranks)]
    store.set(keys[rank], "")
    try:
        store.wait(keys, timedelta(seconds=max(deadline_s - time.monotonic(), 1.0)))
    except dist.DistError as error:
        missing = [str(other) for other, key in enumerate(keys) if not _is_set(store, key)]
        shown = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        raise StoppedError(
            f"rank {shown} of {num_ranks} did not come to {host}:{port} within {timeout_s:g} s; "
            f"{own} waited"
        ) from error
    return store, rank, num_ranks


def _is_set(store: Store, key: str) -> bool:
    try:
        return bool(store.check([key]))
    except dist.DistError:  # whoever keeps the store has given up first
        return False


def agree_on_plan(
    parts: Mapping[str, str], store: Store, rank: int, num_ranks: int, timeout_s: float
) -> None:
    """Raises on every rank where any rank's plan differs from the others'.

    Goes through the run's store, which works whatever the shapes and versions of the ranks.

    Args:
        parts: What the rank is about to do, by name: versions, mesh, recipe.
        store: The run's store.
        rank: This rank.
        num_ranks: Ranks of the run as this rank knows it.
        timeout_s: How long to wait for the others.

    Raises:
        MeshError: Names the ranks that differ, in what, and what most ranks have.

    Communication:
        One text from each rank to rank 0 and its verdict back, through the store.
    """
    global _num_calls
    _num_calls += 1
    prefix, limit = f"plan/{_num_calls}", timedelta(seconds=timeout_s)
    own = {
        "host": platform.node(),
        "parts": {"number of ranks": str(num_ranks), **parts},
    }
    store.set(f"{prefix}/{rank}", json.dumps(own))
    if rank == 0:
        keys = [f"{prefix}/{other}" for other in range(num_ranks)]
        store.wait(keys, limit)
        plans = [json.loads(store.get(key)) for key in keys]
        store.set(f"{prefix}/verdict", "\n".join(describe_differences(plans)) or _AGREED)
    store.wait([f"{prefix}/verdict"], limit)
    verdict = store.get(f"{prefix}/verdict").decode()
    _leave_together(store, prefix, num_ranks)
    if verdict != _AGREED:
        raise MeshError(verdict)


def _leave_together(store: Store, prefix: str, num_ranks: int) -> None:
    """Waits until all have the verdict: where it is bad, rank 0 ends, and the store with it."""
    with contextlib.suppress(dist.DistError):
        if store.add(f"{prefix}/read", 1) == num_ranks:
            store.set(f"{prefix}/all have read", "")
        store.wait([f"{prefix}/all have read"], _LAST_READ)


def describe_differences(plans: list[dict[str, dict[str, str]]]) -> list[str]:
    """One line for each rank that differs from most; of equal numbers rank 0's side is right."""
    names = list(dict.fromkeys(name for plan in plans for name in plan["parts"]))
    expected = {}
    for name in names:
        counts = Counter(plan["parts"].get(name, "nothing") for plan in plans)
        expected[name] = counts.most_common(1)[0][0]  # the first seen wins a tie
    lines = []
    for rank, plan in enumerate(plans):
        found = [
            f"{name} {_short(plan['parts'].get(name, 'nothing'), expected[name])}"
            for name in names
            if plan["parts"].get(name, "nothing") != expected[name]
        ]
        if found:
            lines.append(f"rank {rank} on host {plan['host']} differs: {'; '.join(found)}")
    if lines:
        lines.append("start every rank with the same installation, files and arguments")
    return lines


def _short(found: str, expected: str) -> str:
    if max(len(found), len(expected)) <= _LONGEST_SHOWN:
        return f"{found}, the others have {expected}"
    digests = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in (found, expected)]
    return f"sha256 {digests[0]}..., the others have sha256 {digests[1]}..."
