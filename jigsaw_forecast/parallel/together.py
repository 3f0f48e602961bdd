"""What all ranks of a run do together beside the arithmetic: texts, failures, barriers."""

import json
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from jigsaw_forecast import errors
from jigsaw_forecast.parallel.collectives import all_gather_single
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.watch import waiting

Result = TypeVar("Result")

MAX_TEXTS = 4  # that one error shows; what is wrong with the data is wrong on hundreds of ranks


def gather_texts(mesh: Mesh, text: str) -> list[str]:
    """One text from every rank of the run, in rank order; without pickle.

    Communication:
        Two all-gathers over all ranks.
    """
    if mesh.size == 1:
        return [text]
    payload = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)
    payload = payload.to(mesh.device)
    lengths = torch.zeros(mesh.size, dtype=torch.int64, device=mesh.device)
    own = torch.tensor([payload.numel()], dtype=torch.int64, device=mesh.device)
    with waiting("gather of texts"):
        all_gather_single(lengths, own)
        longest = int(lengths.max())  # on a GPU it is this that waits
    padded = torch.zeros(longest, dtype=torch.uint8, device=mesh.device)
    padded[: payload.numel()] = payload
    gathered = torch.empty(mesh.size * longest, dtype=torch.uint8, device=mesh.device)
    with waiting("gather of texts"):
        all_gather_single(gathered, padded)
        rows = gathered.view(mesh.size, longest).cpu()
    return [
        json.loads(bytes(row[: int(length)].tolist()).decode())
        for row, length in zip(rows, lengths.cpu(), strict=True)
    ]


def together(mesh: Mesh, action: Callable[[], Result]) -> Result:
    """Runs an action on every rank; where it fails on any, every rank raises.

    The action itself must not communicate: a rank that fails in it would leave the others waiting.

    Raises:
        ForecastError: An action raised one: the first failing rank's kind on every rank, with
            every different message. `StoppedError` likewise.
        RuntimeError: Another rank failed in an unexpected way; that rank raises its own error.

    Communication:
        One gather of texts over all ranks.
    """
    failure: Exception | None = None
    result: Result | None = None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001  raised again below, after the others know of it
        failure = error
    own = {"kind": _error_name(failure), "text": str(failure)} if failure else {}
    gathered = [json.loads(text) for text in gather_texts(mesh, json.dumps(own))]
    failures = [(rank, found) for rank, found in enumerate(gathered) if found]
    if not failures:
        return result  # type: ignore[return-value]  # no failure: the action returned
    known = (errors.ForecastError, errors.StoppedError)
    if failure is not None and not isinstance(failure, known):
        raise failure
    for rank, found in failures:
        kind = getattr(errors, found["kind"], None)
        if kind is None:
            raise RuntimeError(f"rank {rank} failed: {found['kind']}: {found['text']}")
    kind = getattr(errors, failures[0][1]["kind"])
    texts = list(dict.fromkeys(found["text"] for _, found in failures))
    if len(texts) > MAX_TEXTS:
        texts = [*texts[:MAX_TEXTS], f"and {len(texts) - MAX_TEXTS} more like these on other ranks"]
    raise kind("\n".join(texts)) from failure


def _error_name(failure: Exception) -> str:
    """The name by which the other ranks know an error: that of its nearest class in `errors`."""
    names = [kind.__name__ for kind in type(failure).__mro__ if kind.__module__ == errors.__name__]
    return names[0] if names else type(failure).__name__


def barrier(mesh: Mesh) -> None:
    """Waits until every rank of the run is here."""
    if mesh.size > 1:
        with waiting("barrier"):
            dist.barrier()
