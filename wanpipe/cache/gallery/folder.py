"""The folder of a gallery: files are written whole or not at all, and only those that differ.

Only a new folder, an empty one or one that a gallery wrote is used. Files that a gallery does not
write are left alone.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import LITTER
from wanpipe.runtime.output import follow_links

MARK = ".wanpipe-gallery"  # the file that shows whose folder it is
MARK_TEXT = "`wanpipe gallery` wrote this folder, and replaces and removes files in it.\n"
RUNS, PICTURES, VIDEOS = "runs", "pictures", "videos"
# what a gallery writes, by folder
OURS = {
    ".": re.compile(r"index\.html|gallery-[0-9a-f]{8}\.(css|js)"),
    RUNS: re.compile(r"[0-9a-f]{32}\.html"),
    PICTURES: re.compile(r"[0-9a-f]{32}\.webp"),
    VIDEOS: re.compile(r"[0-9a-f]{32}\.(mp4|webm|gif)"),
}
DRAFT = re.compile(r"\.wanpipe-[0-9a-f]{8}\.\w+")
POLL_SECONDS = 0.2


@dataclass
class Folder:
    """A folder that is being written; `kept` has the names of the files that belong in it."""

    root: Path
    kept: set[str] = field(default_factory=set)
    written: int = 0

    def has(self, name: str) -> bool:
        """Return whether a file exists that never changes, and keep it if it does."""
        path = self.root / name
        if path.is_file() and path.stat().st_size:  # a lost disk can leave an empty one
            self.kept.add(name)
            return True
        return False

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Write a file: `save` writes it to the path that it is given."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".wanpipe-{uuid.uuid4().hex[:8]}{path.suffix}")
        try:
            save(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self.kept.add(name)
        self.written += 1

    def write_text(self, name: str, text: str) -> None:
        """Write a text file unless it says the same already."""
        data = text.encode("utf-8", "backslashreplace")
        with suppress(FileNotFoundError):
            if (self.root / name).read_bytes() == data:
                self.kept.add(name)
                return
        self.write(name, lambda draft: draft.write_bytes(data))

    def link(self, name: str, source: Path) -> None:
        """Write a copy of a file: a hard link, or where there is none a copy of its bytes."""
        import shutil

        def save(draft: Path) -> None:
            try:
                os.link(source, draft)
            except OSError:  # another disk, or a file of somebody else
                shutil.copyfile(source, draft)

        self.write(name, save)

    def remove_others(self) -> int:
        """Remove the files of earlier galleries that do not belong here any more; return how many
        they were.
        """
        removed = 0
        for place, pattern in OURS.items():
            folder = self.root / place
            for path in [*folder.iterdir()] if folder.is_dir() else []:
                name = path.relative_to(self.root).as_posix()
                stale = pattern.fullmatch(path.name) and name not in self.kept
                if stale or DRAFT.fullmatch(path.name):
                    path.unlink(missing_ok=True)
                    removed += bool(stale)
        return removed


def check_folder(path: Path) -> None:
    """Raise UsageError if a gallery may not be written to `path`."""
    root = follow_links(path)
    if root.exists() and not root.is_dir():
        raise UsageError(f"a gallery is a folder, but {path} is a file; give another name")
    if not root.exists():
        if not root.parent.is_dir():
            raise UsageError(
                f"no folder {path.parent} for the gallery {path.name}; create it first"
            )
        return
    if (root / MARK).is_file():
        return
    for found in sorted(root.iterdir()):
        if not LITTER.fullmatch(found.name):
            raise UsageError(
                f"folder {path} has files that no gallery wrote, such as {found.name}; give an "
                "empty or a new folder"
            )


@contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """Open a folder to write a gallery to; another process that writes to it is waited for.

    Raises UsageError for a folder that no gallery wrote, WanpipeError if it cannot be written.
    """
    from filelock import FileLock, Timeout

    check_folder(path)
    root = follow_links(path)
    try:
        root.mkdir(exist_ok=True)
        if not (root / MARK).is_file():
            (root / MARK).write_text(MARK_TEXT, "utf-8")
        lock, locked = FileLock(root / f"{MARK}.lock"), False
        while not locked:
            interrupt.check()
            try:
                lock.acquire(timeout=POLL_SECONDS)
                locked = True
            except Timeout:
                continue
            except NotImplementedError:
                break  # a disk without locks
        try:
            yield Folder(root)
        finally:
            lock.release()
    except OSError as error:
        place = error.filename or path
        raise WanpipeError(
            f"gallery {place} cannot be written: {error.strerror or error}"
        ) from error
