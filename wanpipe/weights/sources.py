"""Hashes the files that a conversion reads; knows their content, not their meaning."""

from collections.abc import Callable
from pathlib import Path

import xxhash

from wanpipe.errors import CheckpointError
from wanpipe.store.shortcuts import HashCache
from wanpipe.weights.detect import Checkpoint

Progress = Callable[[str, int, int], None]  # file or component, bytes done, bytes in all

CHUNK = 1 << 22  # bytes; larger ones fall out of the cache of a core


def source_hashes(
    checkpoint: Checkpoint, memo: HashCache | None, progress: Progress
) -> dict[str, str]:
    """Hash (xxh3_128) every file that a conversion reads, by its path inside the checkpoint.

    `memo` remembers files that have not changed. Raises CheckpointError for an unreadable one.
    """

    def hasher(path: Path) -> str:
        state, done, total = xxhash.xxh3_128(), 0, path.stat().st_size
        buffer = memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])
                done += count
                progress(path.name, done, total)
        return state.hexdigest()

    hashes = {}
    for inside, path in checkpoint.sources.items():
        try:
            hashes[inside] = hasher(path) if memo is None else memo.hash(path, hasher)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return hashes
