"""Folders in .tmp/ where entries are written: their locks, and how one takes an entry's place."""

import shutil
from contextlib import suppress
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.store.disk import NO_EXCHANGE, exchange
from wanpipe.store.entry import record_at


def is_free(lock: Path) -> bool:
    """Whether no living process holds a lock file."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def replace_folder(path: Path, target: Path) -> None:
    """Put a folder in the place of another, which then lies at `path`, or is gone."""
    try:
        exchange(path, target)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        # two renames; who is killed between them leaves the old one to `remove_scratch`
        target.rename(path.with_suffix(".old"))
        path.rename(target)


def remove_scratch(path: Path, root: Path) -> None:
    """Remove a draft and what belongs to it; the lock last, so that nothing of it is overlooked.

    An old entry that a killed process took away for a new one goes back where nothing came.
    """
    old = path.with_suffix(".old")
    if old.is_dir():
        with suppress(StoreError, OSError):
            record = record_at(old)
            if not (root / record.stage / record.key).is_dir():
                old.rename(root / record.stage / record.key)
    for folder in (path, old):
        shutil.rmtree(folder, ignore_errors=True)
    for suffix in (".since", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
