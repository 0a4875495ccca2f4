"""A Dask worker whose tasks run on the main thread of its process, one at a time.

On the main thread a command can be interrupted between two steps, and MLX stays on one thread. Dask
itself runs on another thread, so the worker answers its scheduler while a command computes.
"""

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import first_line
from wanpipe.sweeps import connection, tasks
from wanpipe.sweeps.connection import Tls
from wanpipe.sweeps.tasks import Place

if TYPE_CHECKING:
    from distributed import Worker

GPU = "GPU"  # the resource of a worker: one, which each task takes
POLL_SECONDS = 0.1
CLOSE_SECONDS = 5.0
LOST = ("worker-handle-scheduler-connection-broken", "scheduler-close")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a worker connects: to the scheduler at a URL, from a `host` (an address of this machine)
    or a network `interface`, else from the address that reaches the scheduler.

    Without a scheduler for `death_timeout` seconds the worker ends. One that is a `child` of a
    sweep reads the URL from standard input, and ends when that is closed.
    """

    scheduler: str
    host: str | None = None
    interface: str | None = None
    tls: Tls = field(default_factory=Tls)
    death_timeout: float = 300.0
    child: bool = False


class MainThread(Executor):
    """Runs what is submitted on the thread that calls `work`."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self.jobs = queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """Queue a call."""
        future: Future[Any] = Future()
        self.jobs.put((future, partial(function, *given, **named)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let `work` return after the current call."""
        self.jobs.put(None)

    def work(self) -> None:
        """Run calls until `shutdown`. Raises Interrupted."""
        while True:
            interrupt.check()
            try:
                job = self.jobs.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if job is None:
                return
            future, call = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)


class Life:
    """One connection of a worker to its scheduler, on a thread of its own."""

    def __init__(self, options: Options, name: str) -> None:
        self.options, self.name = options, name
        self.executor = MainThread()
        self.idle = threading.Event()  # the main thread has left the executor
        self.worker: Worker | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.lost = False  # the scheduler ended, or the way to it
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.start, name="dask", daemon=True)

    def start(self) -> None:
        """Be a worker, on the thread."""
        if self.options.child:
            self.options = replace(self.options, scheduler=read_line())
            threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
        asyncio.run(self.live())

    async def live(self) -> None:
        """Be a worker until it is closed."""
        self.loop = asyncio.get_running_loop()
        try:
            async with self.connect() as worker:
                self.worker = worker
                await worker.finished()
        except Exception as error:
            self.error = error
        finally:
            self.executor.shutdown()
        while not self.idle.is_set():  # a command that still runs will tell this loop its end
            await asyncio.sleep(POLL_SECONDS)

    def connect(self) -> "Worker":
        """Return the worker, which connects when it is entered."""
        from distributed import Worker
        from distributed.utils import get_ip

        life, options = self, self.options

        class _Worker(Worker):
            async def close(  # type: ignore[override] # as the class itself does
                self,
                timeout: float = 30,
                executor_wait: bool = True,
                nanny: bool = True,
                reason: str = "worker-close",
            ) -> str | None:
                life.lost = life.lost or reason in LOST
                return await super().close(timeout, executor_wait, nanny, reason)

        host = options.host
        if host is None and options.interface is None:
            name = options.scheduler.partition("://")[2].rpartition(":")[0].strip("[]")
            host = get_ip(name)  # not every address of this machine, which is Dask's default
        return _Worker(
            options.scheduler,
            nthreads=1,
            name=self.name,
            host=host,
            interface=options.interface,
            protocol=options.scheduler.partition("://")[0],
            security=connection.security(options.tls),
            resources={GPU: 1},
            executor=self.executor,
            memory_limit=0,  # memory plans are wanpipe's
            death_timeout=options.death_timeout,
        )

    def tell(self, news: dict[str, Any]) -> None:
        """Send news to whoever follows a sweep; what cannot be sent is of no use later."""
        worker = self.worker
        if worker is not None:
            with suppress(RuntimeError):  # its loop has ended
                worker.log_event(tasks.TOPIC, news)

    def run(self, warm: Callable[[], None]) -> None:
        """Connect and carry out tasks until the connection ends. `warm` runs while it connects."""
        self.thread.start()
        try:
            warm()
            self.executor.work()
        finally:
            self.close()

    def close(self) -> None:
        """Leave the scheduler, and end the thread."""
        worker = self.worker
        if worker is not None and self.thread.is_alive():
            with suppress(RuntimeError):
                work = worker.close(executor_wait=False, nanny=False)
                assert self.loop is not None
                future = asyncio.run_coroutine_threadsafe(work, self.loop)
                with suppress(TimeoutError):
                    future.result(CLOSE_SECONDS)
        self.idle.set()
        self.thread.join(CLOSE_SECONDS)


def serve(place: Place, options: Options, warm: Callable[[], None]) -> None:
    """Carry out the tasks of a scheduler until it closes the worker, or none answers.

    A scheduler that is lost is waited for; the command that runs is finished first. Raises
    UsageError for an address that this machine cannot have, WanpipeError if no scheduler answers.
    """
    while True:
        life = Life(options, place.name)
        tasks.work_at(replace(place, tell=life.tell))
        life.run(warm)
        if life.error is not None:
            raise failure(life.error, life.options) from life.error
        if not life.lost or options.child:
            return
        place.report.remark(f"lost the scheduler at {options.scheduler}; waiting for it")


def failure(error: Exception, options: Options) -> WanpipeError:
    """Return the error for a user of why a worker could not be there, or raise it."""
    connection.check_trusted(error, options.scheduler)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WanpipeError):
            return cause
        if isinstance(cause, asyncio.TimeoutError | TimeoutError):
            return WanpipeError(
                f"no scheduler answered at {options.scheduler} within {options.death_timeout:g} s; "
                "start `dask scheduler`, or check the address and its firewall"
            )
        if isinstance(cause, ValueError) and "interface" in str(cause):
            return UsageError(f"--interface: {first_line(cause)}")
        cause = cause.__cause__
    return WanpipeError(f"the worker cannot join {options.scheduler}: {first_line(error)}")


def read_line() -> str:
    """Return a line of standard input; end this process at once if it is closed before."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        line += byte
    return line.decode().strip()


def end_with_parent() -> None:
    """End this process at once when the process that holds the other end of stdin ends."""
    while os.read(0, 1):
        pass
    os._exit(1)
