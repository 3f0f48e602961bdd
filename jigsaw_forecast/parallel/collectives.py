"""Collectives on local tensors, counted; over an axis of one rank they do nothing.

Rules that hold everywhere. A collective is begun by `start_...`, which returns at once, and ended
by `wait`. Communication that only moves data travels as raw bytes, so every dtype works on every
backend. Sums of bfloat16 are added in float32. Meta tensors are counted and go nowhere, which is
how `plan` looks at a mesh that does not exist.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from jigsaw_forecast.parallel.accounting import Kind, Operation
from jigsaw_forecast.parallel.mesh import Axis, Mesh
from jigsaw_forecast.parallel.watch import waiting

Result = TypeVar("Result")

# torch 2.13 renamed it; the old name warns there, the new one is missing before
all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Pending(Generic[Result]):
    """What is on its way: its collective has begun and may not have ended.

    On CPUs the backend's threads carry it, on GPUs a stream of its own.
    """

    def __init__(
        self,
        mesh: Mesh,
        operation: Operation,
        works: Sequence[dist.Work],
        buffers: Sequence[torch.Tensor],
        finish: Callable[[], Result],
    ) -> None:
        """Notes what travels; `finish` makes the result out of what has arrived."""
        self._mesh = mesh
        self._operation = operation
        self._works = works
        self._buffers = tuple(buffers)
        self._num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in buffers)
        self._finish: Callable[[], Result] | None = finish
        mesh.traffic.begin(operation, self._num_bytes)

    def wait(self) -> Result:
        """The result, once; the buffers are let go."""
        assert self._finish is not None, "a result is taken once"
        if self._works:
            with waiting(str(self._operation)):
                for work in self._works:
                    work.wait()
        self._mesh.traffic.end(self._operation, self._num_bytes)
        finish, self._finish = self._finish, None
        self._works, self._buffers = (), ()  # what was sent goes before the result is made
        return finish()


class Ready(Pending[Result]):
    """What needs no communication."""

    def __init__(self, result: Result) -> None:
        """Holds it."""
        self._result: Result | None = result

    def wait(self) -> Result:
        """The result, once."""
        result, self._result = self._result, None
        assert result is not None, "a result is taken once"
        return result


def start_all_gather(
    mesh: Mesh,
    piece: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> Pending[torch.Tensor]:
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
    shapes = _shapes(own, axis, dim, sizes)
    if dim > 0:
        whole, slots = _empty_slots(own, shapes, axis.index)
        return _start_gather(mesh, axis, kind, own, whole, slots, lambda: torch.cat(slots, dim))
    rows = [shape[0] for shape in shapes]
    joined = own.new_empty((sum(rows), *own.shape[1:]))
    slots = list(joined.split(rows))
    whole = joined if len(set(rows)) == 1 else None
    return _start_gather(mesh, axis, kind, own, whole, slots, lambda: joined)


def start_gather_parts(
    mesh: Mesh,
    piece: torch.Tensor,
    axis_name: str,
    dim: int,
    kind: Kind,
    sizes: Sequence[int] | None = None,
) -> Pending[list[torch.Tensor]]:
    """Begins to gather the pieces of all ranks, in rank order and as they are.

    Arguments and communication as in `start_all_gather`, whose copy this saves where `dim` is
    not the first.
    """
    axis = mesh.axis(axis_name)
    if axis.size == 1:
        return Ready([piece])
    own = piece.contiguous()
    whole, slots = _empty_slots(own, _shapes(own, axis, dim, sizes), axis.index)
    return _start_gather(mesh, axis, kind, own, whole, slots, lambda: slots)


def _shapes(
    own: torch.Tensor, axis: Axis, dim: int, sizes: Sequence[int] | None
) -> list[torch.Size]:
    if sizes is None:
        return [own.shape] * axis.size
    return [torch.Size((*own.shape[:dim], n, *own.shape[dim + 1 :])) for n in sizes]


def _empty_slots(
    own: torch.Tensor, shapes: list[torch.Size], index: int
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Where the pieces arrive; NCCL fills one buffer, elsewhere the own piece stays where it is."""
    if own.is_cuda and len(set(shapes)) == 1:
        whole = own.new_empty((len(shapes), *own.shape))
        return whole, list(whole)
    return None, [own if n == index else own.new_empty(shape) for n, shape in enumerate(shapes)]


