"""Replaces an output file or folder atomically, and follows links to it.

The output is written to a locked scratch folder beside its target. If a process dies, the next
process that writes to the same parent removes its scratch folder.
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
from wanpipe.runtime.disk import fsync, replace_directory

SCRATCH = re.compile(r"\.wanpipe-[0-9a-f]{32}")
LOCK = "lock"
BACKUP = "old"  # holds the previous output if it cannot be exchanged atomically
GRACE_SECONDS = 60.0  # a younger scratch folder may not be locked yet
MAX_ATTEMPTS = 100  # to replace an output that other processes replace at the same time
CONFLICT_ERRORS = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}


def follow_links(path: Path) -> Path:
    """Resolve links, so that the link stays and its target is replaced. Raises UsageError for a
    circular link.
    """
    real = Path(os.path.realpath(path))
    if real.is_symlink():
        raise UsageError(f"{path} is a link that leads to itself; remove it or give another name")
    return real


def check_writable(path: Path) -> None:
    """Check that `path` can be written, without leaving files. Raises OSError or UsageError."""
    with suppress(FileNotFoundError):
        path.lstat()  # raises for a name that is too long
    with scratch(follow_links(path).parent):
        pass


@contextmanager
def replace_output(path: Path, check: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Yield a path with the same suffix to write a file or a folder to. It replaces `path`
    atomically and durably when the block ends, and is removed after an error.

    `check` is called before the replacement. It raises if the existing output must stay.
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
        _place(draft, target, folder / BACKUP)
        fsync(target.parent)


def _place(draft: Path, target: Path, old: Path) -> None:
    """Replace the target by the draft. If several processes do this, the last one wins."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            if draft.is_dir() and target.is_dir():
                replace_directory(draft, target, old / str(attempt) / target.name)
            else:
                draft.replace(target)
            return
        except OSError as error:
            if error.errno not in CONFLICT_ERRORS or attempt + 1 == MAX_ATTEMPTS:
                raise


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield a locked folder in `parent`, which is removed when the block ends."""
    with suppress(OSError):  # a folder that can be written but not listed
        sweep(parent)
    with ExitStack() as held:
        folder = _locked(parent, held)
        held.callback(_remove, folder)
        yield folder


def _locked(parent: Path, held: ExitStack) -> Path:
    """Make a scratch folder and lock it. If the file system has no locks, the folder stays
    unlocked, and no other process removes it.
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
            return folder  # otherwise another process removed it before it was locked


def sweep(parent: Path) -> None:
    """Remove the scratch folders of dead processes."""
    from filelock import FileLock, Timeout

    for path in parent.iterdir():
        if not SCRATCH.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if not (path / LOCK).exists() and time.time() - path.stat().st_mtime < GRACE_SECONDS:
            continue
        with suppress(Timeout, OSError, NotImplementedError), FileLock(path / LOCK, timeout=0):
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a scratch folder, its lock last. First restore a previous output that was moved into
    it, unless a new one exists.
    """
    for kept in sorted(folder.glob(f"{BACKUP}/*/*"), reverse=True):
        place = folder.parent / kept.name
        if not place.exists():
            try:
                kept.rename(place)
            except OSError as error:
                if error.errno not in CONFLICT_ERRORS:
                    raise
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
