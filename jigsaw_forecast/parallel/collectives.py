"""Collectives on local tensors, counted; over an axis of one rank they do nothing.

Rules that hold everywhere. A collective is begun by `start_...`, which returns at once, and ended
by `wait`. Communication that only moves data travels as raw bytes, so every dtype works on every
backend. Sums of bfloat16 are added in float32. Meta tensors are counted and go nowhere, which is
how `plan` looks at a mesh that does not exist.
"""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from jigsaw_forecast import errors
from jigsaw_forecast.parallel.accounting import Kind, Operation
from jigsaw_forecast.parallel.mesh import Axis, Mesh
from jigsaw_forecast.parallel.watch import waiting

Result = TypeVar("Result")

# torch 2.13 renamed it; the old name warns there, the new one is missing before
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Pending:
    """A tensor that is on its way: its collective has begun and may not have ended.

    On CPUs the backend's threads carry it, on GPUs a stream of its own.
    """

    def __init__(
        self,
        mesh: Mesh,
        operation: Operation,
        work: dist.Work | None,
        buffers: Sequence[torch.Tensor],
        finish: Callable[[], torch.Tensor],
    ) -> None:
        """Notes what travels; `finish` makes the result out of what has arrived."""
        self._mesh = mesh
        self._operation = operation
        self._work = work
        self._num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in buffers)
        self._finish: Callable[[], torch.Tensor] | None = finish
        mesh.traffic.begin(operation, self._num_bytes)

    def wait(self) -> torch.Tensor:
        """The result, once; the buffers are let go."""
        assert self._finish is not None, "a result is taken once"
        if self._work is not None:
            with waiting(str(self._operation)):
                self._work.wait()
        self._mesh.traffic.end(self._operation, self._num_bytes)
        result = self._finish()
        self._finish = self._work = None
        return result


class Ready(Pending):
    """A tensor that needs no communication."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Holds it."""
        self._tensor: torch.Tensor | None = tensor

    def wait(self) -> torch.Tensor:
        """The tensor, once."""
        tensor, self._tensor = self._tensor, None
        assert tensor is not None, "a result is taken once"
        return tensor


