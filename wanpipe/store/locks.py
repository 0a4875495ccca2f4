"""Lock files in .locks/. The kernel releases a lock when its process dies; some network drives have
none.
"""

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import fsync, make_directory, store_errors
from wanpipe.runtime.report import Report

FOLDER = ".locks"
POLL_SECONDS = 0.2  # between two checks for a signal while another process is waited for
TELL_SECONDS = 1.0  # of waiting, until the user is told
STALE_SECONDS = 86400.0  # since a draft was started, on a disk without locks
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
NOT_A_LOCK = {errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO}


class Locks:
    """The locks of the cache at `root`, one for each key."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root, self.report = root, report

    @cached_property
    def supported(self) -> bool:
        """Whether the file system supports locks. Reports if it does not."""
        folder = self.root / FOLDER
        make_directory(folder)
        supported = has_locks(folder)
        lost = [] if supported else ["locks, so two commands may compute the same entry"]
        if not fsync(folder):
            lost.append("flushing of folders, so a power loss may lose the latest entries")
        if lost:
            self.report.remark(
                f"the disk of the cache at {self.root} has no {', and no '.join(lost)}"
            )
        return supported

    @contextmanager
    def hold(self, stage: str, key: str, is_done: Callable[[], bool]) -> Iterator[None]:
        """Hold the lock of one key; report it if another process is waited for.

        The lock file is removed if `is_done` after the block.
        """
        from filelock import FileLock, Timeout

        with store_errors(self.root):
            if not self.supported:
                yield
                return
            # another thread may release it, when it has published
            lock = FileLock(self.root / FOLDER / f"{stage}-{key}", thread_local=False)
            with suppress(Timeout):
                lock.acquire(timeout=0)
        begun, told = time.monotonic(), False
        while not lock.is_locked:
            interrupt.check()
            if not told and time.monotonic() - begun >= TELL_SECONDS:
                told = True
                self.report.remark(f"another process is making {stage}/{key[:8]}; waiting for it")
            with suppress(Timeout):
                lock.acquire(timeout=POLL_SECONDS)
        try:
            yield
            # a process that waits for this file looks for the entry again, so a published entry
            # needs no lock file
            if is_done():
                Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()


def has_locks(folder: Path) -> bool:
    """Return whether the disk of a folder has locks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
    return True


def is_unlocked(lock: Path) -> bool:
    """Return whether no running process holds a lock file, or it does not exist."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.errno in NOT_A_LOCK
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        idle = time.time() - os.fstat(descriptor).st_mtime
        return error.errno in NO_LOCKS and idle > STALE_SECONDS
    finally:
        os.close(descriptor)
    return True
