"""Checks that the sections of a GRIB message fit each other, before eccodes unpacks its values.

A flipped bit in the headers of the complex packings, or in the length of a GRIB 1 grid section,
makes eccodes 2.50 abort or write out of bounds, which ends the process without a message. What
this module lets through stays inside of its section. Source: WMO Manual on Codes, FM 92 (GRIB 1:
sections 2 to 4; GRIB 2: templates 3.0 to 3.40, 5.0 to 5.42, 7.2 and 7.3).
"""

import zlib

import numpy as np
import numpy.typing as npt

_SIMPLE, _COMPLEX, _SPATIAL, _IEEE = 0, 2, 3, 4
_JPEG = (40, 40000)  # the second as NCEP wrote it before there was a template
_LOGARITHMIC = 61
# the others: PNG, CCSDS
_GRID_POINTS = (
    _SIMPLE, _COMPLEX, _SPATIAL, _IEEE, *_JPEG, 41, 42, _LOGARITHMIC, 40010
)  # fmt: skip
# templates 3.0 to 3.40 with columns and rows in octets 31 to 38
_GRIDS_OF_ROWS, _ROWS_END, _NOT_GIVEN = (0, 1, 10, 20, 30, 40), 38, 0xFFFFFFFF
_IEEE_BYTES = {1: 4, 2: 8, 3: 16}
_PNG = (41, 40010)  # likewise
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}  # by colour type
_NO_BITMAP = 255
_MAX_BITS = 64
_EDITION_OCTET = 7
# Units of time of code tables 4 (GRIB 1) and 4.4 (GRIB 2). Of others, eccodes 2.50 divides by zero
# (17) or computes without end (16, 255).
_TIME_UNITS = (*range(8), 10, 11, 12, 13, 14, 254)
_TIMED_TEMPLATES = (*range(16), 60, 61)  # with the unit in octet 18 of section 4
# GRIB 1: octets of the grid section up to its lists, by data representation type (code table 6)
_GRID1_BYTES = {
    0: 32, 1: 42, 3: 42, 4: 32, 5: 32, 10: 42, 13: 52, 14: 42, 20: 42, 24: 42, 30: 52, 34: 52,
    50: 32, 60: 42, 70: 42, 80: 52, 90: 44,
}  # fmt: skip
_REGULAR1 = (0, 4, 10, 14, 20, 24, 30, 34)  # columns in octets 7 and 8, rows in 9 and 10
_NOT_GIVEN1, _NO_LISTS = 0xFFFF, 255
# GRIB 1 data sections of second order: flags in octet 4 and, of ECMWF's form, in octet 14
_SECOND_ORDER1, _EXTENDED1, _SECOND_ORDER1_BYTES = 0x40, 0x08, 26
_SECTION5_BYTES = {_COMPLEX: 47, _SPATIAL: 49}

Sections = dict[int, memoryview]


