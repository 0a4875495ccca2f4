"""Work that another thread does behind the next computation: in order, one job at a time.

Waiting for it ends where a signal comes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Self, TypeVar

from wanpipe.runtime import interrupt

POLL = 0.1  # seconds between two looks for a signal
Result = TypeVar("Result")


class Later(Generic[Result]):
    """Jobs under way in a thread of this name; leaving the context waits for them."""

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.jobs: deque[Future[Result]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    def add(self, job: Callable[[], Result]) -> None:
        """Have a job done after those before."""
        self.jobs.append(self.thread.submit(job))

    def results(self, keep: int) -> Iterator[Result]:
        """Wait until no more than `keep` jobs are under way, and give what those that are done
        returned, in order. Raises what a job raised, or Interrupted.
        """
        while self.jobs and (len(self.jobs) > keep or self.jobs[0].done()):
            while not wait([self.jobs[0]], POLL).done:
                interrupt.check()
            interrupt.check()  # first: the signal may be why a job failed
            result = self.jobs[0].result()  # an interrupted wait leaves it in its place
            self.jobs.popleft()
            yield result

    def wait(self, keep: int) -> None:
        """Wait likewise, for jobs that return nothing."""
        for _ in self.results(keep):
            pass
