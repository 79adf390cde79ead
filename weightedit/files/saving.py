"""Saving: what is written appears whole or not at all, and one process at a time writes it.

Here: the claim on a place, files and folders that replace the ones before them, and reading a folder that another
process may be replacing. Not here: what is in them. Beside a target `name` there may be, for a while,

    .name.lock                 held by the process that its text names
    .name.<process>.saving     what that process is writing
    .name.previous             the folder that is being replaced

A claim is the operating system's own lock on the open file and ends with its process, and with what that has forked. A
killed process therefore leaves nothing in the way: the next one to save takes the claim over, puts a folder that was
taken away back, and removes the rest. A lock file that is removed while others wait for it must not be claimed by one
of them: hence the comparison of the open file with the one of that name. All of it is a few lines, and not the package
`filelock`, because the name of the process cannot stand in that one's file.
"""

import errno
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from weightedit.errors import FileFormatError, WeightEditError

_logger = logging.getLogger(__name__)
_PATIENCE, _SILENT, _PAUSE = 600.0, 2.0, 0.02  # seconds
_ATTEMPTS = 100
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_FAR = 2**30  # where Windows locks a byte: it lets nobody read a locked one

Found = TypeVar("Found")


@contextmanager
def claimed(path: str | Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep every other process that claims `path` out while the block runs.

    Args:
        path: a file or folder, there or not; its parent exists.
        patience: seconds to wait for another process.
    Raises:
        WeightEditError: naming the process that holds it; OSError where no file can be written beside `path`.
    """
    lock, began, told = _beside(path, "lock"), time.monotonic(), False
    while (descriptor := _acquired(lock)) is None:
        waited = time.monotonic() - began
        if waited >= patience:
            raise WeightEditError(
                f"{path} is being written by {_holder(lock)}; expected no other process there: wait until that one has "
                "ended, or choose another place"
            )
        if waited > _SILENT and not told:
            _logger.warning("waiting for %s, which is writing %s", _holder(lock), path)
            told = True
        time.sleep(_PAUSE)
    try:
        os.ftruncate(descriptor, 0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode())
        yield
    finally:
        if os.name != "nt":
            lock.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name == "nt":  # there an open file cannot be removed, so that a waiting process keeps it
            with suppress(OSError):
                lock.unlink()


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A with block that writes to the path that it is given, beside `path`; at its end the file takes that place.

    Raises:
        WeightEditError: when another process writes there for ten minutes; OSError for a place that cannot be written.
    """
    path = Path(path).resolve()
    with claimed(path, patience=_PATIENCE):
        fresh = _fresh(path)
        try:
            yield fresh
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def users_file(path: str | Path) -> Iterator[Path]:
    """`new_file` at a place that a user named. Raises FileFormatError where it cannot be written."""
    try:
        with new_file(path) as fresh:
            yield fresh
    except OSError as error:
        raise FileFormatError(
            f"{path} could not be written ({error}); expected a place in an existing, writable folder with enough "
            "room: choose another, or create it."
        ) from error


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A with block that fills the new folder that it is given, beside `folder`; at its end that takes the place.

    What is in `folder` when the block begins is there until the new one is whole, and is deleted then.

    Raises:
        As `new_file`.
    """
    folder = Path(folder).resolve()
    with claimed(folder, patience=_PATIENCE):
        _put_back(folder)
        fresh, previous = _fresh(folder), _beside(folder, "previous")
        shutil.rmtree(previous, ignore_errors=True)
        try:
            fresh.mkdir()
            yield fresh
            if folder.exists():
                folder.rename(previous)
            fresh.rename(folder)
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            _put_back(folder)


def is_there(folder: str | Path) -> bool:
    """Whether there is such a folder; one that an interrupted `new_folder` took away is put back.

    Raises:
        FileFormatError: when it cannot be put back.
    """
    folder, previous = Path(folder), _beside(folder, "previous")
    if folder.is_dir() or not previous.is_dir():
        return folder.is_dir()
    try:
        with claimed(folder, patience=_PATIENCE):
            _put_back(folder)
    except OSError as error:
        raise FileFormatError(
            f"{folder} does not exist, but {previous} does: a save was interrupted before its last rename, and it "
            f"cannot be renamed here ({error.strerror}); rename it to {folder} yourself"
        ) from error
    return folder.is_dir()


def read_settled(folder: str | Path, read: Callable[[], Found]) -> Found:
    """What `read()` makes of the files in `folder`: of one save, never of two, while `new_folder` may replace it.

    Raises:
        FileFormatError: what `read` raises of a folder that stays as it is, or when it was replaced each of 100 times.
    """
    folder = Path(folder)
    for _ in range(_ATTEMPTS):
        before = _stamp(folder)
        try:
            found = read()
        except FileFormatError:
            if _stamp(folder) == before and (before is not None or not is_there(folder)):
                raise
        else:
            if _stamp(folder) == before:
                return found
        time.sleep(_PAUSE)
    raise FileFormatError(
        f"{folder} was replaced each of {_ATTEMPTS} times that it was read; expected it to stay for a moment: "
        "wait until the process that writes it has ended"
    )


def _acquired(lock: Path) -> int | None:
    """The open, locked file; None while it is another's."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    held = False
    try:
        _lock(descriptor)
        held = os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _TAKEN:
            _logger.warning("%s: this file system has no locks; keep other processes from writing there", lock)
            held = True
    finally:
        if not held:
            os.close(descriptor)
    return descriptor if held else None


def _lock(descriptor: int) -> None:
    """Lock an open file without waiting; OSError when another process has it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(lock: Path) -> str:
    for _ in range(5):  # one that has only just taken it is about to write
        with suppress(OSError, ValueError):
            if name := lock.read_text(encoding="utf-8").strip():
                return name
        time.sleep(_PAUSE)
    return "another process"


def _beside(path: str | Path, ending: str) -> Path:
    path = Path(path).resolve()
    return path.parent / f".{path.name}.{ending}"


def _fresh(path: Path) -> Path:
    """Where this process writes what will be `path`, which it holds; what others left of theirs is removed."""
    for left in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\d+\.saving", left.name):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return _beside(path, f"{os.getpid()}.saving")


def _put_back(folder: Path) -> None:
    """Undo a replacement that stopped half way."""
    previous = _beside(folder, "previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
        _logger.warning("%s: a save was interrupted; what was there before is back", folder)


def _stamp(folder: Path) -> tuple[int, ...] | None:
    """What tells a folder from another of the same name; None when there is none."""
    if not is_there(folder):
        return None
    with suppress(FileNotFoundError):
        state = folder.stat()
        return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns
    return None
