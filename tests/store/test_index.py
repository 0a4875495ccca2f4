"""The summary of a cache: always what is in the folders, whatever becomes of its file."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.builders import chain, fill, frames, recipe, text
from wanpipe.store import Store
from wanpipe.store.index import Summary
from wanpipe.store.index_file import ENTRIES, FILE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache")
    steps = chain(store, text(store), 3)
    frames(store, steps[-1])
    return store


def rebuilt(store: Store) -> dict[str, Summary]:
    (store.root / FILE).unlink(missing_ok=True)
    return Store(store.root).index.read()


def test_stored_summaries_equal_those_read_from_entries(store: Store) -> None:
    noted = Store(store.root).index.read()
    assert len(noted) == 5
    assert noted == rebuilt(store)


def test_a_summary_describes_its_entry(store: Store) -> None:
    rows = store.index.read()
    last = max(rows.values(), key=lambda row: row.step or 0)
    assert last.step == 2
    assert last.what == "guidance 5.0"
    files = [path for path in (store.root / last.id).rglob("*") if path.is_file()]
    assert last.bytes == sum(file.stat().st_size for file in files)
    words = next(row for row in rows.values() if row.stage == "encode-text")
    assert words.prompt == "a cat"
    assert last.inputs == {"text": words.key}


def test_entries_added_or_removed_by_hand_are_noticed(store: Store, tmp_path: Path) -> None:
    before = store.index.read()
    gone = next(place for place in before if place.startswith("decode"))
    shutil.rmtree(store.root / gone)
    other = Store(tmp_path / "other")
    came = other.get_or_create(recipe(9), fill(9))
    shutil.copytree(came.path, store.root / "denoise" / came.key)
    after = store.index.read()
    assert set(after) == set(before) - {gone} | {f"denoise/{came.key}"}


def test_a_damaged_index_file_changes_no_result(store: Store) -> None:
    expected = store.index.read()
    file = store.root / FILE
    data = file.read_bytes()
    generator = random.Random(3)
    for _ in range(100):
        spoilt = bytearray(data)
        for _ in range(generator.randrange(1, 4)):
            spoilt[generator.randrange(len(spoilt))] = generator.randrange(256)
        file.write_bytes(spoilt[: generator.randrange(len(spoilt) + 1)])
        assert Store(store.root).index.read() == expected


def rows_in(store: Store) -> int:
    with closing(sqlite3.connect(store.root / FILE)) as database:
        return database.execute("SELECT count(*) FROM notes").fetchone()[0]


DEEP = b"[" * 20_000 + b"]" * 20_000


@pytest.mark.parametrize("value", [b"%(row)s," + DEEP + b"]", b"\xff", b"", b"[1]", b"NaN"])
def test_a_summary_that_cannot_be_decoded_costs_one_rebuild(store: Store, value: bytes) -> None:
    expected = rebuilt(store)
    entry_id, row = next(iter(store.index.index_file.all(ENTRIES).items()))
    store.index.index_file.put(ENTRIES, {entry_id: value.replace(b"%(row)s", row[:-1])})
    assert Store(store.root).index.read() == expected


def test_summaries_of_removed_entries_are_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanpipe.store.index.MAX_STALE_ROWS", 3)
    for number in range(20):
        shutil.rmtree(Store(store.root).get_or_create(recipe(number), fill(number)).path)
    assert rows_in(store) == 25
    expected = store.index.read()
    assert rows_in(store) == 5
    assert store.index.read() == expected


def test_an_unreadable_entry_is_listed_as_such(store: Store) -> None:
    path = next((store.root / "denoise").iterdir())
    (path / "zarr.json").unlink()
    row = rebuilt(store)[f"denoise/{path.name}"]
    assert not row.readable
    assert row.bytes > 0
    assert "cannot be read" in row.what


def test_a_read_only_cache_is_read_without_an_index_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rebuilt(store)
    (store.root / FILE).unlink()

    def refused(*arguments: object, **options: object) -> object:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("wanpipe.store.index_file.sqlite3.connect", refused)
    assert Store(store.root).index.read() == expected
