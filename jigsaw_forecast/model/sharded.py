"""Modules whose parameters are this rank's pieces of larger tensors, and how they begin."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from jigsaw_forecast.parallel.layout import Cut, Layout
from jigsaw_forecast.parallel.mesh import Mesh
from jigsaw_forecast.parallel.weights import Weight, gather_weight

Tensor = torch.Tensor

# A matrix that computes cut over one axis is stored cut over the other.
OVER_DOMAIN_THEN_TENSOR = (Cut(0, "domain"),), (Cut(0, "tensor"),)
OVER_TENSOR_THEN_DOMAIN = (Cut(0, "tensor"),), (Cut(0, "domain"),)
STORED_OVER_BOTH = (), (Cut(0, "tensor"), Cut(0, "domain"))


@dataclass(frozen=True)
class Initial:
    """Initial values of a parameter: normal with deviation `std`, or all `fill` where it is 0."""

    std: float = 0.0
    fill: float = 0.0


def initial_values(seed: int, name: str, shape: tuple[int, ...], initial: Initial) -> Tensor:
    """The whole fresh tensor, float32 by default: seed and full name fix it, on any mesh."""
    if initial.std == 0.0:
        return torch.full(shape, initial.fill)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape).normal_(0.0, initial.std, generator=generator)


class ShardedModule(nn.Module):
    """A module whose parameters are this rank's pieces of larger tensors."""

    def __init__(self, mesh: Mesh, seed: int | None, path: str) -> None:
        """Starts without parameters.

        Args:
            mesh: This rank's mesh.
            seed: Of the initial weights; with the full tensor's name it fixes every value, on
                any mesh. None leaves the weights unset, to be loaded.
            path: Name of this module in the model.
        """
        super().__init__()
        self.mesh = mesh
        self.seed = seed
        self.path = path
        self.layouts: dict[str, Layout] = {}
        self.initials: dict[str, Initial] = {}
        self.is_resident = False

    def add_piece(self, name: str, layout: Layout, *, std: float = 0.0, fill: float = 0.0) -> None:
        """Registers this rank's piece of a parameter.

        Args:
            name: Of the parameter in this module.
            layout: How the whole tensor lies on the mesh.
            std: Of the normal initial values; 0 for a constant.
            fill: The constant.
        """
        initial = Initial(std, fill)
        self.layouts[name], self.initials[name] = layout, initial
        shape, device = layout.piece_shape(self.mesh), self.mesh.device
        if self.seed is None or device.type == "meta":
            piece = torch.empty(shape, device=device)
        elif std == 0.0:
            piece = torch.full(shape, fill, device=device)
        else:
            full = initial_values(self.seed, f"{self.path}{name}", layout.full_shape, initial)
            piece = full[layout.piece_slices(self.mesh)].contiguous().to(device)
        self.register_parameter(name, nn.Parameter(piece))

    def weight(self, name: str) -> Weight:
        """A parameter with what is needed to compute with it."""
        return Weight(self.get_parameter(name), self.layouts[name], self.is_resident)

    def vectors(self) -> dict[str, Weight]:
        """The parameters of one dim, by their full name."""
        return {
            f"{self.path}{name}": self.weight(name)
            for name, layout in self.layouts.items()
            if len(layout.full_shape) == 1
        }

    @torch.no_grad()
    def make_resident(self) -> None:
        """Gathers every weight along its storage axes once and keeps it; for inference only."""
        if self.is_resident:
            return
        for name in self.layouts:
            self.keep(name, gather_weight(self.mesh, self.weight(name)))
        self.is_resident = True

    def keep(self, name: str, values: Tensor) -> None:
        """Replaces a parameter by what computes from it."""
        self.register_parameter(name, nn.Parameter(values, requires_grad=False))


def join(module: ShardedModule, names: tuple[str, str], dim: int) -> Tensor:
    """Joins two resident parameters into one matrix, of which they become views.

    Saves the copy that a streamed step makes, and holds nothing twice.
    """
    first, second = (module.get_parameter(name) for name in names)
    joined = torch.cat([first, second], dim)
    length = first.shape[dim]
    module.keep(names[0], joined.narrow(dim, 0, length))
    module.keep(names[1], joined.narrow(dim, length, second.shape[dim]))
    return joined
