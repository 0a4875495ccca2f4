"""Reads every entry of a cache, every digest, in the memory of one chunk."""

from collections.abc import Iterator
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.store.arrays import DamageError, reading
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.keys import hash_file
from wanpipe.store.store import Store


def damaged(store: Store) -> Iterator[tuple[Path, DamageError]]:
    """Give every entry and every record of a run that is not as it was written, with the reason."""
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
    for key in store.runs.names():
        try:
            store.runs.get(key)
        except StoreError as error:
            yield store.runs.path(key), DamageError(str(error))


def check(entry: Entry) -> None:
    """Read all of an entry. Raises DamageError. Plain files are read too, whatever is remembered of
    them.
    """
    entry.verify()
    for name, digest in entry.files.items():
        file = entry.path / name
        with reading(file):
            sound = hash_file(file) == digest
        if not sound:
            raise DamageError(f"{file} does not have the content hash it was published with")
