"""Runs jobs in a background thread, in order, one at a time, while the main thread computes.

A signal ends every wait for it.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

from wanpipe.runtime import interrupt

POLL_SECONDS = 0.1  # between two checks for a signal
# Python's default is 5 ms. The computing thread wakes hundreds of times in a step to queue work for
# the device, and the device would idle while another thread keeps the interpreter that long.
SWITCH_SECONDS = 0.0002
Result = TypeVar("Result")


@contextmanager
def quick_switches() -> Iterator[None]:
    """Have threads hand over the interpreter quickly."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def wait_for(future: Future[Result]) -> Result:
    """Wait for a job, and return its result. Raises what the job raised, or Interrupted."""
    while not wait([future], POLL_SECONDS).done:
        interrupt.check()
    interrupt.check()  # first: the signal may be why a job failed
    return future.result()


class Worker(Generic[Result]):
    """A thread and its queue of jobs; leaving the context waits for them."""

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.jobs: deque[Future[Result]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    def submit(self, job: Callable[[], Result]) -> None:
        """Queue a job."""
        self.jobs.append(self.thread.submit(job))

    def results(self, keep: int) -> Iterator[Result]:
        """Wait until at most `keep` jobs are pending, and yield the results of the finished ones in
        order. Raises what a job raised, or Interrupted.
        """
        while self.jobs and (len(self.jobs) > keep or self.jobs[0].done()):
            result = wait_for(self.jobs[0])  # an interrupted wait leaves it in its place
            self.jobs.popleft()
            yield result

    def wait(self, keep: int) -> None:
        """Wait until at most `keep` jobs are pending. Raises like `results`."""
        for _ in self.results(keep):
            pass
