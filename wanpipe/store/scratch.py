"""Drafts in .tmp/: whether their process is alive, and how they are removed."""

import shutil
from contextlib import suppress
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.runtime.disk import backup_path
from wanpipe.store.entry import read_record


def is_unlocked(lock: Path) -> bool:
    """Return whether no process holds a lock file."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def remove_scratch(path: Path, root: Path) -> None:
    """Remove a draft and its files; the lock last, so that a kill in between leaves nothing unseen.

    A killed process may have moved an old entry away before the new one was installed: the old one
    is moved back.
    """
    old = backup_path(path)
    if old.is_dir():
        with suppress(StoreError, OSError):
            record = read_record(old)
            if not (root / record.stage / record.key).is_dir():
                old.rename(root / record.stage / record.key)
    for folder in (path, old):
        shutil.rmtree(folder, ignore_errors=True)
    for suffix in (".since", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
