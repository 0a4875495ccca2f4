"""The summary of a cache: always what is in the folders, whatever becomes of its file."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.shelf import chain, fill, frames, recipe, text
from wanpipe.store import Store
from wanpipe.store.index import Summary
from wanpipe.store.shortcuts import FILE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache")
    steps = chain(store, text(store), 3)
    frames(store, steps[-1])
    return store


def rebuilt(store: Store) -> dict[str, Summary]:
    (store.root / FILE).unlink(missing_ok=True)
    return Store(store.root).index.read()


def test_what_is_noted_at_publication_is_what_a_reading_finds(store: Store) -> None:
    noted = Store(store.root).index.read()
    assert len(noted) == 5
    assert noted == rebuilt(store)


def test_a_summary_tells_what_an_entry_is(store: Store) -> None:
    rows = store.index.read()
    last = max(rows.values(), key=lambda row: row.step or 0)
    assert last.step == 2
    assert last.what == "guidance 5.0"
    files = [path for path in (store.root / last.place).rglob("*") if path.is_file()]
    assert last.bytes == sum(file.stat().st_size for file in files)
    words = next(row for row in rows.values() if row.stage == "encode-text")
    assert words.prompt == "a cat"
    assert last.inputs == {"text": words.key}


def test_an_entry_that_came_or_went_without_notice_is_noticed(store: Store, tmp_path: Path) -> None:
    before = store.index.read()
    gone = next(place for place in before if place.startswith("decode"))
    shutil.rmtree(store.root / gone)
    other = Store(tmp_path / "other")
    came = other.obtain(recipe(9), fill(9))
    shutil.copytree(came.path, store.root / "denoise" / came.key)
    after = store.index.read()
    assert set(after) == set(before) - {gone} | {f"denoise/{came.key}"}


def test_a_spoilt_file_changes_nothing_that_is_told(store: Store) -> None:
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


def test_summaries_of_entries_that_are_gone_are_dropped_in_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanpipe.store.index.SLACK", 3)
    for number in range(20):
        shutil.rmtree(Store(store.root).obtain(recipe(number), fill(number)).path)
    assert rows_in(store) == 25
    expected = store.index.read()
    assert rows_in(store) == 5
    assert store.index.read() == expected


def test_an_entry_that_cannot_be_read_is_told_of(store: Store) -> None:
    path = next((store.root / "denoise").iterdir())
    (path / "zarr.json").unlink()
    row = rebuilt(store)[f"denoise/{path.name}"]
    assert not row.readable
    assert row.bytes > 0
    assert "cannot be read" in row.what


def test_a_cache_that_cannot_be_written_is_read_without_the_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rebuilt(store)
    (store.root / FILE).unlink()

    def refused(*arguments: object, **options: object) -> object:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("wanpipe.store.shortcuts.sqlite3.connect", refused)
    assert Store(store.root).index.read() == expected
