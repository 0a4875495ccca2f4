"""Hashes the files that a conversion reads; knows their content, not their meaning."""

from collections.abc import Callable
from functools import partial

from wanpipe.checkpoints.detect import Checkpoint
from wanpipe.errors import CheckpointError
from wanpipe.store.index_file import HashCache
from wanpipe.store.keys import hash_file

Progress = Callable[[str, int, int], None]  # file or component, bytes done, bytes in all


def source_hashes(
    checkpoint: Checkpoint, memo: HashCache | None, progress: Progress
) -> dict[str, str]:
    """Hash (xxh3_128) every file that a conversion reads, by its path inside the checkpoint.

    `memo` remembers files that have not changed. Raises CheckpointError for an unreadable one.
    """
    hashes = {}
    for inside, path in checkpoint.sources.items():
        hasher = partial(hash_file, progress=partial(progress, path.name))
        try:
            hashes[inside] = hasher(path) if memo is None else memo.hash(path, hasher)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return hashes
