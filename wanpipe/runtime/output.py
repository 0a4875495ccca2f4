"""Puts a file or a folder that a user asked for in place: whole, and where links lead to.

It is written in a scratch folder beside its place. A lock tells that its process lives; what a dead
process left is removed by the next one that writes there.
"""

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from wanpipe.errors import UsageError
from wanpipe.runtime.disk import NO_EXCHANGE, fsync, rename_exchange

SCRATCH = re.compile(r"\.wanpipe-[0-9a-f]{32}")
LOCK = "lock"
OLD = "old"  # holds what waits while another takes its place in two steps
YOUNG = 60.0  # seconds in which a process surely locks the folder that it made
TRIES = 100  # others that take the same place at the same time
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}


def follow_links(path: Path) -> Path:
    """Follow links, so that a link stays and its target is replaced. Raises UsageError for links
    that lead in a circle.
    """
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise UsageError(f"{path} is a link that leads to itself; remove it or give another name")
    return real


def check_writable(path: Path) -> None:
    """Try whether `path` can be written, and leave nothing. Raises OSError or UsageError."""
    with suppress(FileNotFoundError):
        path.lstat()  # raises for a name that is too long
    with scratch(follow_links(path).parent):
        pass


@contextmanager
def replace_output(path: Path, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Give a path of the same suffix to write a file or a folder to. It takes the place of `path`
    when the block ends, whole and durable, or goes after an error.

    `check` is called before that, and raises if what is there must stay.
    """
    target = follow_links(path)
    with scratch(target.parent) as folder:
        draft = folder / f"new{path.suffix}"
        yield draft
        for below, _, files in os.walk(draft, topdown=False):
            for name in [*files, "."]:
                fsync(Path(below, name))
        if draft.is_file():
            fsync(draft)
        check()
        _place(draft, target, folder / OLD)
        fsync(target.parent)


def _place(draft: Path, target: Path, old: Path) -> None:
    """Put the draft in place of what is there now. Others may do the same: the last one stays."""
    for attempt in range(TRIES):
        try:
            if draft.is_dir() and target.is_dir():
                _swap(draft, target, old / str(attempt))
            else:
                draft.replace(target)
            return
        except OSError as error:
            if error.errno not in TAKEN or attempt + 1 == TRIES:
                raise


def _swap(draft: Path, target: Path, old: Path) -> None:
    try:
        rename_exchange(draft, target)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        old.mkdir(parents=True)
        target.rename(old / target.name)
        draft.rename(target)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Give a folder in `parent` that exists as long as the block, under a lock that tells others
    that this process lives.
    """
    with suppress(OSError):  # a folder that can be written but not listed
        sweep(parent)
    with ExitStack() as held:
        folder = _locked(parent, held)
        held.callback(_remove, folder)
        yield folder


def _locked(parent: Path, held: ExitStack) -> Path:
    """Make a scratch folder and lock it, or without where the file system has no locks: then
    nobody takes it for one of a dead process.
    """
    from filelock import FileLock

    while True:
        folder = parent / f".wanpipe-{uuid.uuid4().hex}"
        folder.mkdir()
        lock, locked = FileLock(folder / LOCK, thread_local=False), True
        try:
            held.enter_context(lock)
        except (OSError, NotImplementedError):
            locked = False
        if (folder / LOCK).exists() or (folder.is_dir() and not locked):
            return folder  # else another process found it before it was locked


def sweep(parent: Path) -> None:
    """Remove the scratch folders of dead processes."""
    from filelock import FileLock, Timeout

    for path in parent.iterdir():
        if not SCRATCH.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if not (path / LOCK).exists() and time.time() - path.stat().st_mtime < YOUNG:
            continue
        with suppress(Timeout, OSError, NotImplementedError), FileLock(path / LOCK, timeout=0):
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a scratch folder, its lock last. What it holds of an old result goes back where
    nothing came.
    """
    for kept in sorted(folder.glob(f"{OLD}/*/*"), reverse=True):
        place = folder.parent / kept.name
        if not place.exists():
            try:
                kept.rename(place)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
