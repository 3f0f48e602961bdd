"""Disks that fill up, input bytes that flip: message, exit code and what remains."""

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import eccodes
import pytest

from jigsaw_forecast.cli.main import main
from tests.integration import inputs

FIELDS = inputs.CONFIG.prognostic_fields
Run = Callable[..., tuple[int, str]]
NUM_PAGES = 90  # a file takes one at least: the metadata's, and chunks of some of 12 lead times


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs.make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def run(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str]:
        given = ["run", "--init", "2026-06-24T00", "--lead-time", "72h", "--quiet"]
        given += ["--checkpoint", str(checkpoint)]
        return main([*given, *map(str, arguments)]), capfd.readouterr().err

    return call


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that takes no file larger than this: writing on fails with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """A file system of a few pages, where this user may make one."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and os.getuid() == 0
    if not mounted or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize(("name", "num_bytes"), [("f.grib2", 30_000), ("f.nc", 130_000)])
def test_a_run_on_a_disk_that_was_full_goes_on_when_it_is_not(
    run: Run, tmp_path: Path, name: str, num_bytes: int
) -> None:
    path = tmp_path / name
    with largest_file(num_bytes):
        code, message = run("--output", path)
    assert code == 3
    assert message.startswith(f"error: cannot write {path}: ")
    assert f"{name}.partial holds " in message
    assert "--resume goes on from there" in message
    assert not path.exists()
    assert run("--output", path, "--resume") == (0, "")
    assert run("--output", tmp_path / f"whole-{name}") == (0, "")
    assert content(path) == content(tmp_path / f"whole-{name}")


def test_a_zarr_store_on_a_full_disk_keeps_what_is_whole(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, NUM_PAGES * 4096):
        code, message = run("--output", disk / "f.zarr")
        assert code == 3, message
        assert message.startswith(f"error: cannot write {disk / 'f.zarr'}: No space left on device")
        assert "free some space" in message
        assert not (disk / "f.zarr").exists()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert run("--output", disk / "f.zarr", "--resume") == (0, "")
        assert run("--output", tmp_path / "f.zarr") == (0, "")
        assert content(disk / "f.zarr") == content(tmp_path / "f.zarr")


def test_a_flipped_bit_of_the_input_is_refused_by_field(run: Run, tmp_path: Path) -> None:
    source = inputs.write_grib(tmp_path / "in.grib2", inputs.maps(FIELDS, 12, 24))
    handle = eccodes.codes_new_from_message(source.read_bytes())
    reference = eccodes.codes_get(handle, "referenceValue")
    eccodes.codes_release(handle)
    content = bytearray(source.read_bytes())
    place = content.index(struct.pack(">f", reference))  # of the first field, z500
    content[place] ^= 0x08  # in its exponent
    source.write_bytes(content)
    code, message = run("--input", source, "--output", tmp_path / "f.zarr")
    assert code == 2
    assert "z500 (message 1)" in message
    assert "implausible" in message
    assert {path.name for path in tmp_path.iterdir()} == {"in.grib2"}
