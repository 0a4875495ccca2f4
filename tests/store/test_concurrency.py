"""Many processes on one cache: each key is computed once, all get the same, and a killed one leaves
no lock.
"""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.builders import RecordingReport, arrays, fill, recipe
from wanpipe.store import Draft, Entry, Publisher, Store
from wanpipe.store.entry import read_entry

pytestmark = pytest.mark.slow

PROCESSES = 8
# forks from a clean process that has loaded what the work needs: quick to start, and no threads
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.store.test_concurrency", "zarr.codecs"])


class Unlocked(Store):
    """A store on a machine that shares no locks with the others."""

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        yield


def work(kind: type[Store], root: Path, numbers: list[int], results, barrier) -> None:
    store = kind(root, RecordingReport())

    def slowly(number: int):
        def write(draft: Draft) -> dict:
            time.sleep(0.02)
            return fill(number)(draft)

        return write

    barrier.wait()
    found = {
        number: arrays(store.get_or_create(recipe(number), slowly(number))) for number in numbers
    }
    results.put((found, store.report.count("computed")))


def together(kind: type[Store], root: Path, orders: list[list[int]]) -> tuple[list[dict], int]:
    """Run one process per order of keys, at the same time; what each got, and computations."""
    results, barrier = server.Queue(), server.Barrier(len(orders))
    processes = [
        server.Process(target=work, args=(kind, root, order, results, barrier)) for order in orders
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [found for found, _ in answers], sum(count for _, count in answers)


def expected(root: Path, count: int) -> dict[int, dict[str, bytes]]:
    alone = Store(root)
    return {
        number: arrays(alone.get_or_create(recipe(number), fill(number))) for number in range(count)
    }


def check_clean(root: Path) -> None:
    assert not list((root / ".tmp").iterdir())
    assert not list((root / ".locks").iterdir())
    assert not (root / ".damaged").exists()


def test_eight_processes_compute_each_of_their_keys_once(tmp_path: Path) -> None:
    same = list(range(4))
    orders = [[*same[turn % 4 :], *same[: turn % 4], 10 + turn] for turn in range(PROCESSES)]
    found, computed = together(Store, tmp_path / "cache", orders)
    assert computed == 4 + PROCESSES
    right = expected(tmp_path / "alone", 10 + PROCESSES)
    assert all(answer[number] == right[number] for answer in found for number in answer)
    check_clean(tmp_path / "cache")


def test_two_machines_without_shared_locks_compute_at_most_twice(tmp_path: Path) -> None:
    found, computed = together(Unlocked, tmp_path / "cache", [list(range(12))] * 2)
    assert 12 <= computed <= 24
    right = expected(tmp_path / "alone", 12)
    assert found == [right, right]
    assert not list((tmp_path / "cache" / ".tmp").iterdir())


def hold(root: Path, started) -> None:
    def forever(draft: Draft) -> dict:
        fill()(draft)
        started.set()
        time.sleep(600)
        return {}

    Store(root).get_or_create(recipe(), forever)


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    started = server.Event()
    process = server.Process(target=hold, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = Store(tmp_path, RecordingReport())
    assert not store.has("denoise", recipe().key)
    assert store.get_or_create(recipe(), fill())
    assert not store.report.remarks, "waited for a dead process"
    check_clean(tmp_path)


def race(root: Path, number: int, barrier) -> None:
    store = Store(root)
    barrier.wait()
    for turn in range(10):
        (store if turn % 2 else Store(root, force=True)).get_or_create(recipe(), fill())


def test_readers_never_see_half_an_entry_during_force(tmp_path: Path) -> None:
    Store(tmp_path).get_or_create(recipe(), fill())
    barrier = server.Barrier(4)
    processes = [server.Process(target=race, args=(tmp_path, n, barrier)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not (tmp_path / ".damaged").exists()
    assert Store(tmp_path).find("denoise", recipe().key)


@pytest.mark.parametrize("kills", [20])
def test_kills_at_any_moment_lose_nothing(kills: int, tmp_path: Path) -> None:
    """See tests/test_resume.py for kills of the real stages."""
    seen: Counter[str] = Counter()
    for turn in range(kills):
        process = server.Process(target=publish_many, args=(tmp_path, 200))
        process.start()
        time.sleep(0.01 + 0.013 * turn % 0.1)
        process.kill()
        process.join()
        there = {path.name for path in (tmp_path / "denoise").glob("*")}
        assert all(sound(tmp_path / "denoise" / key) for key in there)
        assert set(seen) <= there
        seen.update(there)
    Store(tmp_path).get_or_create(recipe(999), fill())
    assert not list((tmp_path / ".tmp").iterdir())


def publish_many(root: Path, count: int) -> None:
    with Publisher(Store(root)) as behind:
        for number in range(count):
            behind.get_or_create(recipe(number), fill(number))


def sound(path: Path) -> Entry:
    entry = read_entry(path)
    entry.verify()
    return entry
