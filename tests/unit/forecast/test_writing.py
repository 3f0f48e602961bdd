"""Claims about the products of a run as an output thread writes them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast import writing
from jigsaw_forecast.forecast.output import open_writer, resolve_outputs
from jigsaw_forecast.forecast.product import OutputSpec, Payload, Slot, describe
from jigsaw_forecast.forecast.resume import Standing
from jigsaw_forecast.forecast.staging import ProductLock
from jigsaw_forecast.forecast.writing import Job, Products, RunProducts
from jigsaw_forecast.parallel.mesh import single_rank_mesh
from jigsaw_forecast.parallel.side_channel import SideChannel
from tests.unit.forecast.made_up import FIELDS, INIT, hours, make_spec, make_state


class ChannelToOtherHost:
    """Rank 0 of two as it sees the other, which holds every second field and not this file."""

    rank, size = 0, 2

    def __init__(self, theirs: Payload) -> None:
        self.theirs = theirs

    def texts(self, text: str) -> list[str]:
        is_table = text.startswith("[")
        return [text, json.dumps(describe(self.theirs)) if is_table else "another host 1 2"]

    def together(self, action: object) -> object:
        return action()  # type: ignore[operator]

    def collect(self, pieces: Payload, root: int) -> Payload:
        assert (pieces, root) == ([], 0)  # what this rank writes itself is not sent
        return self.theirs


def make_products(path: Path, spec: OutputSpec, channel: object) -> Products:
    (product,) = resolve_outputs([str(path)], (INIT,), spec.lead_times)
    run = RunProducts((product,), spec, {path: Standing()}, {path: 0})
    return Products(single_rank_mesh(), run, cast(SideChannel, channel), lambda _: {})


def test_messages_of_another_host_come_to_their_places_in_the_file(tmp_path: Path) -> None:
    spec = make_spec(lead_times=hours(6))
    slot, state = Slot.of(INIT, hours(6)[0]), make_state(spec, 6)
    one = make_products(tmp_path / "one.grib2", spec, SideChannel(single_rank_mesh()))
    owners = tuple((field, 0) for field in FIELDS)
    one.write(Job((slot,), {owners: state}, 1))
    writer = open_writer(tmp_path / "spare.grib2", spec, overwrite=False)
    messages = writer.encode(state)
    writer.abort()

    path = tmp_path / "two.grib2"
    two = make_products(path, spec, ChannelToOtherHost(messages[1::2]))
    two._open_writers(two.waiting)
    assert two._sharing[path] == {0}
    failures: list[Exception] = []
    two._append(two.waiting[0], slot, messages[::2], failures)
    assert failures == []
    two._open[path].mark_done(*slot)
    two._finish(two.waiting[0])
    assert path.read_bytes() == (tmp_path / "one.grib2").read_bytes()


@pytest.mark.parametrize("name", ["f.zarr", "f.grib2", "f.nc"])
def test_lead_times_written_together_are_marked_each_with_what_is_its_own(
    tmp_path: Path, name: str
) -> None:
    later = INIT + np.timedelta64(6, "h")
    spec = make_spec(init_times=(INIT, later), lead_times=hours(6))
    slots = list(spec.slots)
    states = [replace(make_state(spec, 6), init_time=slot.init_time) for slot in slots]
    states[1].data.mul_(1.001)
    path, partial = tmp_path / name, tmp_path / f"{name}.partial"
    whole = open_writer(tmp_path / f"whole{path.suffix}", spec, overwrite=False)
    for state in states:  # as two model groups at one step
        whole.write(state)
    for slot in slots:
        whole.mark_done(*slot)
    whole.finish()
    writer = open_writer(path, spec, overwrite=False)
    for state in states:
        writer.write(state)
    marks = {slot: writer.mark_done(*slot) for slot in slots}
    writer.abort(keep=True)
    assert type(writer).recover(partial, spec, marks) == slots
    # a run that was killed between the two marks
    first = {slots[0]: marks[slots[0]]}
    assert type(writer).recover(partial, spec, first) == slots[:1]
    writer = open_writer(path, spec, overwrite=False, finished=first)
    writer.write(states[1])
    writer.mark_done(*slots[1])
    writer.finish()
    if name != "f.zarr":
        assert path.read_bytes() == whole.path.read_bytes()


def test_the_marks_of_a_product_that_is_given_up_go_while_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.grib2"
    products = make_products(path, make_spec(), SideChannel(single_rank_mesh()))
    products.run.locks[path] = ProductLock(path, joins=False)
    products._open_writers(products.waiting)
    refused = []

    def remove(product: Path) -> None:
        with pytest.raises(OutputError, match="being written by another run"):
            ProductLock(product, joins=False)
        refused.append(product)

    monkeypatch.setattr(writing, "remove_progress", remove)
    products.close()
    products.run.give_back()
    assert refused == [path]
    assert list(tmp_path.iterdir()) == []
