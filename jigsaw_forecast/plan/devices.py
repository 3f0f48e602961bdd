"""Kinds of devices that a plan can be made for: rates, memory and links."""

from dataclasses import dataclass

from jigsaw_forecast.errors import ForecastError

GB = 10**9


@dataclass(frozen=True)
class DeviceKind:
    """What a plan assumes of one rank's device. Every figure can be given on the command line.

    Attributes:
        name: Of the kind.
        matrix_flops_per_second: Rate of large matrix products by dtype.
        memory_bytes: Of one device.
        memory_bytes_per_second: Rate at which everything but products reads and writes.
        link_bytes_per_second: Received from the ranks of the same node.
        node_link_bytes_per_second: Received from ranks of other nodes.
        latency_s: Of one collective.
        ranks_per_node: Ranks that share a node.
        source: Where the figures come from.
    """

    name: str
    matrix_flops_per_second: dict[str, float]
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    node_link_bytes_per_second: float
    latency_s: float
    ranks_per_node: int
    source: str


# Vendors' data sheets, each times the share that large products and collectives commonly reach:
# 0.8 of the matrix and memory rates, 0.8 of the links. None of it was measured here.
_SHARE = 0.8
_SOURCE = "data sheet times 0.8; not measured here"
DEVICE_KINDS: dict[str, DeviceKind] = {
    "a100": DeviceKind(
        "a100",
        {"bfloat16": _SHARE * 312e12, "float32": _SHARE * 19.5e12},
        80 * GB,
        _SHARE * 2.0e12,
        _SHARE * 300e9,  # NVLink 3, one direction
        _SHARE * 25e9,  # one 200 Gb/s adapter a device
        20e-6,
        4,
        _SOURCE,
    ),
    "h100": DeviceKind(
        "h100",
        {"bfloat16": _SHARE * 989e12, "float32": _SHARE * 67e12},
        80 * GB,
        _SHARE * 3.35e12,
        _SHARE * 450e9,  # NVLink 4, one direction
        _SHARE * 50e9,  # one 400 Gb/s adapter a device
        20e-6,
        8,
        _SOURCE,
    ),
    "h200": DeviceKind(
        "h200",
        {"bfloat16": _SHARE * 989e12, "float32": _SHARE * 67e12},
        141 * GB,
        _SHARE * 4.8e12,
        _SHARE * 450e9,
        _SHARE * 50e9,
        20e-6,
        8,
        _SOURCE,
    ),
}


def find_device_kind(name: str) -> DeviceKind:
    """The kind of this name.

    Raises:
        ForecastError: There is none; lists those that there are.
    """
    if name not in DEVICE_KINDS:
        raise ForecastError(
            f"--device-kind {name}: no such kind; use {', '.join([*DEVICE_KINDS, 'cpu'])}"
        )
    return DEVICE_KINDS[name]
