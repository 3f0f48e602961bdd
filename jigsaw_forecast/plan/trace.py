"""One step of the real model on meta tensors: its operations, memory and traffic, in order.

Nothing is computed and nothing travels: the mesh is described, its ranks do not exist, and the
layouts, products and collectives are those that a run uses.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from jigsaw_forecast.model.config import ModelConfig
from jigsaw_forecast.model.weather_mixer import WeatherMixer
from jigsaw_forecast.parallel.accounting import Operation
from jigsaw_forecast.parallel.mesh import Axis, Mesh

Step = Callable[[WeatherMixer], None]
# What a training holds besides parameters and gradients, by name, after a step's backward.
Kept = Callable[[WeatherMixer], Mapping[str, Sequence[torch.Tensor]]]


@dataclass(frozen=True)
class Compute:
    """Operations of the device between two communication events.

    Attributes:
        flops: Of matrix products.
        num_bytes: Read and written by everything else.
    """

    flops: int
    num_bytes: int


@dataclass(frozen=True)
class Begin:
    """A collective begins."""

    operation: Operation


@dataclass(frozen=True)
class End:
    """The result of a collective is needed."""

    operation: Operation


@dataclass(frozen=True)
class GradientReady:
    """A gradient of so many bytes is complete over domain and tensor."""

    num_bytes: int


Event = Compute | Begin | End | GradientReady


@dataclass
class Trace:
    """What one rank of a mesh does and holds in one step.

    Attributes:
        parameter_bytes: Of the pieces held between steps.
        gradient_bytes: Of all gradients; 0 without a backward.
        activation_bytes: Most bytes held at once beside parameters and gradients, less the most
            that collectives held.
        buffer_bytes: Most bytes held at once by collectives under way.
        kept_bytes: Of what training holds between steps besides parameters, by name.
        peak_bytes: Most bytes held at once by all of these.
        flops: Of this rank.
        received: Bytes received: axis -> kind -> bytes.
        events: In order.
    """

    parameter_bytes: int = 0
    gradient_bytes: int = 0
    activation_bytes: int = 0
    buffer_bytes: int = 0
    kept_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    flops: int = 0
    received: dict[str, dict[str, int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


def described_mesh(degrees: Mapping[str, int], domain: int = 0, tensor: int = 0) -> Mesh:
    """A mesh that does not exist, as its rank (domain, tensor) would see it; on meta tensors."""
    sizes = {name: degrees.get(name, 1) for name in ("data", "domain", "tensor")}
    return Mesh(
        Axis("data", sizes["data"], 0, None),
        Axis("domain", sizes["domain"], domain, None),
        Axis("tensor", sizes["tensor"], tensor, None),
        Axis(
            "model",
            sizes["domain"] * sizes["tensor"],
            domain * sizes["tensor"] + tensor,
            None,
        ),
        torch.device("meta"),
    )


def busiest_rank(degrees: Mapping[str, int]) -> Mesh:
    """The described mesh as one of its ranks with the most fields and two neighbours sees it."""
    return described_mesh(degrees, domain=1 if degrees.get("domain", 1) > 2 else 0)


def make_traced_model(
    config: ModelConfig, mesh: Mesh, dtype: torch.dtype, *, matrices_in_dtype: bool
) -> WeatherMixer:
    """The model on meta tensors.

    Args:
        config: Architecture.
        mesh: A described mesh.
        dtype: Of the products.
        matrices_in_dtype: Whether matrices are also stored in it, as a run loads them.

    Raises:
        MeshError: The mesh does not divide the model.
    """
    model = WeatherMixer(config, mesh, seed=None)
    model.compute_dtype = dtype
    if matrices_in_dtype:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name != "embed.position":
                parameter.data = parameter.data.to(dtype)
    return model


def trace(model: WeatherMixer, step: Step, kept: Kept = lambda model: {}) -> Trace:
    """Runs one step on meta tensors and notes what happens.

    Args:
        model: On a described mesh.
        step: What to run; its inputs are made inside, so that they count.
        kept: Makes what a training holds from one step to the next; made after the step, and
            counted as there during it.
    """
    traffic = model.mesh.traffic
    traffic.reset()
    recorder = _Recorder(model)
    traffic.observer = recorder.observe
    try:
        with recorder:
            step(model)
    finally:
        traffic.observer = None
    kept_bytes = {name: _held_bytes(tensors) for name, tensors in kept(model).items()}
    return recorder.finish(kept_bytes)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Sees every operation and every storage of a step."""

    def __init__(self, model: WeatherMixer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._trace = Trace(parameter_bytes=_held_bytes(list(model.parameters())))
        self._shapes = _Shapes()
        self._flops = self._bytes = 0
        self._live = self._live_gradients = self._peak_live = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()] = 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                register = parameter.register_post_accumulate_grad_hook
                register(self._note_gradient)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        result = self._shapes.run(func, args, kwargs, leaves)
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        outputs = [leaf for leaf in _leaves([result]) if isinstance(leaf, torch.Tensor)]
        packet = func._overloadpacket
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
            self._flops += flops
            self._trace.flops += flops
        elif not func.is_view and packet not in _FREE:
            self._bytes += _held_bytes(inputs) + _held_bytes(outputs)
        for tensor in outputs:
            self._note_storage(tensor)
        return result

    def _note_storage(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" or storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = num_bytes
        self._live += num_bytes
        weakref.finalize(storage, self._release, num_bytes)
        self._note_peak()

    def _release(self, num_bytes: int) -> None:
        self._live -= num_bytes

    def _note_peak(self) -> None:
        trace = self._trace
        self._peak_live = max(self._peak_live, self._live)
        trace.activation_bytes = max(trace.activation_bytes, self._live - self._live_gradients)

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        num_bytes = parameter.grad.numel() * parameter.grad.element_size()
        self._live_gradients += num_bytes
        self._flush()
        self._trace.events.append(GradientReady(num_bytes))

    def observe(self, what: str, operation: Operation) -> None:
        """Notes a collective that begins or ends."""
        self._flush()
        self._trace.events.append(Begin(operation) if what == "begin" else End(operation))

    def _flush(self) -> None:
        if self._flops or self._bytes:
            self._trace.events.append(Compute(self._flops, self._bytes))
        self._flops = self._bytes = 0

    def finish(self, kept_bytes: dict[str, int]) -> Trace:
        """The trace, complete."""
        self._flush()
        trace, traffic = self._trace, self._model.mesh.traffic
        trace.gradient_bytes = self._live_gradients
        trace.buffer_bytes = traffic.peak_buffer_bytes
        trace.activation_bytes = max(trace.activation_bytes - trace.buffer_bytes, 0)
        trace.kept_bytes = kept_bytes
        trace.peak_bytes = trace.parameter_bytes + self._peak_live + sum(kept_bytes.values())
        trace.received = traffic.received()
        return trace


class _Shapes:
    """What operations on meta tensors give, found once for each kind of input.

    torch finds the shape of each result in Python, which takes most of a trace's time.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def run(self, func: Any, args: Any, kwargs: Any, leaves: list[Any]) -> Any:
        """The result of an operation on arguments with these leaves."""
        if func.is_view or not all(leaf.is_meta for leaf in leaves if _is_tensor(leaf)):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            written = _written(func, args, kwargs)
            # a meta tensor has nothing to write to
            return func(*args, **kwargs) if written is None else written
        key = (func, *(_signature(leaf) for leaf in leaves), *kwargs)
        if key in self._known:
            shape, strides, dtype = self._known[key]
            return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        result = func(*args, **kwargs)
        if _is_tensor(result) and result.is_meta and not any(result is leaf for leaf in leaves):
            self._known[key] = result.shape, result.stride(), result.dtype
        return result


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """What lists and tuples hold, at any depth; an operation's arguments nest in no other way."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype
    return type(leaf), leaf


def _written(func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """The one tensor that an operation writes to and returns; None where it is not as simple."""
    if len(func._schema.returns) != 1:
        return None
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found.append(value)
    return found[0] if len(found) == 1 and _is_tensor(found[0]) else None


_FREE = {
    torch.ops.aten.detach,
    torch.ops.aten.empty,
    torch.ops.aten.new_empty,
    torch.ops.aten.empty_like,
    torch.ops.aten._unsafe_view,
}


def _held_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
