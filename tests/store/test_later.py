"""Work in another thread, behind the next computation."""

import threading
from functools import partial

import pytest

from wanpipe.store.later import Later


def test_jobs_are_done_in_order_in_one_other_thread() -> None:
    done: list[tuple[int, str]] = []

    def job(number: int) -> int:
        done.append((number, threading.current_thread().name))
        return 10 * number

    with Later[int]("behind") as later:
        for number in range(4):
            later.add(partial(job, number))
        assert list(later.results(0)) == [0, 10, 20, 30]
    assert [number for number, _ in done] == [0, 1, 2, 3]
    assert len({name for _, name in done}) == 1
    assert done[0][1].startswith("behind")


def test_results_leave_as_many_under_way_as_asked() -> None:
    gate = threading.Event()
    with Later[str]("behind") as later:
        later.add(lambda: "first")
        later.add(lambda: str(gate.wait(10)))
        assert list(later.results(1)) == ["first"]
        assert list(later.results(1)) == []
        gate.set()
        assert list(later.results(0)) == ["True"]
        assert list(later.results(0)) == []


def test_a_failure_is_raised_in_its_place_and_the_context_waits_for_the_rest() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), Later[None]("behind") as later:
        later.add(fail)
        later.add(lambda: done.append("after"))
        for _ in later.results(0):
            pytest.fail("there is no result")
    assert done == ["after"]
