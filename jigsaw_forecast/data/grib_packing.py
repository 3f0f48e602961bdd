"""Checks that the data of a GRIB 2 message fit its headers, before eccodes unpacks them.

A flipped bit in the headers of the complex packings makes eccodes 2.50 abort or write out of
bounds, which ends the process without a message. What this module lets through stays inside of
the section. Source: WMO Manual on Codes, FM 92, templates 5.0 to 5.42 and 7.2, 7.3.
"""

import numpy as np
import numpy.typing as npt

_SIMPLE, _COMPLEX, _SPATIAL, _IEEE = 0, 2, 3, 4
_GRID_POINTS = (_SIMPLE, _COMPLEX, _SPATIAL, _IEEE, 40, 41, 42)  # with JPEG 2000, PNG and CCSDS
_IEEE_BYTES = {1: 4, 2: 8, 3: 16}
_NO_BITMAP = 255
_MAX_BITS = 64
_SECTION5_BYTES = {_COMPLEX: 47, _SPATIAL: 49}

Sections = dict[int, memoryview]


def why_not_unpackable(message: bytes) -> str:
    """Why the data section of a GRIB 2 message of one field cannot belong to its headers.

    Args:
        message: The whole message.

    Returns:
        The contradiction, empty where there is none.
    """
    sections = _sections(message)
    if sections is None:
        return "its sections do not follow each other"
    grid_points = _number(sections[3], 6, 4)
    num_values = _number(sections[5], 5, 4)
    template = _number(sections[5], 9, 2)
    if template not in _GRID_POINTS:
        return ""
    if num_values > grid_points:
        return f"{num_values} values for a grid of {grid_points} points"
    if sections[6][5] == _NO_BITMAP and num_values != grid_points:
        return f"{num_values} values for a grid of {grid_points} points, and no bitmap"
    if sections[6][5] == 0 and len(sections[6]) - 6 < (grid_points + 7) // 8:
        return f"a bitmap of {len(sections[6]) - 6} bytes for {grid_points} points"
    data = sections[7][5:]
    if template == _IEEE and len(sections[5]) > 11:
        return _compare(len(data), num_values * _IEEE_BYTES.get(sections[5][11], 0))
    if len(sections[5]) < _SECTION5_BYTES.get(template, 20):
        return f"a representation section of {len(sections[5])} bytes"
    if sections[5][19] > _MAX_BITS:
        return f"{sections[5][19]} bits a value"
    if template == _SIMPLE:
        return _compare(len(data), (num_values * sections[5][19] + 7) // 8)
    if template in (_COMPLEX, _SPATIAL):
        return _why_not_complex(sections[5], data, num_values, is_spatial=template == _SPATIAL)
    return ""


def _sections(message: bytes) -> Sections | None:
    view = memoryview(message)
    found: Sections = {}
    position, end = 16, len(message) - 4
    while position < end:
        size, section = _number(view, position, 4), view[position + 4]
        if size < 5 or position + size > end:
            return None
        found[section] = view[position : position + size]
        position += size
    is_whole = {3, 5, 6, 7} <= found.keys() and len(found[3]) >= 14 and len(found[5]) >= 11
    return found if is_whole and len(found[6]) >= 6 else None


def _why_not_complex(
    section5: memoryview, data: memoryview, num_values: int, *, is_spatial: bool
) -> str:
    """Follows the groups of complex packing through the data section (template 7.2, 7.3)."""
    num_groups = _number(section5, 31, 4)
    widths_from, width_bits = section5[35], section5[36]
    lengths_from, length_step = _number(section5, 37, 4), section5[41]
    last_length, length_bits = _number(section5, 42, 4), section5[46]
    if num_groups == 0 or num_groups > num_values:
        return f"{num_groups} groups for {num_values} values" if num_values else ""
    if width_bits > 32 or length_bits > 32 or section5[19] > 32:
        return f"{width_bits} and {length_bits} bits for the groups' widths and lengths"
    position = 0
    if is_spatial:
        order, octets = section5[47], section5[48]
        if order not in (1, 2) or octets > 8 or num_values < order:
            return f"spatial differencing of order {order} with {octets} octets"
        position = (order + 1) * octets
    parts = []
    for bits in (section5[19], width_bits, length_bits):
        size = (num_groups * bits + 7) // 8
        if position + size > len(data):
            return _compare(len(data), position + size)
        parts.append(_unpack(data[position : position + size], bits, num_groups))
        position += size
    widths = parts[1] + widths_from
    lengths = parts[2] * length_step + lengths_from
    lengths[-1] = last_length
    if int(lengths.sum()) != num_values:
        return f"groups of {int(lengths.sum())} values in all, {num_values} expected"
    if int(widths.max()) > _MAX_BITS:
        return f"a group of {int(widths.max())} bits a value"
    return _compare(len(data), position + (int((widths * lengths).sum()) + 7) // 8)


def _unpack(data: memoryview, num_bits: int, count: int) -> npt.NDArray[np.int64]:
    """Unsigned numbers of so many bits each, most significant first."""
    if num_bits == 0:
        return np.zeros(count, np.int64)
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: count * num_bits]
    powers = 1 << np.arange(num_bits - 1, -1, -1, dtype=np.int64)
    return bits.reshape(count, num_bits).astype(np.int64) @ powers


def _compare(available: int, needed: int) -> str:
    if needed <= available:
        return ""
    return f"a data section of {available} bytes where its headers need {needed}"


def _number(view: memoryview, start: int, length: int) -> int:
    return int.from_bytes(view[start : start + length], "big")
