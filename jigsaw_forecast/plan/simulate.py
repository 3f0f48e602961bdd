"""How long a traced step takes on a kind of device: its events played in order."""

from collections.abc import Mapping
from dataclasses import dataclass

from jigsaw_forecast.parallel.accounting import Operation
from jigsaw_forecast.plan.devices import DeviceKind
from jigsaw_forecast.plan.trace import Begin, Compute, Event, GradientReady


@dataclass(frozen=True)
class Times:
    """Seconds of one step.

    Attributes:
        step: From its start to its end.
        compute: Of the device's own work.
        communication: Of what travels, had it nothing to wait for.
    """

    step: float
    compute: float
    communication: float


class _Links:
    """The two ways into a rank, inside of its node and from others; one message at a time each."""

    def __init__(self, device: DeviceKind, degrees: Mapping[str, int]) -> None:
        self._device = device
        tensor, domain = degrees.get("tensor", 1), degrees.get("domain", 1)
        # ranks are numbered tensor fastest: an axis leaves the node when it spans more ranks
        spans = {
            "tensor": tensor,
            "domain": tensor * domain,
            "data": tensor * domain * degrees.get("data", 1),
        }
        self._is_inside = {axis: span <= device.ranks_per_node for axis, span in spans.items()}
        self._free = {True: 0.0, False: 0.0}
        self.busy_s = 0.0

    def send(self, axis: str, num_bytes: int, now: float) -> float:
        """When a message that begins now has arrived."""
        is_inside = self._is_inside[axis]
        device = self._device
        rate = device.link_bytes_per_second if is_inside else device.node_link_bytes_per_second
        seconds = device.latency_s + num_bytes / rate
        self._free[is_inside] = max(self._free[is_inside], now) + seconds
        self.busy_s += seconds
        return self._free[is_inside]


def simulate(
    events: list[Event],
    device: DeviceKind,
    dtype: str,
    degrees: Mapping[str, int],
    optimizer_bytes: int = 0,
) -> Times:
    """Plays the events of one step.

    Products run at the device's matrix rate, everything else at its memory rate, one after the
    other. A collective begins when the link is free and is awaited where its result is taken.
    Gradients travel over the data axis while backward goes on, and are awaited before the
    optimizer's step.

    Args:
        events: Of `trace`.
        device: Its rates.
        dtype: Of the products.
        degrees: Of the mesh; decide which axes stay within a node.
        optimizer_bytes: Read and written by the optimizer's step.
    """
    links = _Links(device, degrees)
    matrix_rate = device.matrix_flops_per_second[dtype]
    num_replicas = degrees.get("data", 1)
    now = compute = gradients_there = 0.0
    arrival: dict[int, float] = {}
    for event in events:
        match event:
            case Compute(flops, num_bytes):
                seconds = flops / matrix_rate + num_bytes / device.memory_bytes_per_second
                now, compute = now + seconds, compute + seconds
            case Begin(operation):
                arrival[id(operation)] = _begin(links, operation, now)
            case GradientReady(num_bytes):
                if num_replicas > 1:
                    received = 2 * (num_replicas - 1) * num_bytes // num_replicas
                    gradients_there = links.send("data", received, now)
            case _:
                now = max(now, arrival.pop(id(event.operation)))
    now = max(now, gradients_there)
    seconds = optimizer_bytes / device.memory_bytes_per_second
    return Times(now + seconds, compute + seconds, links.busy_s)


def _begin(links: _Links, operation: Operation, now: float) -> float:
    return links.send(operation.axis, operation.num_bytes, now)
