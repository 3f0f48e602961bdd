"""The way of a product to its final name: refusals, the lock on the name, `NAME.partial`."""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jigsaw_forecast.errors import OutputError

PARTIAL_SUFFIX = ".partial"
# products that are folders: what they are, and files of which each holds one
_FOLDERS = {
    ".zarr": ("a zarr store", ("zarr.json", ".zgroup")),
    ".scores": ("a folder of scores", ("protocol.json",)),
}
NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)  # as some network mounts answer


def refusal(path: Path, *, overwrite: bool) -> str | None:
    """Why nothing may be written under a final name, or None; does not test the folder.

    Only what a run could have written is ever replaced: a file by a file, a zarr store by a
    zarr store, scores by scores.
    """
    if not os.path.lexists(path):
        return None
    kind, files = _FOLDERS.get(path.suffix, ("", ()))
    if kind and not any((path / name).exists() for name in files):
        return f"{path} exists and is not {kind}; choose another name"
    if not kind and path.is_dir():
        return f"{path} is a folder; choose another name"
    if not overwrite:
        return f"{path} exists; add --overwrite to replace it, or choose another name"
    return None


@contextmanager
def reported(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Turns a failure of the file system into an `OutputError` that names file and reason.

    Args:
        path: The final name of the product.
        also: Further exceptions with which a library reports a failure to write.
    """
    failures: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        num_free_bytes = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 1
        if not isinstance(error, OSError) and num_free_bytes == 0:  # HDF5 names no reason
            reason = f"{os.strerror(errno.ENOSPC)}; free some space or choose another --output"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += "; free some space or choose another --output"
        raise OutputError(f"cannot write {path}: {reason}") from error


class ProductLock:
    """Keeps other runs off a product until every rank that holds the lock has given it up.

    The rank that makes the product takes `.NAME.lock` alone, which fails while any rank of
    another run holds it, and then shares it with the ranks that join. The last to give it up
    removes the file. A file that a killed run left behind holds nobody up.
    """

    def __init__(self, product: Path, *, joins: bool) -> None:
        """Takes the lock, or joins the rank that has taken it.

        Raises:
            OutputError: A rank of another run holds the lock.
            OSError: The lock file cannot be made or opened.
        """
        self._product = product
        self._path = product.with_name(f".{product.name}.lock")
        self._joins = joins
        self._fd: int | None = None
        while self._fd is None:
            self._fd = self._open()

    @property
    def is_held(self) -> bool:
        """Whether this rank holds the lock."""
        return self._fd is not None

    def is_last(self) -> bool:
        """Whether no other rank holds the lock; only `release` may follow.

        Where the file system has no locks, the rank that made the product counts as the last.
        """
        if self._fd is None:
            return False
        try:
            is_locked = _flock(self._fd, fcntl.LOCK_EX)
        except OSError:
            return False
        # a later run may have made the file anew
        return self._is_current(self._fd) and (is_locked or not self._joins)

    def release(self) -> None:
        """Gives the lock up; harmless when repeated."""
        if self._fd is not None:
            if self.is_last():
                with suppress(OSError):
                    os.unlink(self._path)
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int | None:
        create = 0 if self._joins else os.O_CREAT
        fd = os.open(self._path, os.O_RDWR | create, 0o666)
        try:
            if self._joins or _flock(fd, fcntl.LOCK_EX):
                _flock(fd, fcntl.LOCK_SH)
            if self._is_current(fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise OutputError(
                f"{self._product} is being written by another run; wait for it to end or choose "
                "another --output"
            ) from None
        except OSError:
            os.close(fd)
            raise
        os.close(fd)  # the previous owner removed the file after it was opened here
        return None

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False


class Staging:
    """One rank's share in the way of a product from `NAME.partial` to `NAME`, under a lock."""

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool,
        joins: bool = False,
        lock: ProductLock | None = None,
        keeps_partial: bool = False,
    ) -> None:
        """Takes the lock and clears what an earlier, dead run left under `NAME.partial`.

        Args:
            path: Final name.
            overwrite: Whether a product that exists is replaced.
            joins: Whether another rank makes the product and this one only writes into it.
            lock: On the product, where it is held already.
            keeps_partial: Whether this run goes on with what the earlier one left.

        Raises:
            OutputError: The name is taken, another run writes it, or the folder is not writable.
        """
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self.overwrite = overwrite
        self.joins = joins
        self._old = old_path(path)
        with reported(path):
            self._lock = lock or ProductLock(path, joins=joins)
            try:
                if not joins:
                    self._clear(keeps_partial=keeps_partial)
            except BaseException:
                self.release()
                raise

    def publish(self) -> None:
        """Gives the finished product its name; an old one is replaced only now.

        Raises:
            OutputError: The name has been taken in the meantime, or renaming fails; the message
                says where the product is.
        """
        try:
            self._refuse()
            with reported(self.path):
                self._rename()
        except OutputError as error:
            raise OutputError(f"{error}; the finished product is {self.partial}") from error
        self.release()

    def discard(self) -> None:
        """Removes `NAME.partial`, as far as that is possible, and gives the lock up.

        What has the final name stays. Another rank may still be writing, so the last one to
        leave removes what has come since.
        """
        if not self._lock.is_held:
            return
        if not self.joins:
            remove_if_possible(self.partial)
        if self._lock.is_last():
            remove_if_possible(self.partial)
        self.release()

    def release(self) -> None:
        """Gives the lock up; harmless when repeated."""
        self._lock.release()

    def _clear(self, *, keeps_partial: bool) -> None:
        put_back(self.path)
        self._refuse()
        if not keeps_partial:
            remove(self.partial)

    def _refuse(self) -> None:
        reason = refusal(self.path, overwrite=self.overwrite)
        if reason is not None:
            raise OutputError(reason)

    def _rename(self) -> None:
        if self.partial.is_dir() and os.path.lexists(self.path):
            remove(self._old)
            os.rename(self.path, self._old)
            try:
                os.rename(self.partial, self.path)
            except OSError:
                os.rename(self._old, self.path)
                raise
            remove(self._old)
        else:
            os.replace(self.partial, self.path)


def old_path(path: Path) -> Path:
    """Where a folder that is being replaced lies between two renames."""
    return path.with_name(f".{path.name}.old")


def put_back(path: Path) -> None:
    """Gives an old product its name again where a run died between the two renames of publish."""
    old = old_path(path)
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)


def _flock(fd: int, kind: int) -> bool:
    """Locks without waiting; False where the file system has no locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def sync(path: Path) -> None:
    """Waits until a file, or all files of a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        if path.is_dir():
            # one call for all chunks: a store has thousands, and each alone waits for the journal
            _syncfs(file)
        else:
            os.fsync(file)
    finally:
        os.close(file)


def _syncfs(folder: int) -> None:
    """syncfs(2) of the file system of a folder; sync(2) where the C library does not have it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        os.sync()
    elif call(folder):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_if_possible(path: Path) -> None:
    """Removes a file or a folder where the file system lets it."""
    with suppress(OSError):
        remove(path)
