"""Before anything is shared: all ranks compare what they are about to do."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping

import torch.distributed as dist

from jigsaw_forecast.errors import MeshError

_LONGEST_SHOWN = 60
_num_calls = 0


def agree_on_plan(parts: Mapping[str, str]) -> None:
    """Raises on every rank where any rank's plan differs from the others'.

    Goes through the run's store, which works whatever the shapes and versions of the ranks.

    Args:
        parts: What the rank is about to do, by name: versions, mesh, recipe.

    Raises:
        MeshError: Names the ranks that differ, in what, and what most ranks have.

    Communication:
        One text from each rank to rank 0 and its verdict back, through the store.
    """
    global _num_calls
    _num_calls += 1
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    prefix = f"plan/{_num_calls}"
    own = {"host": platform.node(), "parts": dict(parts)}
    store.set(f"{prefix}/{rank}", json.dumps(own))
    if rank == 0:
        plans = [
            json.loads(store.get(f"{prefix}/{other}")) for other in range(dist.get_world_size())
        ]
        store.set(f"{prefix}/verdict", "\n".join(describe_differences(plans)) or "agreed")
    verdict = store.get(f"{prefix}/verdict").decode()
    if verdict != "agreed":
        raise MeshError(verdict)


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
    return f"sha256 {digests[0]}..., the others have {digests[1]}..."
