"""Collectives on local tensors, counted; over an axis of one rank they do nothing.

Two rules hold everywhere. Communication that only moves data travels as raw bytes, so every
dtype works on every backend. Sums of bfloat16 are added in float32.
"""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from jigsaw_forecast import errors
from jigsaw_forecast.parallel.accounting import Kind
from jigsaw_forecast.parallel.mesh import Axis, Mesh

Result = TypeVar("Result")

# torch 2.13 renamed it; the old name warns there, the new one is missing before
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def all_gather(
    mesh: Mesh,
    piece: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """The pieces of all ranks along an axis, joined along `dim`.

    Args:
        mesh: This rank's mesh.
        piece: This rank's part.
        axis_name: Mesh axis to gather over.
        dim: Dim along which the parts are joined.
        kind: What the bytes are counted as.
        sizes: Length of each rank's part along `dim`; None where all are equal.

    Communication:
        One all-gather over the axis; receives (size - 1) / size of the result.
    """
    axis = mesh.axis(axis_name)
    if axis.size == 1:
        return piece
    length = piece.shape[dim]
    sizes = [length] * axis.size if sizes is None else list(sizes)
    longest = max(sizes)
    front = piece.movedim(dim, 0)
    if length < longest:
        padding = front.new_zeros((longest - length, *front.shape[1:]))
        front = torch.cat([front, padding])
    front = front.contiguous()
    gathered = front.new_empty((axis.size, *front.shape))
    if front.numel():
        _all_gather_single(_bytes(gathered), _bytes(front), group=axis.group)
    mesh.traffic.add(axis.name, kind, (axis.size - 1) * front.numel() * front.element_size())
    if min(sizes) == longest:
        joined = gathered.flatten(0, 1)
    else:
        joined = torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
    return joined.movedim(0, dim)


def reduce_scatter(
    mesh: Mesh,
    partial: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """This rank's part along `dim` of the sum of all ranks' tensors.

    Built from an all-to-all and a local sum: Gloo implements its own reduce-scatter as an
    all-reduce, which moves twice the bytes.

    Args:
        mesh: This rank's mesh.
        partial: A term of the sum, of the full length along `dim`.
        axis_name: Mesh axis to sum over.
        dim: Dim along which the sum is cut.
        kind: What the bytes are counted as.
        sizes: Length of each rank's part along `dim`; None for equal parts.

    Communication:
        One all-to-all over the axis; receives (size - 1) times the result.
    """
    axis = mesh.axis(axis_name)
    if axis.size == 1:
        return partial
    if sizes is None:
        assert partial.shape[dim] % axis.size == 0
        sizes = [partial.shape[dim] // axis.size] * axis.size
    front = partial.movedim(dim, 0).contiguous()
    own = sizes[axis.index]
    received = front.new_empty((axis.size * own, *front.shape[1:]))
    _exchange(axis, front, list(sizes), received, [own] * axis.size)
    row_bytes = front[:1].numel() * front.element_size()
    mesh.traffic.add(axis.name, kind, (axis.size - 1) * own * row_bytes)
    terms = received.view(axis.size, own, *front.shape[1:])
    wide = torch.float32 if front.dtype in (torch.bfloat16, torch.float16) else front.dtype
    return terms.sum(0, dtype=wide).to(front.dtype).movedim(0, dim)


def all_to_all(
    mesh: Mesh, outgoing: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]], axis_name: str
) -> list[torch.Tensor]:
    """What every rank of an axis sent to this one, in rank order.

    Args:
        mesh: This rank's mesh.
        outgoing: What to send to each rank, all of one dtype.
        shapes: Shape of what each rank sends here.
        axis_name: Mesh axis.

    Communication:
        One all-to-all; receives what `shapes` say, less this rank's own. Not counted as a
        forecast step's traffic: it carries initial conditions and output.
    """
    axis = mesh.axis(axis_name)
    if axis.size == 1:
        return list(outgoing)
    flat = torch.cat([part.reshape(-1) for part in outgoing])
    incoming_sizes = [torch.Size(shape).numel() for shape in shapes]
    received = flat.new_empty(sum(incoming_sizes))
    _exchange(axis, flat, [part.numel() for part in outgoing], received, incoming_sizes)
    parts = received.split(incoming_sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def exchange_rows(
    mesh: Mesh, to_north: torch.Tensor, to_south: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the northern and southern neighbours on the domain axis sent; None at a pole.

    Communication:
        Point to point with both neighbours; receives as many bytes as it sends.
    """
    axis = mesh.domain
    north, south = axis.index - 1, axis.index + 1
    operations, received = [], []
    for neighbour, outgoing in ((north, to_north), (south, to_south)):
        if not 0 <= neighbour < axis.size or not outgoing.numel():
            received.append(torch.empty_like(outgoing) if 0 <= neighbour < axis.size else None)
            continue
        outgoing = outgoing.contiguous()
        incoming = torch.empty_like(outgoing)
        operations += [
            dist.P2POp(dist.isend, _bytes(outgoing), group=axis.group, group_peer=neighbour),
            dist.P2POp(dist.irecv, _bytes(incoming), group=axis.group, group_peer=neighbour),
        ]
        received.append(incoming)
        mesh.traffic.add(axis.name, "activations", incoming.numel() * incoming.element_size())
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return received[0], received[1]


def all_reduce_sum(tensor: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Sums a tensor in place over mesh axes, one after the other, and returns it.

    Communication:
        One all-reduce for each axis of more than one rank.
    """
    for axis in axes:
        if axis.size > 1:
            dist.all_reduce(tensor, group=axis.group)
    return tensor


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
    _all_gather_single(lengths, own)
    longest = int(lengths.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=mesh.device)
    padded[: payload.numel()] = payload
    gathered = torch.empty(mesh.size * longest, dtype=torch.uint8, device=mesh.device)
    _all_gather_single(gathered, padded)
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
    raise kind("\n".join(dict.fromkeys(found["text"] for _, found in failures))) from failure


def _error_name(failure: Exception) -> str:
    """The name by which the other ranks know an error: that of its nearest class in `errors`."""
    names = [kind.__name__ for kind in type(failure).__mro__ if kind.__module__ == errors.__name__]
    return names[0] if names else type(failure).__name__


def barrier(mesh: Mesh) -> None:
    """Waits until every rank of the run is here."""
    if mesh.size > 1:
        dist.barrier()


def _exchange(
    axis: Axis,
    outgoing: torch.Tensor,
    outgoing_rows: list[int],
    incoming: torch.Tensor,
    incoming_rows: list[int],
) -> None:
    """All-to-all of rows along dim 0; either side may have none."""
    row = max(outgoing[:1].numel(), incoming[:1].numel())
    element = outgoing.element_size()
    dist.all_to_all_single(
        _bytes(incoming),
        _bytes(outgoing),
        [rows * row * element for rows in incoming_rows],
        [rows * row * element for rows in outgoing_rows],
        group=axis.group,
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
