"""Carries out the graph of a sweep on a Dask cluster: on workers of this machine, or of others.

Whatever exists is not computed again, so a sweep that ended early goes on where it was.
"""

import queue
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import first_line
from wanpipe.store import Store
from wanpipe.sweeps import connection, local, tasks
from wanpipe.sweeps.connection import Tls
from wanpipe.sweeps.node import Graph, Node, Outcome
from wanpipe.sweeps.progress import Progress
from wanpipe.sweeps.tasks import NodeError
from wanpipe.sweeps.waiting import Waiting
from wanpipe.sweeps.worker import GPU

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.client import as_completed

CONNECT_SECONDS = 30.0  # in which a scheduler answers
TRY_SECONDS = 2.0  # of one try, while which no signal is noticed
CLOSE_SECONDS = 2.0
POLL_SECONDS = 0.05
LONELY_SECONDS = 10.0  # without a worker, until the user is told


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where a sweep is computed.

    `scheduler` is the URL of a Dask scheduler, with the files of `tls` for tls://. None starts
    workers on this machine: `workers` of them, or one a device, each with `remote`, `push` and
    `memory` (bytes) as every command has them. A node that fails, or whose worker ends, is tried
    again `retries` times.
    """

    scheduler: str | None = None
    tls: Tls = field(default_factory=Tls)
    workers: int | None = None
    retries: int = 2
    remote: str | None = None
    push: str | None = None
    memory: int | None = None


@contextmanager
def at_work(options: Options, store: Store) -> "Iterator[local.Crew | None]":
    """Start workers on this machine, if there is no scheduler elsewhere, and end them.

    They load what they need while the sweep is planned. Raises UsageError for options that cannot
    be.
    """
    if options.scheduler is not None:
        if options.workers is not None:
            raise UsageError(
                "--workers starts workers on this machine, and --scheduler uses those that are "
                "connected to it; give one"
            )
        connection.check_address(options.scheduler, options.tls)
        yield None
        return
    words = ["--cache", str(store.root.absolute())]
    words += ["--push", options.push] if options.push else []
    seats = local.seats(options.workers, options.memory)
    with local.workers(seats, tuple(words), options.remote) as crew:
        yield crew


def carry_out(
    graph: Graph, options: Options, store: Store, crew: "local.Crew | None"
) -> dict[str, Outcome]:
    """Make every entry of a graph that does not exist, and return what became of each node by key.

    A node that fails ends only those that need it. Raises WanpipeError if the scheduler does not
    answer or is lost.
    """
    todo = [node for node in graph.nodes if not node.exists]
    progress = Progress(graph, store.report)
    if not todo:
        return progress.outcomes
    connection.load()
    with ExitStack() as stack:
        address = options.scheduler
        if crew is not None:
            address = stack.enter_context(local.cluster(crew, options.retries, store.report))
        assert address is not None  # without a crew there is a scheduler
        client = stack.enter_context(connected(address, options.tls))
        stack.enter_context(progress)
        Sweep(client, progress, crew, address, options.retries, Waiting(todo)).run()
    return progress.outcomes


@contextmanager
def connected(address: str, tls: Tls) -> "Iterator[Client]":
    """Connect to a scheduler. At the end nobody wants what is queued any more. Raises WanpipeError
    if none answers.
    """
    from distributed import Client

    security, deadline = connection.security(tls), time.monotonic() + CONNECT_SECONDS
    while True:
        interrupt.check()
        try:
            client = Client(address, security=security, timeout=TRY_SECONDS, set_as_default=False)
            break
        except (OSError, TimeoutError) as error:
            connection.check_trusted(error, address)
            if time.monotonic() > deadline:
                raise WanpipeError(
                    f"no scheduler answered at {address} within {CONNECT_SECONDS:g} s "
                    f"({first_line(error)}); start `dask scheduler`, or check the address"
                ) from error
    try:
        yield client
    finally:
        client.close(timeout=CLOSE_SECONDS)


@dataclass
class Sweep:
    """The nodes that a client waits for. `crew` are the workers of this machine.

    A node is submitted when all that it needs is made, so Dask knows of no dependencies: it would
    give all that follows a text to the worker that encoded the text.
    """

    client: "Client"
    progress: Progress
    crew: "local.Crew | None"
    address: str
    retries: int
    waiting: Waiting
    futures: "dict[str, Future[Any]]" = field(default_factory=dict)
    news: "queue.SimpleQueue[dict[str, Any]]" = field(default_factory=queue.SimpleQueue)
    heard: float = field(default_factory=time.monotonic)  # when somebody worked

    def run(self) -> None:
        """Submit nodes as they become ready, and wait until all have ended."""
        from distributed import as_completed

        # called on the client's thread
        self.client.subscribe_topic(tasks.TOPIC, lambda event: self.news.put(event[1]))
        done = as_completed(loop=self.client.loop, with_results=True, raise_errors=False)
        self.submit(self.waiting.ready(), done)
        while self.futures:
            interrupt.check()
            if self.crew is not None:
                self.crew.tend()
            self.take(done)
            self.look_for_workers()
            self.progress.show()
            time.sleep(POLL_SECONDS)

    def submit(self, nodes: Iterable[Node], done: "as_completed") -> None:
        """Give nodes to the scheduler. The key of a task is that of the entry, so several sweeps
        share it.
        """
        for node in nodes:
            interrupt.check()
            future = self.client.submit(
                tasks.make,
                node.key,
                node.stage,
                node.command,
                key=node.key,
                pure=False,
                resources={GPU: 1},
                retries=self.retries,
                priority=self.waiting.priorities[node.key],
            )
            self.futures[node.key] = future
            done.add(future)
            self.progress.queued(node)

    def take(self, done: "as_completed") -> None:
        """Take what workers told and what ended, and submit what became ready. Raises WanpipeError
        if the scheduler is lost.
        """
        while not self.news.empty():
            self.heed()
            self.progress.told(self.news.get())
        for future, result in done.next_batch(block=False):
            self.heed()
            if future.status in ("cancelled", "lost"):
                raise WanpipeError(
                    f"lost the scheduler at {self.address}; run the same command again, what was "
                    "made is kept"
                )
            key = future.key
            del self.futures[key]
            if isinstance(result, dict):
                self.progress.done(key, result)
                self.submit(self.waiting.made(key), done)
            else:
                self.progress.failed(key, key, said(result[1]))
                for skipped in self.waiting.lost(key):
                    self.progress.failed(skipped, key, said(result[1]))

    def heed(self) -> None:
        """Note that somebody works."""
        self.heard = time.monotonic()
        if self.crew is not None:
            self.crew.ends = 0

    def look_for_workers(self) -> None:
        """Tell the user once in a while that nobody works."""
        if self.crew is None and time.monotonic() - self.heard > LONELY_SECONDS:
            self.heard = time.monotonic() + 50 * LONELY_SECONDS
            if not self.client.scheduler_info()["workers"]:
                command = f"wanpipe worker --scheduler {self.address}"
                self.progress.report.remark(f"no worker is there; start one with `{command}`")


def said(error: BaseException) -> str:
    """Return the line that tells why a node could not be made."""
    from distributed import KilledWorker

    if isinstance(error, NodeError):
        return error.text
    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        return f"its worker ended {times} times while it ran; see the worker's log and memory"
    return f"{type(error).__name__}: {first_line(error)}"
