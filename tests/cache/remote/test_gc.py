"""Garbage collection of a remote: what goes, and what stays with it."""

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.cache.remote.test_tier import names
from tests.store.builders import RecordingReport, chain, frames, text
from tests.workshop import inside
from wanpipe.cache.remote import gc
from wanpipe.cache.remote.bucket import PROBE, Bucket
from wanpipe.cache.remote.pull import list_runs
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import find_unsound, pull_with_inputs
from wanpipe.store import Entry, Store

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", RecordingReport())


@pytest.fixture
def steps(store: Store, url: str) -> list[Entry]:
    """Two steps of a run, in the cache and with their text in the remote."""
    with opened(url, "steps", store):
        return chain(store, text(store), 2)


def age(stages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the remote has of some stages be 40 days old."""
    listed = Bucket.objects

    def aged(self: Bucket, prefix: str) -> list[tuple[str, int, datetime]]:
        days = timedelta(days=40 if prefix in stages else 0)
        return [(path, size, when - days) for path, size, when in listed(self, prefix)]

    monkeypatch.setattr(Bucket, "objects", aged)


def test_everything_old_goes_with_the_records_of_its_runs(
    store: Store, steps: list[Entry], url: str
) -> None:
    bucket, later = Bucket(url), time.time() + 40 * DAY
    with opened(url, "steps", store):
        frames(store, steps[-1])
    [(run, _)] = list_runs(bucket)
    bucket.put("denoise/notes.txt", b"of someone else")
    would = gc.collect(bucket, store, 30 * DAY, dry_run=True, now=later)
    assert len(names(url)) == 4
    gone = gc.collect(bucket, store, 30 * DAY, now=later)
    assert gone == would
    assert gone[0] == f".runs/{run}.json"
    assert {path for path, _, _ in bucket.objects("")} == {PROBE, "denoise/notes.txt"}


def test_the_record_of_a_run_stays_while_one_of_its_steps_does(
    store: Store, steps: list[Entry], url: str, tmp_path: Path
) -> None:
    bucket, later = Bucket(url), time.time() + DAY
    bucket.delete([path for path, _, _ in bucket.objects(f"denoise/{steps[0].key}")])
    assert gc.collect(bucket, store, None, now=later) == []
    bucket.delete([path for path, _, _ in bucket.objects(f"denoise/{steps[1].key}")])
    [(run, _)] = list_runs(bucket)
    assert gc.collect(bucket, store, None, now=later) == [f".runs/{run}.json"]
    assert bucket.objects(".steps") == []


def test_the_record_of_a_run_that_is_being_pushed_stays(
    store: Store, steps: list[Entry], url: str
) -> None:
    bucket = Bucket(url)
    bucket.delete([path for path, _, _ in bucket.objects("denoise")])
    assert gc.collect(bucket, store, None) == []
    assert len(bucket.objects(".steps")) == 2
    assert len(list_runs(bucket)) == 1


def test_a_step_that_stays_keeps_the_text_of_its_run(
    store: Store, steps: list[Entry], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(url, "steps", store):
        unused = text(store, "a dog")
    age(("encode-text",), monkeypatch)
    assert gc.collect(Bucket(url), store, 30 * DAY) == [f"encode-text/{unused.key}"]
    other = Store(tmp_path / "other")
    with opened(url, "none", other):
        pull_with_inputs(other.remote, other, [steps[-1].key])  # type: ignore[arg-type]
    assert other.runs.latest(steps[-1].key) is not None


def test_an_unsound_record_of_a_run_is_reported_and_removes_nothing(
    store: Store, steps: list[Entry], url: str
) -> None:
    bucket = Bucket(url)
    [(run, _)] = list_runs(bucket)
    bucket.put(f".runs/{run}.json", b"{}", replace=True)
    assert [name for name, _ in find_unsound(bucket, store)] == [f".runs/{run}.json"]
    assert gc.collect(bucket, store, None, now=time.time() + DAY) == []


def test_the_command_removes_what_a_push_left_that_never_ended(
    store: Store, steps: list[Entry], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = f"denoise/{'0' * 32}"
    Bucket(url).put(f"{left}/x0/zarr.json", b"{}")
    monkeypatch.setenv("WANPIPE_REMOTE", url)
    assert inside("cache", "gc", "--remote", cwd=tmp_path).paths == []
    monkeypatch.setattr("wanpipe.cache.remote.gc.STALE_SECONDS", -1.0)
    assert inside("cache", "gc", "--remote", "--dry-run", cwd=tmp_path).paths == [left]
    assert len(Bucket(url).objects(left)) == 1
    assert inside("cache", "gc", "--remote", cwd=tmp_path).paths == [left]
    assert Bucket(url).objects(left) == []
    assert len(Bucket(url).objects("")) > 3
