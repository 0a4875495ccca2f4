"""Makes what was written survive a power loss, and puts small files in place whole.

Knows bytes and folders, not what an entry is.
"""

import errno
import os
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


def put(path: Path, text: str) -> None:
    """Write a small file so that it is the old one or the new one at any moment, and durable."""
    make_folder(path.parent)
    draft = path.with_name(f".{uuid.uuid4().hex}")
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


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
