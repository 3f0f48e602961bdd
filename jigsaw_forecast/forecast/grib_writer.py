"""GRIB 2 files: CCSDS packing, one message a field, each read back before it counts."""

import os
from collections.abc import Mapping
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
    set_times,
)
from jigsaw_forecast.forecast.product import (
    Maps,
    Mark,
    OutputSpec,
    Payload,
    Slot,
    Unit,
    Writer,
)
from jigsaw_forecast.forecast.staging import reported
from jigsaw_forecast.state import State

KG_M2_PER_METRE = 1000.0  # of liquid water
ABSURD_RANGES = 2.0  # a value this many plausible widths outside ruins the packing of its field


class GribWriter(Writer):
    """Appends messages to one file; every rank may encode its fields, one process writes them all.

    The centre is missing (255) and there are no archive keys unless `--grib` gives them. The keys
    of every message are read back; so are all values of the first lead time that a rank encodes
    and, after that, of one field in turn at each lead time, since decoding takes as long as
    encoding. Precipitation is the amount of the last 6 hours, in kg m-2, and left out at lead
    time 0, where there is none. Keys of `--grib` that are wrong are refused at opening, all of
    them in one message.
    """

    _file: IO[bytes] | None = None

    def _open(self) -> None:
        self._templates: dict[Field, int] = {}
        self._num_encoded = 0
        self._end = max((mark["end_byte"] for mark in self._done.values()), default=0)
        self._checksum = 0
        self._pool = ThreadPoolExecutor(num_encoders(), "grib")
        if self._staging is not None:
            check_grib_keys(self.spec)
            with reported(self.path):
                self._file = self._staging.partial.open("ab" if self.goes_on else "wb")

    @classmethod
    def recover(cls, partial: Path, spec: OutputSpec, marks: Mapping[Slot, Mark]) -> list[Slot]:
        """See `Writer.recover`: checksums are computed again and the rest is cut off."""
        whole: list[Slot] = []
        end = 0
        with partial.open("r+b") as file:
            for slot, mark in marks.items():
                content = file.read(mark["end_byte"] - end)
                if len(content) + end != mark["end_byte"]:
                    break
                if google_crc32c.value(content) != mark["crc32c"]:
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
        scaled = _to_grib_units(field, values)
        try:
            handle = eccodes.codes_clone(self._template(field))
            try:
                set_times(handle, field, slot, self.spec.grib_keys)
                eccodes.codes_set_values(handle, scaled.ravel())
                message: bytes = eccodes.codes_get_message(handle)
            finally:
                eccodes.codes_release(handle)
            _compare(message, field, slot, scaled if has_check else None)
        except eccodes.CodesInternalError as error:
            raise OutputError(
                f"cannot write {self.path}: eccodes refuses {field} at +{slot.lead_hours} h: "
                f"{error}"
            ) from error
        return message

    def _template(self, field: Field) -> int:
        """A message with all keys of a field but its times; setting them takes 3 ms."""
        if field not in self._templates:
            self._templates[field] = new_message(self.spec, field)
        return self._templates[field]

    def _append(self, slot: Slot, payload: Payload) -> None:
        assert self._file is not None, "only the creator writes a GRIB file"
        with reported(self.path):
            for _, message in payload:
                self._file.write(message)
                self._checksum = google_crc32c.extend(self._checksum, message)
                self._end += len(message)
                self.bytes_written += len(message)
            self._file.flush()

    def _mark(self, slot: Slot) -> Mark:
        mark = {"end_byte": self._end, "crc32c": self._checksum}
        self._checksum = 0
        return mark

    def _seal(self) -> None:
        assert self._file is not None
        assert self._staging is not None
        with reported(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
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


def _compare(
    message: bytes, field: Field, slot: Slot, values: npt.NDArray[np.float64] | None
) -> None:
    """Refuses a message that does not say what went in, to the packing error.

    Args:
        message: As it will be written.
        field: What it should hold.
        slot: When and of which member.
        values: What went in; None to read back the keys only.
    """
    handle = eccodes.codes_new_from_message(message)
    try:
        error, tolerance = (0.0, 0.0) if values is None else _packing_error(handle, values)
        end_step = eccodes.codes_get(handle, "endStep", int)
        valid = (
            eccodes.codes_get(handle, "validityDate"),
            eccodes.codes_get(handle, "validityTime"),
            None if slot.member is None else eccodes.codes_get(handle, "perturbationNumber"),
        )
    finally:
        eccodes.codes_release(handle)
    expected = (*date_and_time(slot.init_time + slot.lead_time), slot.member)
    if error > tolerance or end_step != slot.lead_hours or valid != expected:
        raise OutputError(
            f"GRIB message of {field} at +{slot.lead_hours} h reads back with an error of "
            f"{error:g} (packing allows {tolerance:g}), step {end_step}, valid time and member "
            f"{valid}; expected {expected}; write zarr instead and report this"
        )


def _packing_error(handle: int, values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The largest error of what a message holds, and what its packing allows."""
    decoded = eccodes.codes_get_values(handle).reshape(values.shape)
    spacing = 0.0
    if eccodes.codes_is_defined(handle, "binaryScaleFactor"):
        binary = eccodes.codes_get(handle, "binaryScaleFactor")
        spacing = 2.0**binary / 10.0 ** eccodes.codes_get(handle, "decimalScaleFactor")
    num_bits = eccodes.codes_get(handle, "bitsPerValue")
    # half a step of the packing, and the reference value, which is a 32-bit float
    reference_error = float(np.abs(values).max()) * float(np.finfo(np.float32).eps)
    tolerance = (0.5 * spacing if num_bits else 0.0) + reference_error
    return float(np.abs(decoded - values).max()), tolerance


def _is_absent(field: Field, values: Maps, slot: Slot) -> bool:
    is_diagnostic = field.spec.role is Role.DIAGNOSTIC
    return is_diagnostic and slot.lead_hours == 0 and bool(np.isnan(values).all())


def _to_grib_units(field: Field, values: Maps) -> npt.NDArray[np.float64]:
    scale = KG_M2_PER_METRE if field.variable == PRECIPITATION else 1.0
    return values.astype(np.float64) * scale


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