def why_not_unpackable(message: bytes) -> str:
    """Why the data section of a message of one field cannot belong to its headers.

    Args:
        message: The whole message, edition 1 or 2.

    Returns:
        The contradiction, empty where there is none.
    """
    if message[_EDITION_OCTET] == 1:
        return _why_not_edition1(memoryview(message))
    sections = _sections(message)
    if sections is None:
        return "its sections do not follow each other"
    grid_points = _number(sections[3], 6, 4)
    num_values = _number(sections[5], 5, 4)
    template = _number(sections[5], 9, 2)
    if template not in _GRID_POINTS:
        return ""
    if why := _why_not_grid(sections[3], grid_points):
        return why
    if num_values > grid_points:
        return f"{num_values} values for a grid of {grid_points} points"
    if sections[6][5] == _NO_BITMAP and num_values != grid_points:
        return f"{num_values} values for a grid of {grid_points} points, and no bitmap"
    if sections[6][5] == 0 and (why := _why_not_bitmap(sections[6][6:], grid_points, num_values)):
        return why
    data = sections[7][5:]
    if template == _IEEE and len(sections[5]) > 11:
        return _compare(len(data), num_values * _IEEE_BYTES.get(sections[5][11], 0))
    if len(sections[5]) < _SECTION5_BYTES.get(template, 20):
        return f"a representation section of {len(sections[5])} bytes"
    if sections[5][19] > _MAX_BITS:
        return f"{sections[5][19]} bits a value"
    if template in (_SIMPLE, _LOGARITHMIC):
        return _compare(len(data), (num_values * sections[5][19] + 7) // 8)
    if template in _JPEG:
        return _why_not_jpeg(data, num_values, sections[5][19])
    if template in _PNG:
        return _why_not_png(data, num_values, sections[5][19])
    if template in (_COMPLEX, _SPATIAL):
        return _why_not_complex(sections[5], data, num_values, is_spatial=template == _SPATIAL)
    return ""


def why_not_timed(edition: int, product: bytes) -> str:
    """Why eccodes had better not compute times from a product definition, empty where it may.

    Args:
        edition: 1 or 2.
        product: Section 1 of edition 1, section 4 of edition 2.
    """
    if len(product) < 18:
        return ""
    template = int.from_bytes(product[7:9], "big")
    if edition == 2 and template not in _TIMED_TEMPLATES:
        return ""
    unit = product[17]
    return "" if unit in _TIME_UNITS else f"its unit of time is {unit}, which no code table has"


def _why_not_edition1(message: memoryview) -> str:
    """The same for edition 1: grid section, bitmap and data by their lengths."""
    position = 8
    flags = message[position + 7]
    position += _number(message, position, 3)
    points = 0
    if flags & 0x80:
        grid = message[position : position + _number(message, position, 3)]
        if len(grid) < 10:
            return f"a grid section of {len(grid)} bytes"
        if why := _why_not_grid1(grid):
            return why
        columns, rows = _number(grid, 6, 2), _number(grid, 8, 2)
        if grid[5] in _REGULAR1 and _NOT_GIVEN1 not in (columns, rows):
            points = columns * rows
        position += len(grid)
    num_there = points
    has_bitmap = bool(flags & 0x40)
    if has_bitmap:
        size = _number(message, position, 3)
        bitmap = message[position : position + size]
        num_bits = (size - 6) * 8 - bitmap[3] if size >= 6 else 0
        if size < 6 or (_number(bitmap, 4, 2) == 0 and num_bits < points):
            return f"a bitmap of {size} bytes for {points} points"
        if points and _number(bitmap, 4, 2) == 0:
            there = np.unpackbits(np.frombuffer(bitmap[6:], np.uint8), count=points)
            num_there = int(np.count_nonzero(there))
        position += size
    data = message[position:-4]
    if len(data) < 11:
        return f"a data section of {len(data)} bytes"
    bits = data[10]
    if bits > _MAX_BITS:
        return f"{bits} bits a value"
    is_simple = data[3] & 0xC0 == 0  # grid points, not of second order
    if is_simple and not has_bitmap:
        return _compare(len(data), 11 + (points * bits + 7) // 8)
    is_second_order = data[3] & 0xC0 == _SECOND_ORDER1
    if is_second_order and len(data) > _SECOND_ORDER1_BYTES and data[13] & _EXTENDED1:
        return _why_not_second_order1(data, num_there)
    return ""


def _why_not_second_order1(data: memoryview, num_values: int) -> str:
    """Follows the groups of second order packing as ECMWF writes it (eccodes, grib1/11.2)."""
    num_groups = _number(data, 16, 2) + 0x10000 * data[20]
    width_bits, length_bits, order = data[21], data[22], data[13] & 0b11
    if max(width_bits, length_bits, data[10]) > 32 or num_groups == 0:
        return (
            f"{num_groups} groups with {width_bits}, {length_bits} and {data[10]} bits for their "
            "widths, lengths and first values"
        )
    position = 25 if order == 0 else 26 + ((order + 1) * data[25] + 7) // 8
    parts = []
    for bits in (width_bits, length_bits, data[10]):
        size = (num_groups * bits + 7) // 8
        if position + size > len(data):
            return _compare(len(data), position + size)
        parts.append(_unpack(data[position : position + size], bits, num_groups))
        position += size
    widths, lengths, _ = parts
    if num_values and int(lengths.sum()) != num_values - order:
        return f"groups of {int(lengths.sum())} values in all, {num_values - order} expected"
    if int(widths.max()) > _MAX_BITS:
        return f"a group of {int(widths.max())} bits a value"
    return _compare(len(data), position + (int((widths * lengths).sum()) + 7) // 8)


def _why_not_grid1(grid: memoryview) -> str:
    """Compares the length of a GRIB 1 grid section with its type and lists."""
    num_vertical, lists_at, kind = grid[3], grid[4], grid[5]
    needed = _GRID1_BYTES.get(kind, 0)
    if lists_at not in (0, _NO_LISTS):
        is_reduced = kind in _REGULAR1 and _number(grid, 6, 2) == _NOT_GIVEN1
        rows = 2 * _number(grid, 8, 2) if is_reduced else 0
        needed = max(needed, lists_at - 1 + 4 * num_vertical + rows)
    if needed <= len(grid):
        return ""
    return f"a grid section of {len(grid)} bytes where its headers need {needed}"


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


def _why_not_grid(section3: memoryview, grid_points: int) -> str:
    """Compares the number of points with columns and rows, where the grid has them."""
    if _number(section3, 12, 2) not in _GRIDS_OF_ROWS or len(section3) < _ROWS_END:
        return ""
    columns, rows = _number(section3, 30, 4), _number(section3, 34, 4)
    if _NOT_GIVEN in (columns, rows) or columns * rows == grid_points:
        return ""
    return f"{columns} columns and {rows} rows for {grid_points} points"


def _why_not_bitmap(bitmap: memoryview, grid_points: int, num_values: int) -> str:
    """Compares the points that a bitmap says are there with the values that are packed."""
    if len(bitmap) < (grid_points + 7) // 8:
        return f"a bitmap of {len(bitmap)} bytes for {grid_points} points"
    there = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=grid_points)
    num_there = int(np.count_nonzero(there))
    if num_there == num_values:
        return ""
    return f"{num_values} values where the bitmap has {num_there} points"


def _why_not_complex(
    section5: memoryview, data: memoryview, num_values: int, *, is_spatial: bool
) -> str:
    """Follows the groups of complex packing through the data section (template 7.2, 7.3)."""
    num_groups = _number(section5, 31, 4)
    widths_from, width_bits = section5[35], section5[36]
    lengths_from, length_step = _number(section5, 37, 4), section5[41]
    last_length, length_bits = _number(section5, 42, 4), section5[46]
    if num_groups == 0 and (num_values == 0 or section5[19] == 0):
        return ""  # a constant field, as NCEP writes it
    if num_groups == 0 or num_groups > num_values:
        return f"{num_groups} groups for {num_values} values"
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


def _why_not_jpeg(data: memoryview, num_values: int, num_bits: int) -> str:
    """Compares the size of a JPEG 2000 picture with the headers (ISO/IEC 15444-1, annex A.5)."""
    if num_bits == 0:
        return ""  # a constant field: there is no picture
    if data[:4] != _JPEG_SIGNATURE or len(data) < 24:
        return "no JPEG 2000 picture in its data section"
    right, bottom, left, top = (_number(data, start, 4) for start in (8, 12, 16, 20))
    if right > left and bottom > top and (right - left) * (bottom - top) == num_values:
        return ""
    return f"a JPEG 2000 picture of {right - left} x {bottom - top} points for {num_values} values"


def _why_not_png(data: memoryview, num_values: int, num_bits: int) -> str:
    """Compares a PNG with its own checksums and with the headers (PNG specification, chunks)."""
    if num_bits == 0:
        return ""  # a constant field: there is no picture
    if data[:8] != _PNG_SIGNATURE:
        return "no PNG picture in its data section"
    position, width, height, depth, kind = 8, 0, 0, 0, b""
    while kind != b"IEND":
        size, kind = _number(data, position, 4), bytes(data[position + 4 : position + 8])
        end = position + 8 + size
        if end + 4 > len(data):
            return "its PNG picture is cut off"
        if zlib.crc32(data[position + 4 : end]) != _number(data, end, 4):
            return f"a checksum of its PNG picture is wrong (chunk {kind!r})"
        if kind == b"IHDR":
            width, height = _number(data, position + 8, 4), _number(data, position + 12, 4)
            depth = data[position + 16] * _PNG_CHANNELS.get(data[position + 17], 0)
        position = end + 4
    if width * height != num_values or depth < num_bits:
        return (
            f"a PNG picture of {width} x {height} points of {depth} bits for {num_values} values "
            f"of {num_bits} bits"
        )
    return ""


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
