"""Carries out the graph of a sweep on a Dask cluster: of own workers on this machine, or of others'.

Whatever exists is not computed again, so a sweep that ended early goes on where it was.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wanpipe.store import Store
from wanpipe.sweeps.node import Graph

State = Literal["exists", "done", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where a sweep is computed.

    `scheduler` is the URL of a Dask scheduler; None starts workers on this machine: `workers`, or
    one a device. A node that fails, or whose worker ends, is tried again `retries` times. The `tls`
    files are those of `distributed.Security`. `interface` is the network interface of this process.
    """

    scheduler: str | None = None
    workers: int | None = None
    retries: int = 2
    tls_ca_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    interface: str | None = None
    remote: str | None = None
    push: str | None = None
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a node: `seconds` of the worker called `worker`, and one line if it failed, or
    was skipped because something that it needs failed.
    """

    key: str
    state: State
    error: str | None = None
    seconds: float = 0.0
    worker: str | None = None


def carry_out(graph: Graph, options: Options, store: Store) -> dict[str, Outcome]:
    """Make every entry of a graph that does not exist, and return what became of each node by key.

    Raises UsageError for options that cannot be, and WanpipeError if the scheduler does not answer
    or is lost.
    """
    raise NotImplementedError
