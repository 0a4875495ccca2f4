"""Folders in .tmp/ where entries are written: whether their processes live, and their end."""

import shutil
from contextlib import suppress
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.runtime.disk import aside_of
from wanpipe.store.entry import record_at


def is_free(lock: Path) -> bool:
    """Whether no living process holds a lock file."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def remove_scratch(path: Path, root: Path) -> None:
    """Remove a draft and what belongs to it; the lock last, so that nothing of it is overlooked.

    An old entry that a killed process took away for a new one goes back where nothing came.
    """
    old = aside_of(path)
    if old.is_dir():
        with suppress(StoreError, OSError):
            record = record_at(old)
            if not (root / record.stage / record.key).is_dir():
                old.rename(root / record.stage / record.key)
    for folder in (path, old):
        shutil.rmtree(folder, ignore_errors=True)
    for suffix in (".since", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
