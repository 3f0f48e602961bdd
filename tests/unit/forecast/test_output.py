"""Claims about resolving `--output` and about the life of a product, whatever its kind."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.forecast import staging
from jigsaw_forecast.forecast.output import check_keys, open_writer, resolve_outputs
from jigsaw_forecast.grid import Grid
from tests.unit.forecast.made_up import FIELDS, INIT, PRECIPITATION, hours, make_spec, make_state

KINDS = ("f.zarr", "f.grib2", "f.nc")
TWO_INITS = (INIT, INIT + np.timedelta64(12, "h"))


def write_all(path: Path, *, overwrite: bool = False) -> None:
    spec = make_spec()
    writer = open_writer(path, spec, overwrite=overwrite)
    for lead in spec.lead_times:
        writer.write(make_state(spec, int(lead / np.timedelta64(1, "h"))))
        writer.mark_done(INIT, lead)
    writer.finish()


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that takes no file larger than this: writing on fails with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_init_template_gives_one_product_for_each_init_time(tmp_path: Path) -> None:
    text = f"{tmp_path}/forecast-{{init:%Y%m%d%H}}.zarr"
    products = resolve_outputs([text], TWO_INITS, hours(6, 12))
    assert [p.path.name for p in products] == [
        "forecast-2026062400.zarr",
        "forecast-2026062412.zarr",
    ]
    assert [p.init_times for p in products] == [(TWO_INITS[0],), (TWO_INITS[1],)]


def test_lead_template_gives_one_product_for_each_lead_time(tmp_path: Path) -> None:
    products = resolve_outputs([f"{tmp_path}/{{lead:03d}}.grib2"], TWO_INITS, hours(6, 240))
    assert [p.path.name for p in products] == ["006.grib2", "240.grib2"]
    assert [p.lead_times for p in products] == [hours(6), hours(240)]
    assert products[0].init_times == TWO_INITS


def test_plain_path_holds_all_times(tmp_path: Path) -> None:
    (product,) = resolve_outputs([f"{tmp_path}/all.nc"], TWO_INITS, hours(6, 12))
    assert product.init_times == TWO_INITS
    assert product.lead_times == hours(6, 12)


def test_grib_of_precipitation_alone_has_no_product_at_lead_zero(tmp_path: Path) -> None:
    text = f"{tmp_path}/tp-{{lead:03d}}.grib2"
    products = resolve_outputs([text], [INIT], hours(0, 6), fields=[PRECIPITATION])
    assert [p.path.name for p in products] == ["tp-006.grib2"]


def test_grib_of_precipitation_alone_does_not_wait_for_lead_zero(tmp_path: Path) -> None:
    text = f"{tmp_path}/tp.grib2"
    (product,) = resolve_outputs([text], [INIT], hours(0, 6), fields=[PRECIPITATION])
    assert product.lead_times == hours(6)


def test_grib_with_other_fields_keeps_lead_zero(tmp_path: Path) -> None:
    (product,) = resolve_outputs([f"{tmp_path}/f.grib"], [INIT], hours(0, 6), fields=FIELDS)
    assert product.lead_times == hours(0, 6)


@pytest.mark.parametrize("name", ["f.zarr", "f.nc"])
def test_store_of_precipitation_alone_keeps_lead_zero(tmp_path: Path, name: str) -> None:
    text = f"{tmp_path}/{name}"
    (product,) = resolve_outputs([text], [INIT], hours(0, 6), fields=[PRECIPITATION])
    assert product.lead_times == hours(0, 6)


def test_grib_output_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"tp.grib2' would be empty: tp have no value"):
        resolve_outputs([f"{tmp_path}/tp.grib2"], [INIT], hours(0), fields=[PRECIPITATION])


def test_wrong_grib_keys_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    spec = make_spec(grib_keys={"nonsense": "1"})
    products = resolve_outputs(
        [f"{tmp_path}/f.zarr", f"{tmp_path}/f.grib2"], [INIT], hours(0, 6), fields=FIELDS
    )
    with pytest.raises(OutputError, match="unknown key nonsense"):
        check_keys(products, spec, {})
    assert names(tmp_path) == set()


def test_grib_keys_without_a_grib_output_are_refused(tmp_path: Path) -> None:
    products = resolve_outputs([f"{tmp_path}/f.zarr"], [INIT], hours(6))
    keys = {"class": "ml", "nonsense": "1"}
    with pytest.raises(OutputError, match="--grib class=ml,nonsense=1: missing an --output that"):
        check_keys(products, make_spec(grib_keys=keys), keys)
    check_keys(products, make_spec(grib_keys=keys), {})  # a checkpoint's own


def test_more_members_than_grib_can_number_are_refused(tmp_path: Path) -> None:
    members = tuple(range(256))
    spec = make_spec(members=members, num_members=256)
    for name, reason in (("f.nc", ""), ("{member}.grib2", "at most 255 members, not 256; write")):
        products = resolve_outputs([f"{tmp_path}/{name}"], [INIT], hours(6), members=members)
        with pytest.raises(OutputError, match=reason) if reason else nullcontext():
            check_keys(products, spec, {})


def test_product_holds_its_own_times_in_any_unit(tmp_path: Path) -> None:
    product, _ = resolve_outputs([f"{tmp_path}/{{init:%H}}.nc"], TWO_INITS, hours(24))
    assert product.holds(INIT.astype("datetime64[h]"), np.timedelta64(1, "D"))
    assert not product.holds(TWO_INITS[1], np.timedelta64(1, "D"))
    assert not product.holds(INIT, np.timedelta64(6, "h"))


def test_writer_holds_its_own_times_in_any_unit(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "f.grib2", make_spec(), overwrite=False)
    assert writer.holds(INIT.astype("datetime64[h]"), np.timedelta64(6 * 3600, "s"))
    assert not writer.holds(INIT, np.timedelta64(12, "h"))
    assert not writer.holds(TWO_INITS[1], np.timedelta64(6, "h"))
    writer.abort()


def test_all_problems_are_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "there.nc").touch()
    with pytest.raises(OutputError) as caught:
        resolve_outputs(
            [
                f"{tmp_path}/a.txt",
                f"{tmp_path}/nowhere/b.nc",
                f"{tmp_path}/there.nc",
                f"{tmp_path}/{{step}}.nc",
                f"{tmp_path}/c.zarr",
                f"{tmp_path}/c.zarr",
            ],
            [INIT],
            hours(6),
        )
    lines = str(caught.value).splitlines()
    expected = ("not a valid template", "same name", "unknown suffix '.txt'")
    expected += ("missing folder", "there.nc exists; add --overwrite")
    assert len(lines) == len(expected)
    assert all(any(part in line for line in lines) for part in expected)


def test_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write into folder /proc"):
        resolve_outputs(["/proc/f.zarr"], [INIT], hours(6))


def test_file_used_as_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        resolve_outputs([f"{tmp_path}/file/f.zarr"], [INIT], hours(6))


def test_folder_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(OutputError, match="not a zarr store"):
        resolve_outputs([f"{tmp_path}/mine.zarr"], [INIT], hours(6), overwrite=True)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_under_the_final_name_before_finish(tmp_path: Path, name: str) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    writer.write(make_state(spec, 6))
    assert not (tmp_path / name).exists()
    writer.abort()


@pytest.mark.parametrize("name", KINDS)
def test_finish_leaves_the_product_and_nothing_else(tmp_path: Path, name: str) -> None:
    write_all(tmp_path / name)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", KINDS)
def test_a_product_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    synced = []

    def sync(partial: Path) -> None:
        staging.sync(partial)
        synced.append((partial.name, (tmp_path / name).exists()))

    monkeypatch.setattr("jigsaw_forecast.forecast.product.sync", sync)
    write_all(tmp_path / name)
    assert synced == [(f"{name}.partial", False)]


@pytest.mark.parametrize("name", KINDS)
def test_finish_refuses_while_lead_times_are_missing(tmp_path: Path, name: str) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    writer.write(make_state(spec, 0))
    writer.mark_done(INIT, spec.lead_times[0])
    with pytest.raises(OutputError, match=r"missing 2026-06-24T00:00:00 \+6 h"):
        writer.finish()
    writer.abort()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_done", [0, 1])
def test_abort_leaves_nothing(tmp_path: Path, name: str, num_done: int) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    for lead in spec.lead_times[:num_done]:
        writer.write(make_state(spec, 0))
        writer.mark_done(INIT, lead)
    writer.abort()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", KINDS)
def test_abort_after_finish_changes_nothing(tmp_path: Path, name: str) -> None:
    spec = make_spec(lead_times=hours(6))
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    writer.write(make_state(spec, 6))
    writer.mark_done(INIT, spec.lead_times[0])
    writer.finish()
    before = content(tmp_path / name)
    writer.abort()
    assert names(tmp_path) == {name}
    assert content(tmp_path / name) == before


@pytest.mark.parametrize("name", KINDS)
def test_whole_product_whose_name_was_taken_is_kept(tmp_path: Path, name: str) -> None:
    spec = make_spec(lead_times=hours(6))
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    writer.write(make_state(spec, 6))
    writer.mark_done(INIT, spec.lead_times[0])
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=f"the finished product is .*{name}.partial"):
        writer.finish()
    writer.abort()
    assert names(tmp_path) == {name, f"{name}.partial"}


@pytest.mark.parametrize("name", ["f.zarr", "f.nc"])
def test_full_disk_at_opening_leaves_nothing(tmp_path: Path, name: str) -> None:
    with largest_file(10), pytest.raises(OutputError, match="cannot write"):
        open_writer(tmp_path / name, make_spec(), overwrite=False)
    assert names(tmp_path) == set()


def test_lock_is_given_up_where_clearing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "f.zarr.partial").mkdir()
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    assert names(tmp_path) == {"f.zarr.partial"}


def test_product_that_a_dead_run_moved_away_is_not_written_over(tmp_path: Path) -> None:
    write_all(tmp_path / "f.zarr")
    (tmp_path / "f.zarr").rename(tmp_path / ".f.zarr.old")  # between the two renames of publish
    with pytest.raises(OutputError, match="exists; add --overwrite"):
        open_writer(tmp_path / "f.zarr", make_spec(), overwrite=False)
    assert names(tmp_path) == {"f.zarr"}


@pytest.mark.parametrize("name", KINDS)
def test_existing_product_is_refused_without_overwrite(tmp_path: Path, name: str) -> None:
    write_all(tmp_path / name)
    with pytest.raises(OutputError, match="exists; add --overwrite"):
        open_writer(tmp_path / name, make_spec(), overwrite=False)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", KINDS)
def test_old_product_survives_a_failed_overwrite(tmp_path: Path, name: str) -> None:
    write_all(tmp_path / name)
    before = content(tmp_path / name)
    spec = make_spec()
    writer = open_writer(tmp_path / name, spec, overwrite=True)
    writer.write(make_state(spec, 6))
    writer.abort()
    assert content(tmp_path / name) == before


@pytest.mark.parametrize("name", KINDS)
def test_overwrite_replaces_the_old_product_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_all(path)
    expected = content(path)
    if path.is_dir():
        (path / "stale").touch()
    else:
        path.write_bytes(b"old")
    write_all(path, overwrite=True)
    assert names(tmp_path) == {name}
    assert content(path).keys() == expected.keys()
    assert content(path) != {name: b"old"}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_dead_run_left_is_cleared(tmp_path: Path, name: str) -> None:
    partial = tmp_path / f"{name}.partial"
    if name.endswith(".zarr"):
        (partial / "junk").mkdir(parents=True)
    else:
        partial.write_bytes(b"junk")
    write_all(tmp_path / name)
    assert names(tmp_path) == {name}
    assert not (tmp_path / name / "junk").exists()


@pytest.mark.parametrize("name", KINDS)
def test_second_run_on_one_product_is_refused_while_the_first_lives(
    tmp_path: Path, name: str
) -> None:
    first = open_writer(tmp_path / name, make_spec(), overwrite=False)
    with pytest.raises(OutputError, match="written by another run"):
        open_writer(tmp_path / name, make_spec(), overwrite=True)
    first.abort()
    write_all(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_full_disk_names_file_and_reason(tmp_path: Path, name: str) -> None:
    spec = make_spec(grid=Grid(128, 256, has_poles=False))
    writer = open_writer(tmp_path / name, spec, overwrite=False)

    def write() -> None:
        writer.write(make_state(spec, 6))
        writer.mark_done(INIT, spec.lead_times[1])

    with largest_file(60_000), pytest.raises(OutputError) as caught:
        write()
    writer.abort()
    assert str(caught.value).startswith(f"cannot write {tmp_path / name}: ")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", KINDS)
def test_bytes_written_are_those_on_disk(tmp_path: Path, name: str) -> None:
    spec = make_spec()
    writer = open_writer(tmp_path / name, spec, overwrite=False)
    for lead in (0, 6):
        writer.write(make_state(spec, lead))
        writer.mark_done(INIT, np.timedelta64(lead, "h"))
    writer.finish()
    on_disk = sum(map(len, content(tmp_path / name).values()))
    # zarr writes its root metadata more than once
    assert on_disk <= writer.bytes_written <= on_disk * (2 if name.endswith(".zarr") else 1)


def test_state_of_another_grid_is_refused(tmp_path: Path) -> None:
    spec = make_spec()
    other = make_state(make_spec(grid=Grid(16, 16, has_poles=False)), 6)
    writer = open_writer(tmp_path / "f.zarr", spec, overwrite=False)
    with pytest.raises(ValueError, match="16x8 maps got 16x16"):
        writer.write(other)
    writer.abort()
