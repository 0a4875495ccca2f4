"""The summary of a cache: always what is in the folders, whatever becomes of its file."""

import random
import shutil
from pathlib import Path

import pytest

from tests.store.shelf import chain, fill, frames, recipe, text
from wanpipe.store import Store
from wanpipe.store.index import FILE, Index, Summary


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache")
    steps = chain(store, text(store), 3)
    frames(store, steps[-1])
    return store


def rebuilt(store: Store) -> dict[str, Summary]:
    (store.root / FILE).unlink(missing_ok=True)
    return Index(store.root).read()


def test_what_is_noted_at_publication_is_what_a_reading_finds(store: Store) -> None:
    noted = Index(store.root).read()
    assert len(noted) == 5
    assert noted == rebuilt(store)


def test_a_summary_tells_what_an_entry_is(store: Store) -> None:
    rows = store.index.read()
    last = max(rows.values(), key=lambda row: row.step or 0)
    assert (last.step, last.steps, last.seed, last.finished) == (2, 8, 1, False)
    assert last.what == "832x480, 81 frames, guidance 5.0"
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
    shutil.copytree(came.path, store.root / "decode" / came.key)
    after = store.index.read()
    assert set(after) == set(before) - {gone} | {f"decode/{came.key}"}


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
        assert Index(store.root).read() == expected


def test_lines_of_entries_that_are_gone_are_dropped_in_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wanpipe.store.index.SLACK", 3)
    for _ in range(20):
        Store(store.root, force=True).obtain(recipe(1), fill(1))
    assert len((store.root / FILE).read_bytes().splitlines()) == 25
    expected = store.index.read()
    assert len((store.root / FILE).read_bytes().splitlines()) == 6
    assert store.index.read() == expected


def test_an_entry_that_cannot_be_read_is_told_of(store: Store) -> None:
    path = next((store.root / "decode").iterdir())
    (path / "zarr.json").unlink()
    row = rebuilt(store)[f"decode/{path.name}"]
    assert not row.readable
    assert row.bytes > 0
    assert "cannot be read" in row.what


def test_a_cache_that_cannot_be_written_is_read_without_the_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rebuilt(store)
    (store.root / FILE).unlink()

    def refused(*arguments: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("wanpipe.store.index.os.open", refused)
    assert Index(store.root).read() == expected
