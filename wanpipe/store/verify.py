"""Reads every entry of a cache, every digest, in the memory of one chunk."""

from collections.abc import Iterator
from pathlib import Path

from wanpipe.store.entry import DamageError, Entry, read_entry
from wanpipe.store.keys import hash_file
from wanpipe.store.store import Store


def damaged(store: Store) -> Iterator[tuple[Path, DamageError]]:
    """Give every entry that is not as it was published, with the reason."""
    places = sorted(store.index.listing())
    with store.report.task("verify", len(places)) as task:
        for place in places:
            path = store.root / place
            try:
                check(read_entry(path))
            except DamageError as error:
                if path.is_dir():  # else it was removed while it was read
                    yield path, error
            task.advance()


def check(entry: Entry) -> None:
    """Read all of an entry. Raises DamageError. Plain files are read too, whatever is remembered of
    them.
    """
    entry.verify()
    for name, digest in entry.files.items():
        file = entry.path / name
        try:
            sound = hash_file(file) == digest
        except OSError as error:
            raise DamageError(f"{file} cannot be read ({error.strerror})") from error
        if not sound:
            raise DamageError(f"{file} does not have the content hash it was published with")
