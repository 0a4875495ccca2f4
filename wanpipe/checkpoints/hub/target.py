"""Where the files of a repository go: into the Hub's cache, or a folder of the user.

huggingface_hub puts each file there, as any of its users expects it, and does not download a large
one that we have put in its place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from wanpipe.checkpoints.hub.cache import hub_cache
from wanpipe.checkpoints.hub.listing import HubFile, Listing
from wanpipe.runtime.disk import atomic_write, fsync

if TYPE_CHECKING:
    from huggingface_hub import HfApi

POLL_SECONDS = 0.2  # between two looks for the end of another download


@dataclass(frozen=True)
class Target:
    """The place of a listing's files; `local_dir` is None for the cache."""

    listing: Listing
    local_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder that has the files under their names."""
        if self.local_dir is not None:
            return self.local_dir
        return self.listing.repository.folder / "snapshots" / self.listing.commit

    def is_there(self, file: HubFile) -> bool:
        """Return whether a file is there, with its size."""
        return has_size(self.folder / file.name, file.size)

    def content(self, file: HubFile) -> Path:
        """Return the path of a file's content; in the cache it is the blob, without its name."""
        if self.local_dir is not None:
            return self.local_dir / file.name
        return self.blob(file)

    def blob(self, file: HubFile) -> Path:
        """Return the path of a file's content in the cache."""
        return self.listing.repository.folder / "blobs" / file.blob

    def part(self, file: HubFile) -> Path:
        """Return the path of the part of a file, as in older versions of huggingface_hub."""
        if self.local_dir is not None:
            folder = self.local_dir / ".cache" / "huggingface" / "download"
            return folder / f"{file.blob}.incomplete"
        return self.content(file).with_name(f"{file.blob}.incomplete")

    def has_content(self, file: HubFile) -> bool:
        """Return whether the content of a file is on this machine, with its size."""
        return any(has_size(path, file.size) for path in (self.content(file), self.blob(file)))

    def missing_bytes(self, file: HubFile) -> int:
        """Return how many bytes of a file are still to download."""
        if self.is_there(file) or self.has_content(file):
            return 0
        part = self.part(file)
        return max(0, file.size - (part.stat().st_size if part.is_file() else 0))

    def needed_bytes(self, file: HubFile) -> int:
        """Return the free space that a file needs: in a folder also to copy it from the cache."""
        missing = self.missing_bytes(file)
        copied = self.local_dir is not None and not missing and not self.is_there(file)
        return file.size if copied else missing

    @contextmanager
    def lock(self, file: HubFile, stopped: Event, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a file, which huggingface_hub's downloads take too. Calls `on_wait` if
        another process holds it. A disk without locks has none: the hash tells then.
        """
        from filelock import FileLock, Timeout

        path = self.part(file).with_suffix(".lock")
        if self.local_dir is None:
            repository = self.listing.repository.folder
            path = hub_cache() / ".locks" / repository.name / f"{file.blob}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            with suppress(NotImplementedError):
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    on_wait()
                while not lock.is_locked and not stopped.is_set():
                    with suppress(Timeout):
                        lock.acquire(timeout=POLL_SECONDS)
            yield
        finally:
            lock.release()

    def put(self, file: HubFile) -> None:
        """Move a whole part to its place."""
        part, content = self.part(file), self.content(file)
        content.parent.mkdir(parents=True, exist_ok=True)
        fsync(part)
        part.replace(content)

    def place(self, api: "HfApi", file: HubFile) -> None:
        """Have huggingface_hub put a file under its name; it downloads a small one."""
        listing = self.listing
        api.hf_hub_download(
            listing.repository.id,
            file.name,
            revision=listing.commit,
            cache_dir=hub_cache(),
            local_dir=self.local_dir,
        )

    def finish(self) -> None:
        """Let the revision stand for the commit, when all files are there."""
        ref = self.listing.repository.ref
        if self.local_dir is None and self.listing.repository.revision != self.listing.commit:
            atomic_write(ref, self.listing.commit.encode())


def has_size(path: Path, size: int) -> bool:
    """Return whether a path is a file of this size."""
    return path.is_file() and path.stat().st_size == size
