"""Finds the fields of a GRIB file by its section lengths and accounts for every byte of it.

GRIB 1 and 2 frame their messages and sections alike in all centres' files (WMO Manual on Codes,
FM 92), so one pass that seeks over the data sections finds each field, those of multi-field
GRIB 2 messages included, without decoding and without eccodes' global multi-field switch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from jigsaw_forecast.errors import DataError

_MAGIC, _END = b"GRIB", b"7777"
_FIRST_SEARCH_BYTES = 512  # ECMWF pads messages to 120 bytes
_SEARCH_BYTES = 1 << 20
_GRIB1_LARGE = 0x800000  # ECMWF's coding of GRIB 1 messages of 8 MiB and more
_GRIB1_LARGE_UNIT = 120
_GRIB1_SPECTRAL = (50, 60, 70, 80)  # data representation types, code table 6
_SHOWN_BYTES = 16
# Octets of a GRIB 2 section up to what this module reads of it (code table 7 of FM 92).
_LEAST_BYTES = {1: 21, 3: 14, 4: 9, 5: 11, 6: 6}

Span = tuple[int, int]  # offset in the file, length


@dataclass(frozen=True)
class GribField:
    """One field's place in a GRIB file.

    Attributes:
        message: Number of its message, from 1.
        edition: 1 or 2.
        spans: The parts of the file that make up the field: one, the whole message, or, in a
            multi-field message, its sections without the indicator section and the end marker.
        indicator: Section 0 up to the total length: bytes that name discipline and edition.
        header: A message that eccodes reads keys from but no values.
        product: What decides the parameter: the sections that define it, raw.
        grid: The grid definition section, raw.
    """

    message: int
    edition: int
    spans: tuple[Span, ...]
    indicator: bytes
    header: bytes
    product: bytes
    grid: bytes


def find_fields(path: Path) -> tuple[list[GribField], int]:
    """Lists every field of a GRIB file.

    Args:
        path: A file.

    Returns:
        The fields and the number of bytes read.

    Raises:
        DataError: The file is empty, not GRIB, truncated, or holds bytes that belong to no
            message; says where.
    """
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes); fetch it again")
    fields: list[GribField] = []
    with path.open("rb") as stream:
        reader = _Reader(stream, size, path)
        position = number = 0
        while position < size:
            start = reader.find_magic(position)
            if start > position:
                reader.account_for_gap(position, start, num_before=number)
            if start == size:
                break
            number += 1
            fields_here, length = _read_message(reader, start, number)
            fields += fields_here
            position = start + length
    return fields, reader.bytes_read


def read_field(stream: BinaryIO, field: GribField) -> bytes:
    """The bytes of one field as a message of its own."""
    parts = []
    for offset, length in field.spans:
        stream.seek(offset)
        part = stream.read(length)
        if len(part) != length:
            raise DataError(f"{stream.name} has shrunk while it was read")
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    body = b"".join(parts)
    total = len(field.indicator) + 8 + len(body) + len(_END)
    return b"".join((field.indicator, total.to_bytes(8, "big"), body, _END))


class _Reader:
    """Reads at offsets and raises errors that name the message."""

    def __init__(self, stream: BinaryIO, size: int, path: Path) -> None:
        self.stream = stream
        self.size = size
        self.path = path
        self.bytes_read = 0

    def at(self, offset: int, length: int) -> bytes:
        self.stream.seek(offset, os.SEEK_SET)
        data = self.stream.read(length)
        self.bytes_read += len(data)
        return data

    def number(self, offset: int, length: int) -> int:
        return int.from_bytes(self.at(offset, length), "big")

    def find_magic(self, position: int) -> int:
        """Offset of the next `GRIB` at or after `position`, the file size if there is none."""
        if self.at(position, len(_MAGIC)) == _MAGIC:
            return position
        num_bytes = _FIRST_SEARCH_BYTES
        while position < self.size:
            block = self.at(position, num_bytes)
            num_bytes = _SEARCH_BYTES
            found = block.find(_MAGIC)
            if found >= 0:
                return position + found
            if position + len(block) >= self.size:
                break
            position += max(len(block) - len(_MAGIC) + 1, 1)
        return self.size

    def account_for_gap(self, start: int, end: int, num_before: int) -> None:
        """Refuses bytes that belong to no message, but for zeros: ECMWF pads messages with them."""
        head = self.at(start, min(end - start, _SEARCH_BYTES))
        if not head.strip(b"\0") and num_before:
            return
        shown = head[:_SHOWN_BYTES]
        if num_before == 0 and end == self.size:
            kind = "an HTML page" if is_html(head) else "not GRIB"
            raise DataError(
                f"{self.path} is {kind}, not a GRIB file: it has no GRIB message and starts with "
                f"{shown!r}; fetch it again"
            )
        raise DataError(
            f"{self.path}: {end - start} bytes at byte {start} "
            f"({'before the first message' if not num_before else f'after message {num_before}'}) "
            f"belong to no GRIB message: they start with {shown!r}; the file is damaged or was "
            f"joined wrongly; fetch it again, or keep its whole messages with "
            f"`grib_copy {self.path.name} whole.grib`"
        )

    def truncated(self, number: int, start: int, claimed: int) -> DataError:
        return DataError(
            f"{self.path} is truncated: message {number} at byte {start} has {claimed} bytes by "
            f"its header, the file ends after {self.size - start} of them; {number - 1} whole "
            "messages precede it; fetch it again"
        )

    def damaged(self, number: int, start: int, what: str) -> DataError:
        return DataError(
            f"{self.path} is damaged: message {number} at byte {start}: {what}; fetch it again"
        )


def is_html(head: bytes) -> bool:
    """Whether a file that starts with `head` is a web page, as failed downloads are."""
    text = head[:1024].lstrip().lower()
    return text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head"))


def _read_message(reader: _Reader, start: int, number: int) -> tuple[list[GribField], int]:
    """The fields of the message at `start` and its length in bytes."""
    head = reader.at(start, 16)
    if len(head) < 8:
        raise reader.truncated(number, start, 16)
    edition = head[7]
    if edition == 1:
        length, fields = _read_grib1(reader, start, number)
    elif edition == 2 and len(head) == 16:
        length = int.from_bytes(head[8:16], "big")
        if start + length > reader.size:
            raise reader.truncated(number, start, length)
        fields = list(_walk_grib2(reader, start, length, number, head[:8]))
        if len(fields) == 1:
            fields = [replace(fields[0], spans=((start, length),))]
    elif edition == 2:
        raise reader.truncated(number, start, 16)
    else:
        raise reader.damaged(number, start, f"GRIB edition {edition} is not 1 or 2")
    return fields, length


def _check_end(reader: _Reader, start: int, length: int, number: int) -> None:
    if reader.at(start + length - len(_END), len(_END)) != _END:
        raise reader.damaged(
            number, start, f"no 7777 where its length of {length} bytes says that it ends"
        )


def _read_grib1(reader: _Reader, start: int, number: int) -> tuple[int, list[GribField]]:
    """Length and field of a GRIB 1 message."""
    indicator = reader.at(start, 8)
    total = int.from_bytes(indicator[4:7], "big")
    if not total & _GRIB1_LARGE and start + total > reader.size:
        raise reader.truncated(number, start, total)
    position = start + 8
    product = reader.at(position, reader.number(position, 3))
    if len(product) < 28:
        raise reader.damaged(number, start, f"product section of {len(product)} bytes")
    position += len(product)
    grid = b""
    if product[7] & 0x80:
        grid = reader.at(position, reader.number(position, 3))
        position += len(grid)
    if product[7] & 0x40:
        position += reader.number(position, 3)
    data_length = reader.number(position, 3)
    if total & _GRIB1_LARGE and data_length < _GRIB1_LARGE_UNIT:
        total = (total & (_GRIB1_LARGE - 1)) * _GRIB1_LARGE_UNIT - data_length + 4
        data_length = start + total - len(_END) - position
    if start + total > reader.size:
        raise reader.truncated(number, start, total)
    _check_end(reader, start, total, number)
    if position + data_length + len(_END) > start + total:
        raise reader.damaged(number, start, "its sections are longer than the message")
    spans = ((start, total),)
    is_spectral = len(grid) > 5 and grid[5] in _GRIB1_SPECTRAL
    header = reader.at(start, total) if is_spectral else _grib1_header(product, grid)
    return total, [GribField(number, 1, spans, indicator, header, product, grid)]


def _grib1_header(product: bytes, grid: bytes) -> bytes:
    """A whole GRIB 1 message with the same product and grid and a constant data section.

    eccodes finds no gridType in a GRIB 1 message that is cut before its data.
    """
    without_bitmap = product[:7] + bytes([product[7] & ~0x40]) + product[8:]
    data_section = (12).to_bytes(3, "big") + bytes([8]) + bytes(8)
    body = without_bitmap + grid + data_section + _END
    return _MAGIC + (8 + len(body)).to_bytes(3, "big") + b"\x01" + body


def _walk_grib2(
    reader: _Reader, start: int, length: int, number: int, indicator: bytes
) -> Iterator[GribField]:
    """The fields of a GRIB 2 message: each data section (7) ends one.

    Sections 2 to 7, 3 to 7 or 4 to 7 may repeat; a bitmap section that says 254 stands for the
    last bitmap of the message.
    """
    _check_end(reader, start, length, number)
    end = start + length - len(_END)
    position = start + 16
    sections: dict[int, Span] = {}
    raw: dict[int, bytes] = {}
    last_bitmap: Span | None = None
    num_fields = 0
    while position < end:
        head = reader.at(position, 6)
        size, section = int.from_bytes(head[:4], "big"), head[4]
        if size < _LEAST_BYTES.get(section, 5) or not 1 <= section <= 7 or position + size > end:
            raise reader.damaged(
                number, start, f"section {section} of {size} bytes at byte {position} does not fit"
            )
        span = (position, size)
        if section == 6:
            if head[5] == 0:
                last_bitmap = span
            span = last_bitmap if head[5] == 254 and last_bitmap else span
        sections[section] = span
        if section < 6:
            raw[section] = reader.at(position, size)
        position += size
        if section == 7:
            absent = [str(s) for s in (1, 3, 4, 5) if s not in sections]
            if absent:
                raise reader.damaged(number, start, f"missing section {', '.join(absent)}")
            num_fields += 1
            yield _grib2_field(number, indicator, sections, raw)
    if num_fields == 0:
        raise reader.damaged(number, start, "it holds no data section")


def _grib2_field(
    number: int, indicator: bytes, sections: dict[int, Span], raw: dict[int, bytes]
) -> GribField:
    ordered = [s for s in range(1, 8) if s in sections]
    size = 16 + sum(sections[s][1] for s in ordered) + len(_END)
    known = b"".join(raw[s] for s in ordered if s < 6)
    bitmap_and_data = bytes([0, 0, 0, 6, 6, 255, 0, 0, 0, 5, 7])
    header = b"".join((indicator, size.to_bytes(8, "big"), known, bitmap_and_data))
    product = indicator[6:7] + raw[1] + raw.get(2, b"") + raw[4]
    spans = tuple(sections[s] for s in ordered)
    return GribField(number, 2, spans, indicator, header, product, raw[3])
