"""Work in another thread, behind the next computation."""

import threading
from functools import partial

import pytest

from wanpipe.runtime.worker import Worker


def test_jobs_are_done_in_order_in_one_other_thread() -> None:
    done: list[tuple[int, str]] = []

    def job(number: int) -> int:
        done.append((number, threading.current_thread().name))
        return 10 * number

    with Worker[int]("behind") as worker:
        for number in range(4):
            worker.submit(partial(job, number))
        assert list(worker.results(0)) == [0, 10, 20, 30]
    assert [number for number, _ in done] == [0, 1, 2, 3]
    assert len({name for _, name in done}) == 1
    assert done[0][1].startswith("behind")


def test_results_wait_until_few_enough_jobs_are_pending() -> None:
    gate = threading.Event()
    with Worker[str]("behind") as worker:
        worker.submit(lambda: "first")
        worker.submit(lambda: str(gate.wait(10)))
        assert list(worker.results(1)) == ["first"]
        assert list(worker.results(1)) == []
        gate.set()
        assert list(worker.results(0)) == ["True"]
        assert list(worker.results(0)) == []


def test_a_failure_is_raised_in_order_and_the_context_waits_for_the_rest() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Worker[None]("behind") as worker:
        worker.submit(fail)
        worker.submit(lambda: done.append("after"))
        for _ in worker.results(0):
            pytest.fail("there is no result")
    assert done == ["after"]
