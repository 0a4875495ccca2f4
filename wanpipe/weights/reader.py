"""The thread that reads weights, while the main thread computes or waits.

There is one for the process: what it reads into is used by one file at a time, and MLX has a stream
of its own for every thread.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Generic, TypeVar

from wanpipe.runtime.worker import wait_for

Ended = Callable[[], bool]  # returns True once nobody wants the result any more
Result = TypeVar("Result")


@cache
def thread() -> ThreadPoolExecutor:
    """Return the thread, which starts with its first job."""
    return ThreadPoolExecutor(1, thread_name_prefix="weights")


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[Result]):
    """A job of the thread: what it will return, and how to end it."""

    future: Future[Result]
    ended: Event

    def result(self) -> Result:
        """Wait for the result. Raises what the job raised; Interrupted ends the job."""
        try:
            return wait_for(self.future)
        except BaseException:
            self.ended.set()
            raise

    def give_up(self) -> None:
        """End the job, and wait for its end. An error of a job that nobody wants is nobody's."""
        self.ended.set()
        if not self.future.cancel():
            wait([self.future])


def begin(job: Callable[[Ended], Result]) -> Reading[Result]:
    """Queue a job, which must look often whether it has ended."""
    ended = Event()
    return Reading(future=thread().submit(job, ended.is_set), ended=ended)