def _start_gather(
    mesh: Mesh,
    axis: Axis,
    kind: Kind,
    own: torch.Tensor,
    whole: torch.Tensor | None,
    slots: list[torch.Tensor],
    finish: Callable[[], Result],
) -> Pending[Result]:
    """Begins an all-gather.

    Gloo's own gathers into a buffer of its own and copies from there: between CPUs the pieces
    go point to point, each straight to its place.

    Args:
        mesh: This rank's mesh.
        axis: Of more than one rank.
        kind: What the bytes are counted as.
        own: This rank's piece.
        whole: All slots as one buffer, where they are one and equally long.
        slots: Where each rank's piece arrives.
        finish: Makes the result out of what has arrived.
    """
    group = axis.group_for(kind)
    works: list[dist.Work] = []
    if own.is_cuda and whole is not None:
        works = [all_gather_single(_bytes(whole), _bytes(own), group=group, async_op=True)]
    elif own.is_cuda:
        flat = [_bytes(slot) for slot in slots]
        works = [dist.all_gather(flat, _bytes(own), group=group, async_op=True)]
    else:
        works = _start_point_to_point(group, axis.index, [own] * axis.size, slots)
        if slots[axis.index] is not own:
            slots[axis.index].copy_(own)
    others = [slot for index, slot in enumerate(slots) if index != axis.index]
    operation = Operation("all-gather", axis.name, kind, sum(map(_num_bytes, others)))
    buffers = [own, *(slot for slot in slots if slot is not own)]
    return Pending(mesh, operation, works, buffers, finish)


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
) -> Pending[torch.Tensor]:
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
    group, terms = axis.group_for(kind), list(outgoing.split(list(sizes)))
    own = terms[axis.index]
    if outgoing.is_cuda:
        received = own.new_empty((axis.size, *own.shape))
        works = _start_exchange(
            group, outgoing, list(sizes), received.flatten(0, 1), [len(own)] * axis.size
        )
        arriving = list(received)
    else:
        arriving = [
            own if index == axis.index else torch.empty_like(own) for index in range(axis.size)
        ]
        works = _start_point_to_point(group, axis.index, terms, arriving)
    operation = Operation("reduce-scatter", axis.name, kind, (axis.size - 1) * _num_bytes(own))
    buffers = [outgoing, *(term for term in arriving if term is not own)]
    return Pending(mesh, operation, works, buffers, lambda: _sum(arriving, axis.index))


