"""GRIB 2 files: CCSDS packing, one message a field, each read back before it counts."""

import os
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import eccodes
import google_crc32c
import numpy as np
import numpy.typing as npt

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field, Role, plausible_range
from jigsaw_forecast.forecast.encoders import num_encoders
from jigsaw_forecast.forecast.grib_keys import (
    PRECIPITATION,
    PRECIPITATION_HOURS,
    check_grib_keys,
    date_and_time,
    new_message,
    packing_error,
    set_times,
)
from jigsaw_forecast.forecast.product import (
    Maps,
    Mark,
    OutputSpec,
    Payload,
    Row,
    Slot,
    Unit,
    Writer,
    describe,
)
from jigsaw_forecast.forecast.staging import PARTIAL_SUFFIX, reported
from jigsaw_forecast.state import State

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # names a host, random(4)
KG_M2_PER_METRE = 1000.0  # of liquid water
ABSURD_RANGES = 2.0  # a value this many plausible widths outside ruins the packing of its field


class GribWriter(Writer):
    """Appends messages to one file; every rank may encode its fields and, on one host, write them.

    The centre is missing (255) and there are no archive keys unless `--grib` gives them. The keys
    of every message are read from it again; so are all values of the first lead time that a rank
    encodes and, after that, of one field in turn at each lead time, since decoding takes as long
    as encoding. Precipitation is the amount of the last 6 hours, in kg m-2, and left out at lead
    time 0, where there is none. Keys of `--grib` that are wrong are refused at opening, all of
    them in one message.
    """

    _file: IO[bytes] | None = None

    def _open(self) -> None:
        self._templates: dict[Field, int] = {}
        self._num_encoded = 0
        self._end = max((mark["end_byte"] for mark in self._done.values()), default=0)
        # of lead times that are written but not marked: where each begins, and its messages
        self._unmarked: dict[Slot, tuple[int, list[Row]]] = {}
        self._memory = threading.local()
        self._pool = ThreadPoolExecutor(num_encoders(), "grib")
        if self._staging is not None:
            check_grib_keys(self.spec)
            with reported(self.path):
                if not self.goes_on:
                    self._staging.partial.touch()
                self._file = self._staging.partial.open("r+b", buffering=0)

    @classmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """See `Writer.recover`: checksums are computed again and the rest is cut off."""
        whole: list[Slot] = []
        end = 0
        with partial.open("r+b") as file:
            for slot, mark in marks.items():
                messages = mark.get("messages")  # another version may have marked it
                if messages is None:
                    break
                if not all(_is_whole(file.read(size), size, crc) for size, crc in messages):
                    break
                end = mark["end_byte"]
                whole.append(slot)
            file.truncate(end)
        return whole

    @classmethod
    def units_of(cls, spec: OutputSpec) -> list[Unit]:
        """Single fields."""
        return [(field,) for field in spec.fields]

    def _encode(self, states: State, maps: Maps, slot: Slot) -> Payload:
        held = zip(states.fields, maps, strict=True)
        chosen = [pair for pair in held if not _is_absent(*pair, slot)]
        problems = [p for field, values in chosen if (p := _find_unpackable(field, values, slot))]
        if problems:
            raise OutputError(f"cannot write {self.path}:\n" + "\n".join(problems))
        checked = self._num_encoded % len(chosen) if self._num_encoded and chosen else None
        self._num_encoded += 1

        def encode(numbered: tuple[int, tuple[Field, Maps]]) -> bytes:
            index, (field, values) = numbered
            return self._message(field, values, slot, has_check=checked in (None, index))

        for field, _ in chosen:
            self._template(field)
        if num_encoders() == 1:
            messages = list(map(encode, enumerate(chosen)))
        else:
            messages = list(self._pool.map(encode, enumerate(chosen)))
        numbers = [self.spec.fields.index(field) for field, _ in chosen]
        return list(zip(numbers, messages, strict=True))

    def _message(self, field: Field, values: Maps, slot: Slot, *, has_check: bool) -> bytes:
        scaled = self._in_grib_units(field, values)
        try:
            handle = eccodes.codes_clone(self._template(field))
            try:
                set_times(handle, field, slot, self.spec.grib_keys)
                eccodes.codes_set_values(handle, scaled.ravel())
                message: bytes = eccodes.codes_get_message(handle)
                if not has_check:
                    _compare(handle, field, slot, None)  # a handle reads its keys from the message
            finally:
                eccodes.codes_release(handle)
            if has_check:
                handle = eccodes.codes_new_from_message(message)
                try:
                    _compare(handle, field, slot, scaled)
                finally:
                    eccodes.codes_release(handle)
        except eccodes.CodesInternalError as error:
            raise OutputError(
                f"cannot write {self.path}: eccodes refuses {field} at +{slot.lead_hours} h: "
                f"{error}"
            ) from error
        return message

    def _in_grib_units(self, field: Field, values: Maps) -> npt.NDArray[np.float64]:
        """Values as eccodes takes them, in memory that this thread's next message uses again."""
        scaled: npt.NDArray[np.float64] | None = getattr(self._memory, "scaled", None)
        if scaled is None or scaled.shape != values.shape:
            scaled = self._memory.scaled = np.empty(values.shape, np.float64)
        np.copyto(scaled, values)
        if field.variable == PRECIPITATION:
            scaled *= KG_M2_PER_METRE
        return scaled

    def _template(self, field: Field) -> int:
        """A message with all keys of a field but its times; setting them takes 3 ms."""
        if field not in self._templates:
            self._templates[field] = new_message(self.spec, field)
        return self._templates[field]

    def share(self) -> str:
        """See `Writer.share`: ranks of one host write into one file of its page cache.

        Over a network two hosts that write parts of one page may lose one of them, so ranks of
        other hosts send what they have to the creator.
        """
        if self._file is None:
            partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
            try:
                self._file = partial.open("r+b", buffering=0)
            except OSError:
                return ""
        status = os.fstat(self._file.fileno())
        host = BOOT_ID.read_text().strip() if BOOT_ID.exists() else platform.node()
        return f"{host} {status.st_dev} {status.st_ino}"

    def write_at(self, slot: Slot, table: Sequence[Row], payload: Payload) -> None:
        """See `Writer.write_at`."""
        places, held = {}, dict(payload)
        if self.is_creator:
            self._unmarked.setdefault(slot, (self._end, []))[1].extend(table)
        for number, size, _ in table:
            places[number] = self._end
            self._end += size
        assert self._file is not None or not payload, "a rank that does not share has nothing here"
        with reported(self.path):
            for number in sorted(held):
                assert self._file is not None
                _write_at(self._file.fileno(), held[number], places[number])
                self.bytes_written += len(held[number])

    def _append(self, slot: Slot, payload: Payload) -> None:
        self.write_at(slot, describe(payload), payload)

    def _mark(self, slot: Slot) -> Mark:
        # a lead time without a field, at which nothing was appended, has nothing here
        start, table = self._unmarked.pop(slot, (self._end, []))
        num_bytes = sum(size for _, size, _ in table)
        if self._file is not None and hasattr(os, "posix_fadvise"):
            # starts to write it to the disk, or all of it would have to wait for the end
            advice = self._file.fileno(), start, num_bytes, os.POSIX_FADV_DONTNEED
            self._pool.submit(os.posix_fadvise, *advice)  # takes 30 ms, for which ranks would wait
        return {"end_byte": start + num_bytes, "messages": [[size, crc] for _, size, crc in table]}

    def _seal(self) -> None:
        assert self._file is not None
        assert self._staging is not None
        with reported(self.path):
            num_bytes = self._staging.partial.stat().st_size
        if num_bytes != self._end:
            raise OutputError(
                f"cannot write {self.path}: {self._end} bytes were written but the file has "
                f"{num_bytes}"
            )

    def _close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for handle in self._templates.values():
            eccodes.codes_release(handle)
        self._templates.clear()
        file, self._file = self._file, None
        if file is not None:
            with reported(self.path):
                file.close()


