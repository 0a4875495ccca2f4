"""A Dask cluster on this machine: a scheduler in this process, and one worker process a device.

Everything listens at 127.0.0.1. A worker that ends is started again. The workers of a process that
ends, end with it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime.report import Report

HOST = "127.0.0.1"
MOST_ENDS = 10  # of workers in a row, without a word of one
END_SECONDS = 20.0  # in which an idle worker ends
POLL_SECONDS = 0.05
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
REMOTE = "WANPIPE_REMOTE"  # as for every command; a command line could be seen by others


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What a worker process gets: variables of its environment, and a limit of memory in bytes."""

    environment: dict[str, str]
    memory: int | None = None


def seats(workers: int | None, memory: int | None) -> list[Seat]:
    """Return the seats of this machine: one a CUDA device, else `workers` that divide it.

    Raises UsageError for a number of workers that cannot be.
    """
    from wanpipe.backend.device import is_cuda, recommended_memory
    from wanpipe.backend.group import visible_cards

    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}; leave it out for all devices")
    if is_cuda():
        cards = visible_cards()
        if workers is not None and workers > len(cards):
            raise UsageError(
                f"workers must be GPUs of this machine, {len(cards)}, got {workers}; use "
                f"{len(cards)} or fewer"
            )
        chosen = cards if workers is None else cards[:workers]
        return [Seat(environment={"CUDA_VISIBLE_DEVICES": one}, memory=memory) for one in chosen]
    count = workers or 1
    if count == 1:
        return [Seat(environment={}, memory=memory)]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    divided = {name: threads for name in THREADS if name not in os.environ}
    share = recommended_memory() // count if memory is None else memory
    return [Seat(environment=divided, memory=share) for _ in range(count)]


@dataclass
class Crew:
    """The worker processes, by seat. `folder` has the log of each."""

    options: tuple[str, ...]
    seats: list[Seat]
    folder: Path
    environment: dict[str, str]
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    address: str | None = None  # of the scheduler, once it is there
    started: int = 0
    ends: int = 0

    def start(self, seat: Seat) -> "subprocess.Popen[bytes]":
        """Start a worker. Its number becomes its name."""
        self.started += 1
        name = str(self.started)
        words = ["worker", "--child", "--name", name, *self.options]
        words += ["--memory", str(seat.memory)] if seat.memory is not None else []
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "wanpipe", *words],
                env={**os.environ, **self.environment, **seat.environment},
                stdin=subprocess.PIPE,  # open for as long as this process lives
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is the sweep's
            )
        if self.address is not None:
            tell(process, self.address)
        return process

    def log(self, name: str) -> Path:
        """Return the log of a worker."""
        return self.folder / f"{name}.log"

    def begin(self) -> None:
        """Start all workers. They load what they need, and wait for a scheduler."""
        self.processes = [self.start(seat) for seat in self.seats]

    def connect(self, address: str) -> None:
        """Let all workers connect to the scheduler at an address."""
        self.address = address
        for process in self.processes:
            tell(process, address)

    def tend(self) -> None:
        """Start workers again that ended. Raises WanpipeError if they cannot work."""
        for index, process in enumerate(self.processes):
            code = process.poll()
            if code is None:
                continue
            self.ends += 1
            if code > 0 or self.ends > MOST_ENDS:
                raise WanpipeError(f"a worker ended with {code}: {self.last_line()}")
            self.processes[index] = self.start(self.seats[index])

    def last_line(self) -> str:
        """Return the last line that the workers wrote."""
        logs = sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = [line for log in logs for line in log.read_text("utf-8", "replace").splitlines()]
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return said.removeprefix("wanpipe: error: ")

    def end(self, seconds: float | None) -> None:
        """Let the workers stop, between two steps, and wait; for so long, if they are idle."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = None if seconds is None else time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End what is left of the workers."""
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()


def tell(process: "subprocess.Popen[bytes]", address: str) -> None:
    """Write the scheduler's address to a worker. One that has ended is noticed later."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(f"{address}\n".encode())
        process.stdin.flush()


@contextmanager
def workers(seats: list[Seat], options: tuple[str, ...], remote: str | None) -> Iterator[Crew]:
    """Start workers, which wait for a scheduler, and end them. `options` are those of
    `wanpipe worker`.
    """
    with tempfile.TemporaryDirectory(prefix="wanpipe-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = {"DASK_TEMPORARY_DIRECTORY": str(folder)}
        environment |= {REMOTE: remote} if remote else {}
        crew = Crew(options, seats, folder, environment)
        try:
            crew.begin()
            yield crew
        finally:
            crew.kill()


@contextmanager
def cluster(crew: Crew, retries: int, report: Report) -> Iterator[str]:
    """Start a scheduler in this process, let workers connect, and yield its address.

    After an error the workers stop between two steps, which is waited for.
    """
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0,
        host=HOST,
        protocol="tcp://",
        dashboard_address=f"{HOST}:0",
        scheduler_kwargs={"allowed_failures": retries},
    ) as cluster:
        crew.connect(cluster.scheduler_address)
        if has_dashboard():
            report.remark(f"Dask's dashboard is at {cluster.dashboard_link}")
        try:
            yield cluster.scheduler_address
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                report.remark("workers finish their step; interrupt again to stop at once")
            crew.end(None)
            raise
        crew.end(END_SECONDS)


def has_dashboard() -> bool:
    """Return whether bokeh is there, which draws Dask's dashboard."""
    from importlib.util import find_spec

    return find_spec("bokeh") is not None
