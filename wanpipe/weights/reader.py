"""The thread that reads weights, while the main thread computes or waits.

There is one for the process: what it reads into is used by one file at a time, and MLX has a stream
of its own for every thread.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

from wanpipe.runtime import interrupt
from wanpipe.runtime.worker import POLL_SECONDS

if TYPE_CHECKING:
    import mlx.core as mx

Ended = Callable[[], bool]  # returns True once nobody wants the rest any more
Job = Callable[[Ended], "Iterable[tuple[str, mx.array]]"]


@cache
def thread() -> ThreadPoolExecutor:
    """Return the thread, which starts with its first job."""
    return ThreadPoolExecutor(1, thread_name_prefix="weights")


class Reading:
    """Tensors that the thread reads, by name. Each can be taken as soon as it is there.

    A job gives them in any order, and must look often whether it has ended. One thread takes them.
    """

    def __init__(self, job: Job) -> None:
        self.ended = Event()
        self.given: SimpleQueue[tuple[str, mx.array]] = SimpleQueue()
        self.arrived: dict[str, mx.array] = {}
        self.job = thread().submit(self._read, job)

    def _read(self, job: Job) -> None:
        for one in job(self.ended.is_set):
            self.given.put(one)

    def pop(self, name: str) -> "mx.array":
        """Take a tensor once it is there. Raises what the job raised; Interrupted ends the job."""
        try:
            while name not in self.arrived:
                self._wait(name)
        except BaseException:
            self.ended.set()
            raise
        return self.arrived.pop(name)

    def _wait(self, name: str) -> None:
        """Wait a moment for the next tensor. Raises KeyError if the job is over without `name`."""
        over = self.job.done()  # what it gave is there then
        interrupt.check()  # before an error: the signal may be why a job failed
        with suppress(Empty):
            self.arrived.update([self.given.get(timeout=0 if over else POLL_SECONDS)])
            return
        if over:
            self.job.result()
            raise KeyError(name)

    def give_up(self) -> None:
        """End the job, and wait for its end. An error of a job that nobody wants is nobody's."""
        self.ended.set()
        if not self.job.cancel():
            wait([self.job])