def _is_whole(content: bytes, size: int, crc32c: int) -> bool:
    return len(content) == size and google_crc32c.value(content) == crc32c


def _write_at(file: int, content: bytes | memoryview, place: int) -> None:
    """Writes all of a message; the system may take a part of it at a time."""
    rest = memoryview(content)
    while rest:
        num_bytes = os.pwrite(file, rest, place)
        rest, place = rest[num_bytes:], place + num_bytes


def _compare(handle: int, field: Field, slot: Slot, values: npt.NDArray[np.float64] | None) -> None:
    """Refuses a message that does not say what went in, to the packing error.

    Args:
        handle: The message.
        field: What it should hold.
        slot: When and of which member.
        values: What went in; None to read back the keys only.
    """
    error, tolerance = (0.0, 0.0) if values is None else packing_error(handle, values)
    end_step = eccodes.codes_get(handle, "endStep", int)
    valid = (
        eccodes.codes_get(handle, "validityDate"),
        eccodes.codes_get(handle, "validityTime"),
        None if slot.member is None else eccodes.codes_get(handle, "perturbationNumber"),
    )
    expected = (*date_and_time(slot.init_time + slot.lead_time), slot.member)
    if error > tolerance or end_step != slot.lead_hours or valid != expected:
        raise OutputError(
            f"GRIB message of {field} at +{slot.lead_hours} h reads back with an error of "
            f"{error:g} (packing allows {tolerance:g}), step {end_step}, valid time and member "
            f"{valid}; expected {expected}; write zarr instead and report this"
        )


def _is_absent(field: Field, values: Maps, slot: Slot) -> bool:
    is_diagnostic = field.spec.role is Role.DIAGNOSTIC
    return is_diagnostic and slot.lead_hours == 0 and bool(np.isnan(values).all())


def _find_unpackable(field: Field, values: Maps, slot: Slot) -> str | None:
    # eccodes packs NaN without an error, and one huge value takes all bits of its field
    where = f"{field} at +{slot.lead_hours} h"
    if field.variable == PRECIPITATION and slot.lead_hours < PRECIPITATION_HOURS:
        return f"{where}: a sum over {PRECIPITATION_HOURS} h would begin before the forecast"
    lowest, highest = float(values.min()), float(values.max())  # both pass NaN on
    if not np.isfinite([lowest, highest]).all():
        num_bad = int(values.size - np.isfinite(values).sum())
        return f"{where}: {num_bad} of {values.size} values are not finite"
    scale = KG_M2_PER_METRE if field.variable == PRECIPITATION else 1.0
    low, high = (bound * scale for bound in plausible_range(field))
    lowest, highest = lowest * scale, highest * scale
    margin = ABSURD_RANGES * (high - low)
    if lowest < low - margin or highest > high + margin:
        return (
            f"{where}: values {lowest:g} to {highest:g} are far outside of what is plausible, "
            f"{low:g} to {high:g}"
        )
    return None
