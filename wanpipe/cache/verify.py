"""Verifies every digest of every entry of a cache, in the memory of one chunk."""

from collections.abc import Iterator
from pathlib import Path

from wanpipe.errors import StoreError
from wanpipe.store.arrays import DamageError, damage_errors
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.keys import hash_file
from wanpipe.store.store import Store


def find_damaged(store: Store) -> Iterator[tuple[Path, DamageError]]:
    """Yield every damaged entry and every invalid record of a run, with the reason."""
    entry_ids = sorted(store.index.list_ids())
    with store.report.task("verify", len(entry_ids)) as task:
        for entry_id in entry_ids:
            path = store.root / entry_id
            try:
                verify_entry(read_entry(path))
            except DamageError as error:
                if path.is_dir():  # otherwise it was removed meanwhile
                    yield path, error
            task.advance()
    for key in store.runs.list_keys():
        try:
            store.runs.get(key)
        except StoreError as error:
            yield store.runs.path(key), DamageError(str(error))


def verify_entry(entry: Entry) -> None:
    """Verify an entry. Raises DamageError. Plain files are read too, without the hash cache."""
    entry.verify()
    for name, digest in entry.files.items():
        file = entry.path / name
        with damage_errors(file):
            valid = file.is_file() and hash_file(file) == digest
        if not valid:
            raise DamageError(f"{file} does not have the content hash it was published with")
