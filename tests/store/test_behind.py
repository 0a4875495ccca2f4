"""Publishing behind the computation: the same entries, in order, and no failure unheard."""

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.store.shelf import Heard, arrays, fill, recipe
from wanpipe.errors import WanpipeError
from wanpipe.store import Draft, Publisher, Store
from wanpipe.store import store as module
from wanpipe.store.publish import WAITING

COUNT = 5


def test_what_is_published_behind_is_what_is_published_at_once(tmp_path: Path) -> None:
    late, now = Store(tmp_path / "late", Heard()), Store(tmp_path / "now", Heard())
    expected = [now.obtain(recipe(number), fill(number)) for number in range(COUNT)]
    with Publisher(late) as behind:
        for number in range(COUNT):
            behind.obtain(recipe(number), fill(number))
    made = [late.result(recipe(number)) for number in range(COUNT)]
    assert [arrays(entry) for entry in made] == [arrays(entry) for entry in expected]
    events = [[event["key"] for event in store.report.events] for store in (late, now)]
    assert events[0] == events[1] == [entry.key for entry in made]
    assert not list((tmp_path / "late" / ".tmp").iterdir())


def test_the_next_computation_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing = threading.Event()
    settle = module.settle

    def slow(path: Path) -> None:
        assert computing.wait(10), "the next step began only after this one was on the disk"
        settle(path)

    def second(draft: Draft) -> dict:
        computing.set()
        return fill(1)(draft)

    monkeypatch.setattr(module, "settle", slow)
    with Publisher(Store(tmp_path)) as behind:
        behind.obtain(recipe(0), fill(0))
        behind.obtain(recipe(1), second)
    assert Store(tmp_path).has("denoise", recipe(1).key)


def test_memory_holds_few_waiting_entries(tmp_path: Path) -> None:
    with Publisher(Store(tmp_path)) as behind:
        for number in range(COUNT):
            behind.obtain(recipe(number), fill(number))
            assert len(behind.later.jobs) <= WAITING < COUNT - 1
            there = range(number - WAITING + 1)
            assert all(Store(tmp_path).has("denoise", recipe(n).key) for n in there)


def test_a_busy_disk_holds_nothing_up_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, settle = threading.Event(), module.settle

    def busy(path: Path) -> None:
        assert free.wait(10), "the computation waited for the disk"
        settle(path)

    monkeypatch.setattr(module, "settle", busy)
    store = Store(tmp_path, Heard())
    with Publisher(store) as behind:
        for number in range(WAITING):
            behind.obtain(recipe(number), fill(number))
        assert store.report.count("computed") == 0
        free.set()
    assert store.report.count("computed") == WAITING


def test_what_is_on_the_disk_is_told_without_a_wait(tmp_path: Path) -> None:
    store = Store(tmp_path, Heard())
    with Publisher(store) as behind:
        behind.obtain(recipe(0), fill(0))
        behind.later.jobs[0].exception(10)  # waits for it
        behind.collect(keep=WAITING)
        assert store.report.count("computed") == 1


def broken(draft: Draft) -> dict:
    draft.write("latent", np.full((1, 1, 1, 2), np.nan, np.float32))
    return {}


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_failure_is_raised_and_nothing_behind_it_is_published(after: int, tmp_path: Path) -> None:
    store = Store(tmp_path)

    def compute() -> None:
        with Publisher(store) as behind:
            behind.obtain(recipe(0), fill(0))
            behind.obtain(recipe(1), broken)
            for number in range(after):
                behind.obtain(recipe(2 + number), fill(2 + number))

    with pytest.raises(WanpipeError, match="NaN"):
        compute()
    assert store.has("denoise", recipe(0).key)
    assert len(list((tmp_path / "denoise").iterdir())) == 1
    assert not list((tmp_path / ".tmp").iterdir())
    assert store.obtain(recipe(1), fill(1)), "the lock was not let go"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_keeps_every_finished_step(
    error: type[BaseException], tmp_path: Path
) -> None:
    def interrupted(draft: Draft) -> dict:
        raise error

    store = Store(tmp_path, Heard())

    def compute() -> None:
        with Publisher(store) as behind:
            for number in range(3):
                behind.obtain(recipe(number), fill(number))
            behind.obtain(recipe(3), interrupted)

    with pytest.raises(error):
        compute()
    assert [store.has("denoise", recipe(number).key) for number in range(4)] == [True] * 3 + [False]
    assert store.report.count("computed") == 3
    assert not list((tmp_path / ".tmp").iterdir())