def start_all_gather(
    mesh: Mesh,
    piece: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> Pending:
    """Begins to join the pieces of all ranks along an axis.

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
        return Ready(piece)
    own = piece.contiguous()
    shapes = [own.shape] * axis.size
    if sizes is not None:
        shapes = [torch.Size((*own.shape[:dim], n, *own.shape[dim + 1 :])) for n in sizes]
    longest = max(shape.numel() for shape in shapes)
    if own.numel() < longest:
        padding = own.new_zeros(longest - own.numel())
        own = torch.cat([own.reshape(-1), padding])
    gathered = own.new_empty((axis.size, longest))
    work = None
    if longest and not own.is_meta:
        work = _all_gather_single(_bytes(gathered), _bytes(own), group=axis.group, async_op=True)
    operation = Operation("all-gather", axis.name, kind, (axis.size - 1) * _num_bytes(own))

    def finish() -> torch.Tensor:
        if dim == 0 and len(set(shapes)) == 1:
            return gathered.view(axis.size * shapes[0][0], *shapes[0][1:])
        parts = [
            row[: shape.numel()].view(shape) for row, shape in zip(gathered, shapes, strict=True)
        ]
        return torch.cat(parts, dim)

    return Pending(mesh, operation, work, (own, gathered), finish)


def all_gather(
    mesh: Mesh,
    piece: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """The pieces of all ranks along an axis, joined along `dim`; see `start_all_gather`."""
    return start_all_gather(mesh, piece, axis_name, dim, kind, sizes).wait()


def start_reduce_scatter(
    mesh: Mesh,
    partial: torch.Tensor,
    axis_name: str,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> Pending:
    """Begins to sum all ranks' tensors; the result is this rank's part along dim 0.

    Built from an all-to-all and a local sum: Gloo implements its own reduce-scatter as an
    all-reduce, which moves twice the bytes. bfloat16 is summed in float32.

    Args:
        mesh: This rank's mesh.
        partial: A term of the sum, of the full length along dim 0; not changed until the end.
        axis_name: Mesh axis to sum over.
        kind: What the bytes are counted as.
        sizes: Length of each rank's part; None for equal parts.

    Communication:
        One all-to-all over the axis; receives (size - 1) times the result.
    """
    axis = mesh.axis(axis_name)
    if axis.size == 1:
        return Ready(partial)
    if sizes is None:
        assert partial.shape[0] % axis.size == 0
        sizes = [partial.shape[0] // axis.size] * axis.size
    outgoing = partial.contiguous()
    own = sizes[axis.index]
    received = outgoing.new_empty((axis.size, own, *outgoing.shape[1:]))
    work = _start_exchange(axis, outgoing, list(sizes), received.flatten(0, 1), [own] * axis.size)
    operation = Operation(
        "reduce-scatter", axis.name, kind, (axis.size - 1) * _num_bytes(received[:1])
    )

    def finish() -> torch.Tensor:
        if received.dtype in (torch.bfloat16, torch.float16):
            return received.sum(0, dtype=torch.float32).to(received.dtype)
        total = received[0] + received[1]
        for term in received[2:]:
            total += term
        return total

    return Pending(mesh, operation, work, (outgoing, received), finish)


def reduce_scatter(
    mesh: Mesh,
    partial: torch.Tensor,
    axis_name: str,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """This rank's part along dim 0 of the sum of all ranks' tensors; see the starting form."""
    return start_reduce_scatter(mesh, partial, axis_name, kind, sizes).wait()


def average_in_future(mesh: Mesh, tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Begins to replace a gradient by its mean over the data axis, in place.

    Communication:
        One all-reduce over data; a ring receives 2 (size - 1) / size of the tensor.
    """
    axis = mesh.data
    received = 2 * (axis.size - 1) * _num_bytes(tensor) // axis.size
    mesh.traffic.begin(Operation("all-reduce", axis.name, "weights", received), 0)
    work = dist.all_reduce(tensor.div_(axis.size), group=axis.group, async_op=True)
    assert work is not None
    future: torch.futures.Future[list[torch.Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])


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
    work = _start_exchange(
        axis, flat, [part.numel() for part in outgoing], received, incoming_sizes
    )
    _finish(work, f"all-to-all over {axis_name}")
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
    operations: list[dist.P2POp] = []
    received: list[torch.Tensor | None] = []
    num_received = 0
    for neighbour, outgoing in ((axis.index - 1, to_north), (axis.index + 1, to_south)):
        if not 0 <= neighbour < axis.size:
            received.append(None)
            continue
        outgoing = outgoing.contiguous()
        incoming = torch.empty_like(outgoing)
        received.append(incoming)
        num_received += _num_bytes(incoming)
        if outgoing.numel() and not outgoing.is_meta:
            operations += [
                dist.P2POp(dist.isend, _bytes(outgoing), group=axis.group, group_peer=neighbour),
                dist.P2POp(dist.irecv, _bytes(incoming), group=axis.group, group_peer=neighbour),
            ]
    works = dist.batch_isend_irecv(operations) if operations else []

    def finish() -> torch.Tensor:
        for work in works:
            _finish(work, "rows of the neighbours over domain")
        return to_north

    if num_received:
        operation = Operation("rows", axis.name, "activations", num_received)
        Pending(mesh, operation, None, (), finish).wait()
    return received[0], received[1]


def all_reduce_sum(tensor: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Sums a tensor in place over mesh axes, one after the other, and returns it.

    Communication:
        One all-reduce for each axis of more than one rank.
    """
    for axis in axes:
        if axis.size > 1 and not tensor.is_meta:
            _finish(
                dist.all_reduce(tensor, group=axis.group, async_op=True),
                f"all-reduce over {axis.name}",
            )
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
    with waiting("gather of texts"):
        _all_gather_single(lengths, own)
    longest = int(lengths.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=mesh.device)
    padded[: payload.numel()] = payload
    gathered = torch.empty(mesh.size * longest, dtype=torch.uint8, device=mesh.device)
    with waiting("gather of texts"):
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
        with waiting("barrier"):
            dist.barrier()


def _start_exchange(
    axis: Axis,
    outgoing: torch.Tensor,
    outgoing_rows: list[int],
    incoming: torch.Tensor,
    incoming_rows: list[int],
) -> dist.Work | None:
    """Begins an all-to-all of rows along dim 0; either side may have none."""
    if outgoing.is_meta:
        return None
    row_bytes = max(_num_bytes(outgoing[:1]), _num_bytes(incoming[:1]))
    work: dist.Work | None = dist.all_to_all_single(
        _bytes(incoming),
        _bytes(outgoing),
        [rows * row_bytes for rows in incoming_rows],
        [rows * row_bytes for rows in outgoing_rows],
        group=axis.group,
        async_op=True,
    )
    return work


def _finish(work: dist.Work | None, name: str) -> None:
    if work is not None:
        with waiting(name):
            work.wait()


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
