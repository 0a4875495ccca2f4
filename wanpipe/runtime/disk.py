"""Durable and atomic writes: files survive a power loss, and are replaced in one step."""

import ctypes
import errno
import os
import re
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
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
# files that file managers add to every folder
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*", re.IGNORECASE)
SPACE_MARGIN = 1 << 20  # bytes for small documents and the file system's own
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2 on Linux; renamex_np on macOS has 2 for a swap too


def fsync(path: Path) -> bool:
    """Flush a file or a directory to the disk; return False if it is a directory and its file
    system can flush files only, as some network drives.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC or not path.is_dir():
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a directory with its contents, if it exists. Follows no link."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def full_fsync(path: Path) -> None:
    """Flush a directory and, on macOS, the disk's own cache, which fsync does not flush there."""
    fsync(path)
    if F_FULLFSYNC is not None:
        descriptor = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a network volume has no such cache
            fcntl(descriptor, F_FULLFSYNC)
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make a tree durable: files read-only and flushed, then its directories, innermost first."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(folder, name)
            file.chmod(0o444)
            fsync(file)
        fsync(Path(folder))
    full_fsync(path)


def make_directory(path: Path) -> None:
    """Make a directory and its parents durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    fsync(path.parent)


@contextmanager
def atomic_replace(path: Path, draft: Path | None = None) -> Iterator[Path]:
    """Yield a path beside `path`, with the same suffix, to write a file to. At the end of the block
    it is made durable and replaces `path`; after an error it is removed.
    """
    draft = draft or path.with_name(f".wanpipe-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield draft
        fsync(draft)
        draft.replace(path)
        fsync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Write a small file durably; readers see the old one or the new one, never a part."""
    make_directory(path.parent)
    with atomic_replace(path) as draft:
        draft.write_bytes(data)


def backup_path(path: Path) -> Path:
    """Return where an old directory is kept while a new one replaces it in two steps."""
    return path.with_name(f"{path.name}.old")


def replace_directory(path: Path, target: Path, backup: Path) -> None:
    """Replace directory `target` by `path`; the old one is then at `path` or at `backup`."""
    try:
        rename_exchange(path, target)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        backup.parent.mkdir(parents=True, exist_ok=True)
        target.rename(backup)
        path.rename(target)


def rename_exchange(one: Path, other: Path) -> None:
    """Swap two paths atomically. Raises OSError with an errno of NO_EXCHANGE if the system or the
    file system cannot.
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
def store_errors(root: Path) -> Iterator[None]:
    """Turn errors of writing to the cache at `root` into a StoreError with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StoreError(
                f"no space left for the cache at {root}; free some or use --cache"
            ) from error
        if error.errno in READ_ONLY and is_of(root, error.filename):
            raise StoreError(
                f"the cache at {root} cannot be written ({error.strerror}); use --cache"
            ) from error
        raise


def is_of(root: Path, filename: object) -> bool:
    """Return whether a file that was refused belongs to the cache at `root`, or is a directory that
    the cache was to be made in.
    """
    # absolute, since a lock has the absolute path of a cache that was given as a relative one
    path, root = Path(str(filename or root)).absolute(), root.absolute()
    return path.is_relative_to(root) or root.is_relative_to(path)


def check_free_space(target: Path, needed: int) -> None:
    """Raise StoreError unless the file system of `target` has room for `needed` bytes."""
    there = next(path for path in (target, *target.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed + SPACE_MARGIN > free:
        raise StoreError(
            f"{target} needs {needed + SPACE_MARGIN} bytes ({needed / 1e9:.1f} GB), its disk has "
            f"{free} free; make room or choose another directory"
        )