def _sum(terms: list[torch.Tensor], own_index: int) -> torch.Tensor:
    """The sum in rank order; changes the terms that arrived and not the own one."""
    if terms[0].dtype in (torch.bfloat16, torch.float16):
        total = terms[0].float()
        for term in terms[1:]:
            total += term
        return total.to(terms[0].dtype)
    total = terms[1] if own_index == 0 else terms[0]
    torch.add(terms[0], terms[1], out=total)
    for term in terms[2:]:
        total += term
    return total


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
    works = _start_exchange(
        axis.group, flat, [part.numel() for part in outgoing], received, incoming_sizes
    )
    _finish(works, f"all-to-all over {axis_name}")
    parts = received.split(incoming_sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def exchange(
    mesh: Mesh,
    outgoing: Sequence[Sequence[torch.Tensor]],
    incoming: Sequence[Sequence[torch.Tensor]],
    axis_name: str,
) -> None:
    """Sends tensors to every rank of an axis and fills tensors with what they send; no copies.

    Args:
        mesh: This rank's mesh.
        outgoing: What to send to each rank, contiguous; its own entry is passed over.
        incoming: What each rank's tensors go into, contiguous and in the order that it sends.
        axis_name: Mesh axis.

    Communication:
        Point to point with every rank that has something to send or to receive. Not counted as a
        forecast step's traffic: it carries initial conditions and output.
    """
    axis = mesh.axis(axis_name)
    operations = []
    for peer, (sent, received) in enumerate(zip(outgoing, incoming, strict=True)):
        if peer != axis.index:
            operations += _to_and_from(axis.group, peer, sent, received)
    works = dist.batch_isend_irecv(operations) if operations else []
    _finish(works, f"point to point over {axis_name}")


def exchange_rows(
    mesh: Mesh, to_north: torch.Tensor, to_south: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the northern and southern neighbours on the domain axis sent; None at a pole.

    Communication:
        Point to point with both neighbours; receives as many bytes as it sends.
    """
    axis = mesh.domain
    outgoing: list[torch.Tensor | None] = [None] * axis.size
    received: list[torch.Tensor | None] = [None] * axis.size
    north, south = axis.index - 1, axis.index + 1
    for neighbour, rows in ((north, to_north), (south, to_south)):
        if 0 <= neighbour < axis.size:
            outgoing[neighbour] = rows.contiguous()
            received[neighbour] = torch.empty_like(rows, memory_format=torch.contiguous_format)
    works = _start_point_to_point(axis.group, axis.index, outgoing, received)
    num_received = sum(_num_bytes(rows) for rows in received if rows is not None)
    if num_received:
        operation = Operation("rows", axis.name, "activations", num_received)
        Pending(mesh, operation, works, (), lambda: None).wait()
    return (
        received[north] if north >= 0 else None,
        received[south] if south < axis.size else None,
    )


def all_reduce_sum(tensor: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Sums a tensor in place over mesh axes, one after the other, and returns it.

    Communication:
        One all-reduce for each axis of more than one rank.
    """
    for axis in axes:
        if axis.size > 1 and not tensor.is_meta:
            work = dist.all_reduce(tensor, group=axis.group, async_op=True)
            _finish([work], f"all-reduce over {axis.name}")
    return tensor


def _start_point_to_point(
    group: dist.ProcessGroup | None,
    index: int,
    outgoing: Sequence[torch.Tensor | None],
    incoming: Sequence[torch.Tensor | None],
) -> list[dist.Work]:
    """Begins to send to and receive from each rank of a group what is meant for it."""
    operations = []
    for peer, (sent, received) in enumerate(zip(outgoing, incoming, strict=True)):
        if peer != index:
            to_peer, from_peer = ([] if one is None else [one] for one in (sent, received))
            operations += _to_and_from(group, peer, to_peer, from_peer)
    return dist.batch_isend_irecv(operations) if operations else []


def _to_and_from(
    group: dist.ProcessGroup | None,
    peer: int,
    sent: Sequence[torch.Tensor],
    received: Sequence[torch.Tensor],
) -> list[dist.P2POp]:
    """What carries tensors to a rank of a group and from it, each in order."""
    return [
        dist.P2POp(way, _bytes(tensor), group=group, group_peer=peer)
        for way, tensors in ((dist.isend, sent), (dist.irecv, received))
        for tensor in tensors
        if tensor.numel() and not tensor.is_meta
    ]


def _start_exchange(
    group: dist.ProcessGroup | None,
    outgoing: torch.Tensor,
    outgoing_rows: list[int],
    incoming: torch.Tensor,
    incoming_rows: list[int],
) -> list[dist.Work]:
    """Begins an all-to-all of rows along dim 0; either side may have none."""
    row_bytes = max(_num_bytes(outgoing[:1]), _num_bytes(incoming[:1]))
    work = dist.all_to_all_single(
        _bytes(incoming),
        _bytes(outgoing),
        [rows * row_bytes for rows in incoming_rows],
        [rows * row_bytes for rows in outgoing_rows],
        group=group,
        async_op=True,
    )
    return [work]


def _finish(works: Sequence[dist.Work], name: str) -> None:
    with waiting(name):
        for work in works:
            work.wait()


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
