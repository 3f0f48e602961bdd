"""Process groups for a thread beside the training: what it sends meets nothing of the main thread.

Always Gloo on CPU tensors: a collective of another thread on the main groups would take turns with
those of the training in an order that differs between ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from jigsaw_forecast.parallel.layout import Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.watch import waiting

# A save waits for the slowest disk of all; a rank that is gone breaks its connections at once.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Background:
    """The ranks as a thread of each of them sees them.

    Attributes:
        mesh: This rank's mesh; for places and layouts, not for its groups.
        everyone: All ranks of the run; None for one rank.
        first_replica: The model group with data index 0; None outside of it and for one rank.
    """

    mesh: Mesh
    everyone: dist.ProcessGroup | None
    first_replica: dist.ProcessGroup | None


def make_background(mesh: Mesh) -> Background:
    """The groups for one thread of each rank.

    Communication:
        Creates one Gloo group of all ranks, and one of the first replica where there are several.
    """
    if mesh.size == 1:
        return Background(mesh, None, None)
    with waiting("the creation of the background's groups"):
        everyone = dist.new_group(backend="gloo", timeout=PATIENCE)
        if mesh.data.size == 1:
            return Background(mesh, everyone, everyone)
        first = dist.new_group(list(range(mesh.model.size)), timeout=PATIENCE, backend="gloo")
    return Background(mesh, everyone, first if mesh.data.index == 0 else None)


def gather_on_first_rank(
    background: Background, piece: torch.Tensor, layout: Layout
) -> torch.Tensor | None:
    """A whole tensor on rank 0 out of the pieces of the first replica, None on the others.

    Args:
        background: The groups; every rank of the first replica calls this, others may.
        piece: This rank's part, on the CPU.
        layout: Of the whole.

    Communication:
        Every piece of the first replica to rank 0, once, point to point.
    """
    mesh = background.mesh
    if mesh.size == 1:
        return piece
    if mesh.data.index:
        return None
    if mesh.rank:
        if piece.numel():
            dist.send(_bytes(piece), 0, group=background.first_replica)
        return None
    return _assemble(background, piece, layout)


def _assemble(background: Background, own: torch.Tensor, layout: Layout) -> torch.Tensor:
    mesh = background.mesh
    whole = torch.empty(layout.full_shape, dtype=own.dtype)
    whole[layout.piece_slices(mesh)] = own
    for rank, peer in enumerate(_peers(mesh)):
        shape = layout.piece_shape(peer)
        values = torch.empty(shape, dtype=own.dtype)
        if rank and values.numel():
            dist.recv(_bytes(values), rank, group=background.first_replica)
            whole[layout.piece_slices(peer)] = values
    return whole


def _peers(mesh: Mesh) -> Sequence[Mesh]:
    return [
        mesh.at(domain, tensor)
        for domain in range(mesh.domain.size)
        for tensor in range(mesh.tensor.size)
    ]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
