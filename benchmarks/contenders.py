"""The contenders of `strong_scaling.py`, as each rank of one runs it.

Each is built with the same weights, steps the same model, and says what it received and holds.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from body import Sample, make_sample, move_constants, pattern, sample_piece
from plain_mixer import PlainMixer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.memory import peak_memory_bytes
from jigsaw_forecast.parallel.mesh import Mesh, make_mesh, single_rank_mesh

Tensor = torch.Tensor
Mode = Literal["forward", "streamed", "training"]
SEED = 0
LEARNING_RATE = 1e-4
Place = tuple[slice, ...]


@dataclass(frozen=True)
class Kind:
    """What a contender is.

    Attributes:
        build: Makes its model on a rank.
        num_ranks: Processes.
        num_threads: Of each process.
        samples: Per step, over all ranks.
        is_group: Whether its ranks communicate; otherwise they are runs of their own.
    """

    build: "Callable[[ModelConfig, int | None], Built]"
    num_ranks: int = 2
    num_threads: int = 1
    samples: int = 1
    is_group: bool = True


@dataclass
class Built:
    """A model on a rank with what is needed to step, count and compare it.

    Attributes:
        model: Called with state and forcing.
        mesh: Jigsaw's; None for torch's own wrappers.
        part: This rank's piece of a whole sample.
        place: Where its output lies in the whole next state.
        gradients: The whole gradient, or this rank's pieces, by the project's names, each with
            its place.
    """

    model: nn.Module
    mesh: Mesh | None
    part: Callable[[Sample], Sample]
    place: Place
    gradients: Callable[[], dict[str, tuple[Tensor, Place]]]
    optimizer: torch.optim.Optimizer | None = field(default=None, init=False)


def one_rank_mixer(config: ModelConfig) -> WeatherMixer:
    model = WeatherMixer(config, single_rank_mesh(), SEED)
    move_constants(model)
    return model


def build_jigsaw(config: ModelConfig, mesh: Mesh, num_chunks: int | None) -> Built:
    """The project's model on a mesh; the chunk count where the model has one."""
    model = WeatherMixer(config, mesh, SEED)
    if hasattr(model, "num_chunks"):
        model.num_chunks = num_chunks
    move_constants(model)
    layouts = model.layouts()

    def gradients() -> dict[str, tuple[Tensor, Place]]:
        return {
            name: (parameter.grad, layouts[name].piece_slices(mesh))
            for name, parameter in model.named_parameters()
        }

    place = (slice(None), model.pieces.fields, model.pieces.rows)
    return Built(model, mesh, lambda whole: sample_piece(model, whole), place, gradients)


def build_plain(config: ModelConfig, wrap: Callable[[PlainMixer], None]) -> Built:
    """The plain mixer with the project's weights, then one of torch's wrappers around it."""
    model = PlainMixer(config)
    model.copy_from(one_rank_mixer(config))
    wrap(model)

    def gradients() -> dict[str, tuple[Tensor, Place]]:
        parts = model.named_parts(lambda parameter: whole(parameter.grad))
        return {name: (part, (slice(None),)) for name, part in parts.items()}

    return Built(model, None, lambda sample: sample, (slice(None),), gradients)


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def column_row_parallel(model: PlainMixer) -> None:
    """Megatron's scheme: first weights cut by columns, second ones by rows, activations whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {
        f"{mlp}.{name}": style
        for mlp in ("tokens", "channels")
        for name, style in (("up", ColwiseParallel()), ("down", RowwiseParallel()))
    }
    for block in model.blocks:
        parallelize_module(block, mesh, plan)


def shard_fully(model: PlainMixer) -> None:
    """FSDP2, one group a block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _alone(config: ModelConfig, num_chunks: int | None) -> Built:
    return build_jigsaw(config, single_rank_mesh(), num_chunks)


def _on_mesh(**degrees: int) -> Callable[[ModelConfig, int | None], Built]:
    return lambda config, num_chunks: build_jigsaw(config, make_mesh(degrees), num_chunks)


def _wrapped(wrap: Callable[[PlainMixer], None]) -> Callable[[ModelConfig, int | None], Built]:
    return lambda config, _: build_plain(config, wrap)


REFERENCE = "independent"
KINDS = {
    REFERENCE: Kind(_alone, samples=2, is_group=False),
    "jigsaw-domain": Kind(_on_mesh(domain=2)),
    "jigsaw-tensor": Kind(_on_mesh(tensor=2)),
    "tensor-parallel": Kind(_wrapped(column_row_parallel)),
    "fsdp": Kind(_wrapped(shard_fully), samples=2),
    "two-threads": Kind(_alone, num_ranks=1, num_threads=2, is_group=False),
    "independent-plain": Kind(_wrapped(lambda model: None), samples=2, is_group=False),
}


