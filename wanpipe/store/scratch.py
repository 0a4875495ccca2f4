"""Scratch folders: drafts in .tmp/, whether their process is alive, and how they are removed.

A rename cannot cross disks, so a stage folder on another disk has a scratch folder of its own.
"""

import errno
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.runtime.disk import backup_path, fsync_tree, make_directory, remove_tree
from wanpipe.store.entry import read_record
from wanpipe.store.keys import is_key
from wanpipe.store.locks import Locks, is_unlocked
from wanpipe.store.schema import STAGES

FOLDER = ".tmp"
PULL = "pull-"  # and stage-key: a model that is being pulled from the remote


class Scratch:
    """The scratch folders of the cache at `root`."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self.root, self.locks = root, locks
        self.started = time.time()
        self.is_clean = False

    def folder(self, stage: str | None = None) -> Path:
        """Return the scratch folder on the disk of a stage."""
        home = self.root / (stage or "")
        with suppress(FileNotFoundError):
            if home.is_symlink() or home.stat().st_dev != self.root.stat().st_dev:
                return home / FOLDER
        return self.root / FOLDER

    @contextmanager
    def open(self, folder: Path) -> Iterator[Path]:
        """Yield a path in a scratch folder under a lock, which shows that this process is alive."""
        from filelock import FileLock

        make_directory(folder)
        self.remove_stale()
        path = folder / uuid.uuid4().hex
        lock, since = path.with_suffix(".lock"), path.with_suffix(".since")
        with ExitStack() as held:
            if self.locks.supported:
                held.enter_context(FileLock(lock, thread_local=False))
            else:
                lock.touch()
            held.callback(remove_scratch, path, self.root)
            since.write_text(f"{self.started}\n")  # gc keeps what was used since then
            yield path

    @contextmanager
    def beside(self, path: Path, target: Path) -> Iterator[Path]:
        """Yield a durable copy of the draft at `path` on the disk of `target`."""
        with self.open(target.parent / FOLDER) as copy:
            shutil.copytree(path, copy)
            fsync_tree(copy)
            yield copy

    def remove_stale(self) -> None:
        """Remove the drafts of dead processes, once per store."""
        if not self.is_clean:
            self.is_clean = True
            for path in stale_drafts(self.root):
                remove_scratch(path, self.root)


def own_folders(root: Path, name: str) -> list[Path]:
    """Return the folders of a name in the cache and its stages. A link is not followed: its
    target may not belong to wanpipe.
    """
    folders = [root / name, *(root / stage / name for stage in STAGES)]
    return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]


def stale_drafts(root: Path) -> list[Path]:
    """Return the drafts of dead processes: their lock is free, or was lost in a power loss."""
    drafts = {
        file.with_suffix("") for folder in own_folders(root, FOLDER) for file in folder.iterdir()
    }
    return sorted(
        path for path in drafts if is_key(path.name) and is_unlocked(path.with_suffix(".lock"))
    )


def remove_scratch(path: Path, root: Path) -> None:
    """Remove a draft and its files; the lock last, so that a killed removal can be finished later.

    A killed process may have moved an old entry away before the new one was installed: the old one
    is moved back.
    """
    old = backup_path(path)
    if old.is_dir() and not old.is_symlink():
        with suppress(StoreError, OSError):
            record = read_record(old)
            if not (root / record.stage / record.key).is_dir():
                old.rename(root / record.stage / record.key)
    for left in (path, old, path.with_suffix(".since"), path.with_suffix(".lock")):
        with suppress(OSError):  # of another user; the next process tries again
            remove_tree(left)


def remove_links(folder: Path) -> None:
    """Remove every link from a draft that is resumed: writing through it would change a file
    elsewhere.
    """
    if folder.is_symlink():
        folder.unlink()
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            path.unlink()


def crosses_disks(error: OSError) -> bool:
    """Return whether a rename failed because it crosses disks."""
    return error.errno == errno.EXDEV
