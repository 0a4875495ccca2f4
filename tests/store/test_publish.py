"""Publishing behind the computation: the same entries, in order, and no failure unheard."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.store.builders import RecordingReport, arrays, fill, recipe
from wanpipe.errors import WanpipeError
from wanpipe.runtime.worker import SWITCH_SECONDS
from wanpipe.store import Draft, Publisher, Store
from wanpipe.store import store as module
from wanpipe.store.publish import QUEUE_LIMIT

COUNT = 5


def test_the_publisher_publishes_the_same_entries_as_the_store(tmp_path: Path) -> None:
    late, now = (
        Store(tmp_path / "late", RecordingReport()),
        Store(tmp_path / "now", RecordingReport()),
    )
    expected = [now.get_or_create(recipe(number), fill(number)) for number in range(COUNT)]
    with Publisher(late) as behind:
        for number in range(COUNT):
            behind.get_or_create(recipe(number), fill(number))
    made = [late.result(recipe(number)) for number in range(COUNT)]
    assert [arrays(entry) for entry in made] == [arrays(entry) for entry in expected]
    events = [[event["key"] for event in store.report.events] for store in (late, now)]
    assert events[0] == events[1] == [entry.key for entry in made]
    assert not list((tmp_path / "late" / ".tmp").iterdir())


def test_the_next_computation_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing = threading.Event()
    settle = module.fsync_tree

    def slow(path: Path) -> None:
        assert computing.wait(10), "the next step began only after this one was on the disk"
        settle(path)

    def second(draft: Draft) -> dict:
        computing.set()
        return fill(1)(draft)

    monkeypatch.setattr(module, "fsync_tree", slow)
    with Publisher(Store(tmp_path)) as behind:
        behind.get_or_create(recipe(0), fill(0))
        behind.get_or_create(recipe(1), second)
    assert Store(tmp_path).has("denoise", recipe(1).key)


def test_the_queue_is_short(tmp_path: Path) -> None:
    with Publisher(Store(tmp_path)) as behind:
        for number in range(COUNT):
            behind.get_or_create(recipe(number), fill(number))
            assert len(behind.worker.jobs) <= QUEUE_LIMIT < COUNT - 1
            there = range(number - QUEUE_LIMIT + 1)
            assert all(Store(tmp_path).has("denoise", recipe(n).key) for n in there)


def test_a_busy_disk_does_not_block_the_next_computations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, settle = threading.Event(), module.fsync_tree

    def busy(path: Path) -> None:
        assert free.wait(10), "the computation waited for the disk"
        settle(path)

    monkeypatch.setattr(module, "fsync_tree", busy)
    store = Store(tmp_path, RecordingReport())
    with Publisher(store) as behind:
        for number in range(QUEUE_LIMIT):
            behind.get_or_create(recipe(number), fill(number))
        assert store.report.count("computed") == 0
        free.set()
    assert store.report.count("computed") == QUEUE_LIMIT


def test_published_entries_are_reported_without_waiting(tmp_path: Path) -> None:
    store = Store(tmp_path, RecordingReport())
    with Publisher(store) as behind:
        behind.get_or_create(recipe(0), fill(0))
        behind.worker.jobs[0].exception(10)  # waits for it
        behind.collect(keep=QUEUE_LIMIT)
        assert store.report.count("computed") == 1


def broken(draft: Draft) -> dict:
    draft.write("latent", np.full((1, 1, 1, 2), np.nan, np.float32))
    return {}


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_failure_is_raised_and_later_entries_are_dropped(after: int, tmp_path: Path) -> None:
    store = Store(tmp_path)

    def compute() -> None:
        with Publisher(store) as behind:
            behind.get_or_create(recipe(0), fill(0))
            behind.get_or_create(recipe(1), broken)
            for number in range(after):
                behind.get_or_create(recipe(2 + number), fill(2 + number))

    with pytest.raises(WanpipeError, match="NaN"):
        compute()
    assert store.has("denoise", recipe(0).key)
    assert len(list((tmp_path / "denoise").iterdir())) == 1
    assert not list((tmp_path / ".tmp").iterdir())
    assert store.get_or_create(recipe(1), fill(1)), "the lock was not let go"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_keeps_every_finished_step(
    error: type[BaseException], tmp_path: Path
) -> None:
    def interrupted(draft: Draft) -> dict:
        raise error

    store = Store(tmp_path, RecordingReport())

    def compute() -> None:
        with Publisher(store) as behind:
            for number in range(3):
                behind.get_or_create(recipe(number), fill(number))
            behind.get_or_create(recipe(3), interrupted)

    with pytest.raises(error):
        compute()
    assert [store.has("denoise", recipe(number).key) for number in range(4)] == [True] * 3 + [False]
    assert store.report.count("computed") == 3
    assert not list((tmp_path / ".tmp").iterdir())


def test_the_computing_thread_gets_the_interpreter_soon_while_entries_are_published(
    tmp_path: Path,
) -> None:
    before = sys.getswitchinterval()
    with Publisher(Store(tmp_path)):
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert sys.getswitchinterval() == pytest.approx(before)