class Stepper:
    """One contender on one rank: built for a mode, then stepped."""

    def __init__(self, built: Built, config: ModelConfig, mode: Mode) -> None:
        self.built, self.config, self.mode = built, config, mode
        self.sample = built.part(make_sample(config, SEED))
        self.num_target = make_sample(config, SEED).target.numel()
        if mode == "training":
            # fused kernels take tensors or DTensors, not both in one group
            parameters = list(built.model.parameters())
            groups = [
                [p for p in parameters if isinstance(p, DTensor) is sharded and p.numel()]
                for sharded in (False, True)
            ]
            built.optimizer = torch.optim.AdamW(
                [{"params": group} for group in groups if group], lr=LEARNING_RATE, fused=True
            )
        else:
            built.model.requires_grad_(False)
            if mode == "forward" and built.mesh is not None:
                built.model.make_resident()

    def step(self) -> None:
        """One step of the mode."""
        if self.mode == "training":
            assert self.built.optimizer is not None
            self._backward()
            self.built.optimizer.step()
            self.built.optimizer.zero_grad(set_to_none=True)
        else:
            with torch.no_grad():
                self.built.model(self.sample.state, self.sample.forcing)

    def compare(self) -> dict[str, Any]:
        """What decides whether this is the same model: output and, in training, gradients.

        A gradient is told by its product with a fixed random tensor and its sum of squares; both
        add up over pieces.
        """
        output = self._backward() if self.mode == "training" else self._forward()
        result: dict[str, Any] = {"output": output.numpy(), "place": self.built.place}
        if self.mode == "training":
            result["gradients"] = {}
            for name, (gradient, place) in self.built.gradients().items():
                shape = self._shape(name, gradient)
                random = pattern(f"gradient of {name}", shape)[place]
                result["gradients"][name] = (
                    float(torch.sum(gradient * random, dtype=torch.float64)),
                    float(torch.sum(gradient.square(), dtype=torch.float64)),
                )
            assert self.built.optimizer is not None
            self.built.optimizer.zero_grad(set_to_none=True)
        return result

    def counts(self) -> dict[str, Any]:
        """Bytes received in one more step, by what they are for."""
        mesh = self.built.mesh
        if mesh is None:
            with CollectiveBytes() as counter:
                self.step()
            return counter.received
        before = mesh.traffic.received()
        self.step()
        after = mesh.traffic.received()
        received: dict[str, int] = {}
        for axis, kinds in after.items():
            for kind, num_bytes in kinds.items():
                received[kind] = received.get(kind, 0) + num_bytes - before[axis][kind]
        return received

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the parameters, gradients and moments that this rank holds."""
        parameters = list(self.built.model.parameters())
        result = {"parameters": _num_bytes(parameters), "gradients": 0, "moments": 0}
        if self.mode == "training":
            assert self.built.optimizer is not None
            self._backward()
            result["gradients"] = _num_bytes([p.grad for p in parameters if p.grad is not None])
            self.built.optimizer.zero_grad(set_to_none=True)
            states = self.built.optimizer.state.values()
            # a step count is one number for each parameter
            moments = [value for state in states for name, value in state.items() if name != "step"]
            result["moments"] = _num_bytes(moments)
        return result

    def _shape(self, name: str, gradient: Tensor) -> tuple[int, ...]:
        if self.built.mesh is None:
            return tuple(gradient.shape)
        return self.built.model.layouts()[name].full_shape

    def _forward(self) -> Tensor:
        with torch.no_grad():
            output, _ = self.built.model(self.sample.state, self.sample.forcing)
        return output

    def _backward(self) -> Tensor:
        output, _ = self.built.model(self.sample.state, self.sample.forcing)
        loss = (output - self.sample.target).square().sum() / self.num_target
        loss.backward()
        return output.detach()


class CollectiveBytes(TorchDispatchMode):
    """Counts what torch's own collectives have to receive, by operation.

    A ring over p ranks: an all-reduce of n receives 2 n (p - 1) / p, an all-gather to n and a
    reduce-scatter of n receive n (p - 1) / p. Gloo's own reduce-scatter moves twice that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # comes again as the collectives it is made of
        name = func.name().partition(".")[0]
        if name in ("c10d::allreduce_", "_c10d_functional::all_reduce"):
            self._add("all-reduce", args[0], 2)
        elif name == "c10d::_allgather_base_":
            self._add("all-gather", args[0], 1)
        elif name == "_c10d_functional::all_gather_into_tensor":
            self._add("all-gather", args[0], args[1])
        elif name == "c10d::_reduce_scatter_base_":
            self._add("reduce-scatter", args[1], 1)
        elif name == "_c10d_functional::reduce_scatter_tensor":
            self._add("reduce-scatter", args[0], 1)
        elif "c10d" in name and not name.partition("::")[2].startswith(("wait", "_wrap")):
            raise RuntimeError(f"{name} is not counted")
        return func(*args, **(kwargs or {}))

    def _add(self, kind: str, tensors: Tensor | list[Tensor], factor: int) -> None:
        num_ranks = dist.get_world_size()
        tensors = [tensors] if isinstance(tensors, Tensor) else tensors
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        received = factor * num_bytes * (num_ranks - 1) // num_ranks
        self.received[kind] = self.received.get(kind, 0) + received


def _num_bytes(tensors: list[Tensor]) -> int:
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(tensor.nbytes for tensor in local)


def reset_peak() -> bool:
    """Forgets the process's peak memory so far; False where the system does not allow it."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    return peak_memory_bytes(torch.device("cpu"))


def assemble(answers: list[dict[str, Any]], shape: tuple[int, ...]) -> np.ndarray:
    """The whole output out of the ranks' pieces."""
    full = np.full(shape, np.nan, np.float32)
    for answer in answers:
        full[answer["place"]] = answer["output"]
    return full
