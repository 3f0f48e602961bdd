"""The cache of fetched files: whole, with a digest that is checked before each use.

`KEY.data` is a file, `KEY.json` says what it is; the latter is written last and makes the entry.
What is being fetched lies in a folder `KEY.partial-*` that nothing reads. A lock makes the ranks
of a host, and other runs on it, share one fetch.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jigsaw_forecast.errors import DataError

_log = logging.getLogger(__name__)

FOLDER_VARIABLE = "JIGSAW_CACHE"
SIZE_VARIABLE = "JIGSAW_CACHE_GB"
DEFAULT_SIZE_GB = 20.0
_KEPT_S = 86400.0  # what was used within a day is never thrown out: a run may be reading it
_LOCK_POLL_S = 0.1
_KEY_DIGITS = 24
_NO_LOCKS = (95, 37, 38)  # ENOTSUP, ENOLCK, ENOSYS, as some network mounts answer


def cache_folder() -> Path:
    """`$JIGSAW_CACHE`, or `jigsaw-forecast` in the user's cache folder (XDG)."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jigsaw-forecast"


def key_of(request: Mapping[str, Any], name: str) -> str:
    """The cache's name for what a request fetches: readable, then a digest of the request."""
    text = json.dumps(request, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]}"


@dataclass(frozen=True)
class CachedFile:
    """A whole file of the cache.

    Attributes:
        path: The file.
        sha256: Its digest, which was compared.
        origin: Where it came from.
    """

    path: Path
    sha256: str
    origin: str


class Cache:
    """A folder of fetched files."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
            DataError: It cannot be made or written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as fault:
            raise DataError(
                f"cannot write into the cache {folder}: {fault.strerror}; set {FOLDER_VARIABLE} "
                "to a folder that can be written"
            ) from None

    def find(self, key: str, *, is_locked: bool) -> CachedFile | None:
        """The file of a key, its digest compared.

        Args:
            key: Of the request.
            is_locked: Whether the caller holds the key's lock, without which another process may
                be publishing: only then is what does not agree with its digest removed.
        """
        path, note = self.folder / f"{key}.data", self.folder / f"{key}.json"
        try:
            said = json.loads(note.read_text())
            is_whole = path.stat().st_size == said["bytes"] and digest(path) == said["sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole and not is_locked:
            return None
        if not is_whole:
            _log.warning("the cache's %s is damaged: it is fetched again", path)
            note.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # another user's cache may be read only
            os.utime(note)
        return CachedFile(path, str(said["sha256"]), str(said["origin"]))

    @contextmanager
    def staged(self, key: str) -> Iterator[Path]:
        """A folder to fetch into; removed at the end with what was not published."""
        for left in self.folder.glob(f"{key}.partial-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{key}.partial-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self, key: str, staged: Path, request: Mapping[str, Any], origin: str
    ) -> CachedFile:
        """Moves a staged file into the cache.

        Args:
            key: Of the request.
            staged: The whole file, flushed.
            request: What was fetched, for the record.
            origin: Where from.
        """
        path, note = self.folder / f"{key}.data", self.folder / f"{key}.json"
        sha256 = digest(staged)
        said = {
            "sha256": sha256,
            "bytes": staged.stat().st_size,
            "origin": origin,
            "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": request,
        }
        note.unlink(missing_ok=True)  # never beside another file's bytes
        staged.replace(path)
        partial = staged.with_suffix(".note")
        partial.write_text(json.dumps(said, indent=1))
        partial.replace(note)
        self._prune(keep=key)
        return CachedFile(path, sha256, origin)

    @contextmanager
    def locked(self, key: str, timeout_s: float) -> Iterator[bool]:
        """Holds a key's lock; yields whether it had to be waited for.

        Raises:
            DataError: Another process held it longer than the timeout.
        """
        end_s = time.monotonic() + timeout_s
        has_waited = False
        with (self.folder / f"{key}.lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    has_waited = True
                except OSError as fault:
                    if fault.errno not in _NO_LOCKS:
                        raise
                    break
                if time.monotonic() > end_s:
                    raise DataError(
                        f"another process has been fetching {key} into {self.folder} for "
                        f"{timeout_s:.0f} s; wait for it or end it"
                    )
                time.sleep(_LOCK_POLL_S)
            yield has_waited

    def note_failure(self, key: str, message: str) -> None:
        """Leaves a failure for those that wait for the same fetch."""
        with contextlib.suppress(OSError):
            (self.folder / f"{key}.failed").write_text(message)

    def failure_since(self, key: str, time_s: float) -> str | None:
        """The failure of a fetch that ended after a time on the wall clock, if any."""
        path = self.folder / f"{key}.failed"
        try:
            return path.read_text() if path.stat().st_mtime >= time_s else None
        except OSError:
            return None

    def _prune(self, keep: str) -> None:
        """Throws out what was not used for longest where the cache is larger than allowed."""
        try:
            allowed = float(os.environ.get(SIZE_VARIABLE, DEFAULT_SIZE_GB)) * 1e9
        except ValueError:
            allowed = DEFAULT_SIZE_GB * 1e9
        for left in self.folder.glob("*.partial-*"):  # of runs that were killed
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _KEPT_S:
                    shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process may prune at the same time
            notes = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            sizes = {note: note.with_suffix(".data").stat().st_size for note in notes}
            total = sum(sizes.values())
            for note in notes:
                is_recent = time.time() - note.stat().st_mtime < _KEPT_S
                if total <= allowed or is_recent or note.stem == keep:
                    continue
                for suffix in (".json", ".data", ".lock", ".failed"):
                    note.with_suffix(suffix).unlink(missing_ok=True)
                total -= sizes[note]
                _log.info("threw %s out of the cache, which was larger than allowed", note.stem)


def digest(path: Path) -> str:
    """Sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
