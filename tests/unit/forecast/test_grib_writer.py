"""Claims about GRIB 2 products, read back by cfgrib and by eccodes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cfgrib
import eccodes
import numpy as np
import pytest

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.fields import Field
from jigsaw_forecast.forecast.output import open_writer
from jigsaw_forecast.forecast.product import OutputSpec, Slot, Writer, describe
from jigsaw_forecast.grid import Grid
from jigsaw_forecast.state import State
from tests.unit.forecast.made_up import FIELDS, INIT, PRECIPITATION, hours, make_spec, make_state

KEYS = (
    *("edition", "centre", "shortName", "paramId", "typeOfLevel", "level", "stepRange"),
    *("dataDate", "dataTime", "packingType", "bitsPerValue", "generatingProcessIdentifier"),
)


def write_all(path: Path, spec: OutputSpec) -> Path:
    writer = open_writer(path, spec, overwrite=False)
    for hour, lead in zip(spec.lead_hours, spec.lead_times, strict=True):
        writer.write(make_state(spec, hour))
        writer.mark_done(INIT, lead)
    writer.finish()
    return path


def read_messages(path: Path, *keys: str) -> list[dict[str, object]]:
    found = []
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            found.append(
                {
                    key: eccodes.codes_get(handle, key)
                    if eccodes.codes_is_defined(handle, key)
                    else None
                    for key in keys
                }
            )
            eccodes.codes_release(handle)
    return found


def write_one(tmp_path: Path, field: Field, value: float) -> None:
    spec = make_spec(fields=(field,), lead_times=hours(6))
    state = make_state(spec, 6)
    state.data[0, 2, 3] = value
    writer = open_writer(tmp_path / "f.grib2", spec, overwrite=False)
    try:
        writer.write(state)
    finally:
        writer.abort()


def open_with_keys(tmp_path: Path, keys: Mapping[str, str]) -> None:
    open_writer(tmp_path / "f.grib2", make_spec(grib_keys=keys), overwrite=False)


@pytest.mark.parametrize("grid", [Grid(8, 16, False), Grid(19, 36, True)])
def test_cfgrib_reads_the_values_to_packing_precision(tmp_path: Path, grid: Grid) -> None:
    spec = make_spec(grid=grid)
    path = write_all(tmp_path / "f.grib2", spec)
    state = make_state(spec, 6)
    short = {"2t": "t2m", "10u": "u10"}  # names that cfgrib gives
    scale = {"tp": 1000.0}  # metres to kg m-2
    for field, expected in zip(FIELDS, state.data.numpy(), strict=True):
        name = field.spec.short_name
        data = cfgrib.open_dataset(
            path,
            indexpath="",
            decode_timedelta=True,
            filter_by_keys={"shortName": name, "step": 6, "level": field.level_hpa or None}
            if field.level_hpa
            else {"shortName": name, "step": 6},
        )
        values = data[short.get(name, name)]
        expected = expected * scale.get(name, 1.0)
        # 16 bits over the range, which eccodes widens to a power of two: half a step of 2 ** -15
        assert np.abs(values.values - expected).max() <= np.ptp(expected) * 2.0**-15
        assert np.allclose(values.latitude, grid.latitudes, atol=1e-6)
        assert np.allclose(values.longitude, grid.longitudes, atol=1e-6)
        assert values.time.values == INIT
        assert values.valid_time.values == state.valid_time


def test_keys_are_those_of_each_field(tmp_path: Path) -> None:
    path = write_all(tmp_path / "f.grib2", make_spec(lead_times=hours(12)))
    same = (20260624, 0, "grid_ccsds", 16, 255)
    expected = [
        (2, "255", "z", 129, "isobaricInhPa", 500, "12", *same),
        (2, "255", "z", 129, "isobaricInhPa", 850, "12", *same),
        (2, "255", "q", 133, "isobaricInhPa", 500, "12", *same),
        (2, "255", "2t", 167, "heightAboveGround", 2, "12", *same),
        (2, "255", "10u", 165, "heightAboveGround", 10, "12", *same),
        (2, "255", "msl", 151, "meanSea", 0, "12", *same),
        (2, "255", "tp", 228228, "surface", 0, "6-12", *same),
    ]
    assert [tuple(keys.values()) for keys in read_messages(path, *KEYS)] == expected


def test_precipitation_is_accumulated_in_kilograms(tmp_path: Path) -> None:
    spec = make_spec(fields=(PRECIPITATION,), lead_times=hours(12))
    path = write_all(tmp_path / "f.grib2", spec)
    (keys,) = read_messages(path, "units", "stepType", "lengthOfTimeRange", "average")
    assert keys["units"] == "kg m**-2"
    assert keys["stepType"] == "accum"
    assert keys["lengthOfTimeRange"] == 6
    expected = make_state(spec, 12).data.double().mean().item() * 1000
    assert keys["average"] == pytest.approx(expected, rel=1e-4)


def test_precipitation_is_left_out_at_lead_zero(tmp_path: Path) -> None:
    path = write_all(tmp_path / "f.grib2", make_spec(lead_times=hours(0)))
    found = [keys["shortName"] for keys in read_messages(path, "shortName")]
    assert found == ["z", "z", "q", "2t", "10u", "msl"]


def test_product_that_no_centre_made_has_no_archive_keys(tmp_path: Path) -> None:
    path = write_all(tmp_path / "f.grib2", make_spec())
    for keys in read_messages(path, "class", "stream", "type", "expver", "centre"):
        assert list(keys.values()) == [None, None, None, None, "255"]


def test_archive_keys_are_written_when_given(tmp_path: Path) -> None:
    keys = {"centre": "ecmf", "class": "ml", "expver": "0001", "generatingProcessIdentifier": "7"}
    path = write_all(tmp_path / "f.grib2", make_spec(grib_keys=keys))
    names = ("centre", "class", "expver", "type", "stream", "generatingProcessIdentifier")
    for found in read_messages(path, *names, "shortName"):
        assert list(found.values())[:6] == ["ecmf", "ml", "0001", "fc", "oper", 7]


def test_the_control_is_of_another_archive_type_than_the_members(tmp_path: Path) -> None:
    keys = {"centre": "ecmf", "class": "ml"}
    spec = make_spec(
        fields=FIELDS[:1], lead_times=hours(6), grib_keys=keys, members=(0, 1), num_members=255
    )
    for user, types in ({}, ("cf", "pf")), ({"type": "fc"}, ("fc", "fc")):
        path = tmp_path / f"{types[0]}.grib2"
        writer = open_writer(path, replace(spec, grib_keys=keys | user), overwrite=False)
        for member in spec.members:
            writer.write(make_state(spec, 6), member)
            writer.mark_done(INIT, spec.lead_times[0], member)
        writer.finish()
        found = read_messages(path, "type", "stream", "number", "numberOfForecastsInEnsemble")
        assert [tuple(message.values()) for message in found] == [
            (types[member], "enfo", member, 255) for member in (0, 1)
        ]


def test_all_wrong_keys_are_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        open_with_keys(tmp_path, {"nonsense": "1", "class": "ml", "bitsPerValue": "many"})
    message = str(caught.value)
    assert "unknown key nonsense" in message
    assert "class exist only with centre 98 (ECMWF); missing centre=ecmf" in message
    assert "bitsPerValue=many is not a number" in message
    assert list(tmp_path.iterdir()) == []


def test_unknown_archive_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="class=zz is refused"):
        open_with_keys(tmp_path, {"centre": "ecmf", "class": "zz"})


def test_all_wrong_keys_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="centre=atlantis is refused.*; unknown key foo"):
        open_with_keys(tmp_path, {"centre": "atlantis", "class": "ml", "foo": "bar"})


def test_unknown_centre_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="centre=atlantis is refused"):
        open_with_keys(tmp_path, {"centre": "atlantis"})


def test_key_that_the_forecast_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="dataDate=20200101 contradicts the forecast"):
        open_with_keys(tmp_path, {"dataDate": "20200101"})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("jPointsAreConsecutive", "1", "makes jPointsAreConsecutive of z500 1 where"),
        ("gridType", "rotated_ll", "makes gridType of z500 rotated_ll where"),
        ("resolutionAndComponentFlags", "56", "makes uvRelativeToGrid of z500 1 where"),
        ("productDefinitionTemplateNumber", "8", "makes stepRange of z500 0-6 where"),
        ("edition", "1", "makes edition of z500 1 where the forecast has 2"),
    ],
)
def test_key_that_changes_what_the_values_mean_is_refused(
    tmp_path: Path, key: str, value: str, says: str
) -> None:
    spec = make_spec(grib_keys={key: value}, lead_times=hours(6))
    with pytest.raises(OutputError, match=says):
        open_writer(tmp_path / "f.grib2", spec, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"bitsPerValue": "99"}, "bitsPerValue=99 packs no"),
        (
            {"packingType": "grid_png", "bitsPerValue": "16"},
            "grid_png with bitsPerValue=16 packs no",
        ),
        ({"packingType": "grid_run_length"}, "grid_run_length is unknown; use ccsds, simple"),
    ],
)
def test_packing_that_eccodes_cannot_do_is_refused_at_opening(
    tmp_path: Path, keys: dict[str, str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(grib_keys=keys, lead_times=hours(6))
    with pytest.raises(OutputError, match=says):
        open_writer(tmp_path / "f.grib2", spec, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    assert "ECCODES" not in "".join(capfd.readouterr())


def test_nan_is_refused_before_encoding(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"z500 at \+6 h: 1 of 128 values are not finite"):
        write_one(tmp_path, Field("geopotential", 500), float("nan"))


def test_absurd_magnitude_is_refused_before_encoding(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"2t at \+6 h: values .* far outside"):
        write_one(tmp_path, Field("2m_temperature"), 1e38)


def test_nan_precipitation_after_lead_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"tp at \+6 h: 1 of 128 values are not finite"):
        write_one(tmp_path, PRECIPITATION, float("nan"))


def test_constant_field_reads_back_exactly(tmp_path: Path) -> None:
    spec = make_spec(fields=(PRECIPITATION,), lead_times=hours(6))
    writer = open_writer(tmp_path / "f.grib2", spec, overwrite=False)
    made = make_state(spec, 6)
    writer.write(State(made.data * 0, made.fields, spec.grid, INIT, made.lead_time))
    writer.mark_done(INIT, made.lead_time)
    writer.finish()
    (keys,) = read_messages(tmp_path / "f.grib2", "max", "min")
    assert keys == {"max": 0.0, "min": 0.0}


def open_pair(path: Path, spec: OutputSpec) -> tuple[Writer, Writer]:
    creator = open_writer(path, spec, overwrite=False)
    return creator, open_writer(path, spec, overwrite=False, is_creator=False)


def test_ranks_of_one_host_write_their_own_messages_in_the_order_of_the_fields(
    tmp_path: Path,
) -> None:
    spec = make_spec(lead_times=hours(6, 12))
    whole = write_all(tmp_path / "one.grib2", spec)
    ranks = open_pair(tmp_path / "two.grib2", spec)
    assert ranks[0].share() == ranks[1].share() != ""
    for lead in spec.lead_times:
        slot = Slot.of(INIT, lead)
        every = ranks[0].encode(make_state(spec, slot.lead_hours))
        own = [[piece for piece in every if piece[0] % 2 == rank] for rank in (0, 1)]
        table = describe(every)
        for rank in (1, 0):  # whoever comes first
            ranks[rank].write_at(slot, table, own[rank])
        ranks[0].mark_done(INIT, lead)
    ranks[1].seal()
    ranks[0].finish()
    assert (tmp_path / "two.grib2").read_bytes() == whole.read_bytes()
    assert ranks[0].bytes_written + ranks[1].bytes_written == whole.stat().st_size
    assert min(rank.bytes_written for rank in ranks) > 0


def test_a_rank_that_does_not_see_the_file_shares_nothing(tmp_path: Path) -> None:
    creator, other = open_pair(tmp_path / "f.grib2", make_spec())
    (tmp_path / "f.grib2.partial").rename(tmp_path / "elsewhere")
    assert creator.share() != ""
    assert other.share() == ""
    creator.abort()


@pytest.mark.parametrize("place", [10, -10])
def test_a_lead_time_with_a_flipped_bit_is_made_again(tmp_path: Path, place: int) -> None:
    spec = make_spec(lead_times=hours(6, 12))
    writer = open_writer(tmp_path / "f.grib2", spec, overwrite=False)
    marks = {}
    for lead in spec.lead_times:
        writer.write(make_state(spec, int(lead / hours(1)[0])))
        marks[Slot.of(INIT, lead)] = writer.mark_done(INIT, lead)
    writer.abort(keep=True)
    partial = tmp_path / "f.grib2.partial"
    kind = type(writer)
    assert kind.recover(partial, spec, marks) == list(marks)
    content = bytearray(partial.read_bytes())
    content[place] ^= 1
    partial.write_bytes(content)
    assert kind.recover(partial, spec, marks) == (list(marks)[:1] if place < 0 else [])
    first = next(iter(marks.values()))["end_byte"]
    assert partial.stat().st_size == (first if place < 0 else 0)
