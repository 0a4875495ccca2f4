"""Makes what was written survive a power loss, and puts small files in place whole.

Knows bytes and folders, not what an entry is.
"""

import ctypes
import errno
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanpipe.errors import StoreError

try:
    from fcntl import F_FULLFSYNC, fcntl  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # only macOS has it
    F_FULLFSYNC = None

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2 on Linux; renamex_np on macOS has 2 for a swap too


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def barrier(path: Path) -> None:
    """Flush a folder and, on macOS, the disk's own cache, which fsync leaves alone there."""
    sync(path)
    if F_FULLFSYNC is not None:
        descriptor = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a network volume has no such cache
            fcntl(descriptor, F_FULLFSYNC)
        os.close(descriptor)


def settle(path: Path) -> None:
    """Make a tree durable: files read-only and synced, then its folders, innermost first."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(folder, name)
            file.chmod(0o444)
            sync(file)
        sync(Path(folder))
    barrier(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


@contextmanager
def replacing(path: Path, draft: Path | None = None) -> Iterator[Path]:
    """Give a path beside `path`, of the same suffix, to write a file or a folder to. It takes the
    place of `path` when the block ends, whole and durable, or goes after an error.
    """
    draft = draft or path.with_name(f".wanpipe-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield draft
        for folder, _, files in os.walk(draft, topdown=False):
            for name in [*files, "."]:
                sync(Path(folder, name))
        if path.is_dir():
            replace_folder(draft, path)
        else:
            sync(draft)
            draft.replace(path)
        sync(path.parent)
    finally:
        for left in (draft, aside_of(draft)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(True)


def put(path: Path, data: bytes) -> None:
    """Write a small file so that it is the old one or the new one at any moment, and durable."""
    make_folder(path.parent)
    with replacing(path) as draft:
        draft.write_bytes(data)


def aside_of(path: Path) -> Path:
    """Where a folder waits whose place another takes in two steps."""
    return path.with_name(f"{path.name}.old")


def replace_folder(path: Path, target: Path) -> None:
    """Put a folder in the place of another, which then lies at `path` or aside of it."""
    try:
        exchange(path, target)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        target.rename(aside_of(path))
        path.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Swap two paths in one step, so that neither is missing at any moment. Raises OSError with an
    error of NO_EXCHANGE where the system or the file system cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, EXCHANGE)
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other))
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


@contextmanager
def translated(root: Path) -> Iterator[None]:
    """Turn what the file system refuses the cache at `root` into a StoreError with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StoreError(
                f"no space left for the cache at {root}; free some or use --cache"
            ) from error
        # absolute, since a lock has the absolute path of a cache that was given as a relative one
        place = Path(error.filename or root).absolute()
        if error.errno in READ_ONLY and place.is_relative_to(root.absolute()):
            raise StoreError(
                f"the cache at {root} cannot be written ({error.strerror}); use --cache"
            ) from error
        raise
