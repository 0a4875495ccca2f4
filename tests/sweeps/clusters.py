"""Processes of a cluster: sweeps, schedulers and workers, and what they left in a cache."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import alive, children
from wanpipe.store.entry import read_entry

ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LONG = 100.0  # seconds that nothing takes, however busy the machine is
Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Sweep:
    """What a sweep ended with: exit code, the outcomes of its nodes by key, and its events."""

    code: int
    outcomes: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]

    def states(self) -> dict[str, int]:
        """How many nodes have each state."""
        found = [outcome["state"] for outcome in self.outcomes.values()]
        return {state: found.count(state) for state in sorted(set(found))}

    def computed(self) -> int:
        """How many entries its tasks computed."""
        return sum(outcome["computed"] for outcome in self.outcomes.values())

    def loaded(self, network: str) -> int:
        """How often a network was loaded."""
        return sum(outcome["loaded"].count(network) for outcome in self.outcomes.values())

    @property
    def error(self) -> str:
        """The line of its error."""
        return str(next(one["text"] for one in self.events if one["event"] == "error"))


def begin(*words: object) -> Process:
    """Start a sweep."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweeps.sweep", *map(str, words)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(process: Process) -> Sweep:
    """Wait for the end of a sweep."""
    out, err = process.communicate(timeout=LONG)
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert "Traceback" not in err, err
    return Sweep(process.returncode, {row["key"]: row for row in rows}, events)


def sweep(*words: object) -> Sweep:
    """Carry out a sweep, which must end well."""
    found = ended(begin(*words))
    assert found.code == 0, found.events
    return found


def until(claim: Callable[[], Any], seconds: float = LONG) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)
    return found


def workers(process: Process) -> list[int]:
    """The worker processes of a sweep."""
    return children(process.pid)


def steps(cache: Path) -> int:
    """How many steps a cache has."""
    return len(list(cache.glob("denoise/*")))


def digests(cache: Path) -> dict[str, Any]:
    """The digests of the arrays of all entries, by stage and key; nothing is partial."""
    found = {}
    for path in cache.glob("[a-z]*/*/zarr.json"):
        entry = read_entry(path.parent)
        entry.verify()
        found[f"{path.parent.parent.name}/{entry.key}"] = dict(entry.record.digest)
    return found


@contextmanager
def running(module: str, *words: object) -> Iterator[Process]:
    """A process of a module, which is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def scheduler(port: int = 0, *options: object) -> Iterator[tuple[Process, str]]:
    """A Dask scheduler at 127.0.0.1, and its address."""
    words = ("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", *options)
    with running("dask", *words) as process:
        assert process.stderr is not None
        said = iter(process.stderr.readline, "")
        found = next(match for line in said if (match := re.search(r"(tcp|tls)://[\d.:]+", line)))
        yield process, found[0]


@contextmanager
def worker(address: str, cache: Path, *options: object) -> Iterator[Process]:
    """A worker process with a cache."""
    words = ("worker", "--scheduler", address, "--cache", cache, "--events", "json", *options)
    with running("wanpipe", *words) as process:
        yield process


def kill(number: int) -> None:
    """End a process at once."""
    os.kill(number, signal.SIGKILL)


def all_end(numbers: list[int]) -> bool:
    """Whether processes end, all of them."""
    return bool(until(lambda: not any(map(alive, numbers))))
