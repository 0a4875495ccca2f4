"""Makes what was written survive a power loss, and puts small files in place whole.

Knows bytes and folders, not what an entry is.
"""

import ctypes
import errno
import os
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


def put(path: Path, data: bytes) -> None:
    """Write a small file so that it is the old one or the new one at any moment, and durable."""
    make_folder(path.parent)
    draft = path.with_name(f".{uuid.uuid4().hex}")
    try:
        draft.write_bytes(data)
        sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


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
        if error.errno in READ_ONLY and str(error.filename or root).startswith(str(root)):
            raise StoreError(
                f"the cache at {root} cannot be written ({error.strerror}); use --cache"
            ) from error
        raise
