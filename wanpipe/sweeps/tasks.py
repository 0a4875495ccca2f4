"""The task of a node: a worker carries out one command of wanpipe with its own cache.

A task carries the words of the command, and nothing that could be run. Only commands of stages are
carried out.
"""

import contextlib
import io
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanpipe.cli.failures import explain
from wanpipe.errors import WanpipeError
from wanpipe.runtime.documents import first_line
from wanpipe.runtime.report import Report, Task
from wanpipe.weights import networks

STAGES = ("convert", "encode-text", "encode-image", "encode-video", "denoise", "decode")
TOPIC = "wanpipe-sweep"  # of what workers tell while they work
TELL_SECONDS = 1.0  # between two reports of a command's progress
Made = dict[str, Any]


class NodeError(WanpipeError):
    """A node that cannot be made; `key` is its key."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(key, text)
        self.key, self.text = key, text

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker carries out commands.

    `carry_out` calls a command by its name, with words and a report. `options` are those of the
    machine, such as --cache. `memory` limits each command, in bytes. `tell` sends news to whoever
    follows a sweep.
    """

    name: str
    carry_out: Callable[[str, Sequence[str], Report], None]
    options: tuple[str, ...]
    memory: int | None = None
    report: Report = field(default_factory=Report)
    tell: Callable[[dict[str, Any]], None] = lambda news: None

    def words(self, command: Sequence[str]) -> list[str]:
        """Return the words of a command with the options of this machine."""
        limited = command[0] != "convert" and "--memory" not in command
        limit = ["--memory", str(self.memory)] if self.memory is not None and limited else []
        return [*command[1:], *limit, *self.options]


class _Process:
    """The place of this process, if it is a worker."""

    place: Place | None = None


def work_at(place: Place) -> None:
    """Make this process a worker, which keeps networks between commands."""
    _Process.place = place
    networks.keep()


class Counting(Report):
    """The report of a command: counts what it does, and tells how far it is."""

    def __init__(self, key: str, place: Place) -> None:
        self.key, self.place = key, place
        self.computed = 0
        self.loaded: list[str] = []
        self.told = 0.0

    def event(self, kind: str, **fields: Any) -> None:
        self.computed += kind == "computed"
        if kind == "loaded":
            self.loaded.append(fields["component"])
        self.place.report.event(kind, **fields)

    def remark(self, text: str) -> None:
        self.place.report.remark(text)

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        self.place.report.progress(task, elapsed, left)
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS:
            self.told = now
            self.tell("progress", done=task.done, total=task.total)

    def tell(self, what: str, **fields: Any) -> None:
        """Tell whoever follows the sweep."""
        # Dask adds a field `worker`, the address
        self.place.tell({"event": what, "key": self.key, "name": self.place.name, **fields})


def make(key: str, stage: str, command: tuple[str, ...]) -> Made:
    """Carry out the command of a node. Dask calls this on a worker.

    Returns the worker, seconds, how many entries were computed, and which networks were loaded.
    Raises NodeError, with one line.
    """
    place = _Process.place
    if place is None:
        raise NodeError(key, "a Dask worker is not wanpipe's; start workers with `wanpipe worker`")
    if not command or command[0] not in STAGES:
        raise NodeError(key, f"a worker carries out {', '.join(STAGES)}, got {command[:1]}")
    report, started, out = Counting(key, place), time.monotonic(), io.StringIO()
    report.tell("started")
    if command[0] == "convert":
        networks.clear()
    try:
        with contextlib.redirect_stdout(out):
            place.carry_out(command[0], place.words(command), report)
    except Exception as error:
        found = explain(error)
        if found is None:
            place.report.remark("\n".join(traceback.format_exception(error)))
        text = found[0] if found else f"{type(error).__name__}: {first_line(error)}"
        raise NodeError(key, text) from None
    check(key, stage, out.getvalue().splitlines(), place)
    return {
        "worker": place.name,
        "seconds": time.monotonic() - started,
        "computed": report.computed,
        "loaded": report.loaded,
    }


def check(key: str, stage: str, paths: Sequence[str], place: Place) -> None:
    """Raise NodeError if a command did not print the entry of its node.

    A worker with another device can compute in another dtype, and so make another key.
    """
    names = [Path(path).name for path in paths]
    if key not in names and stage != "convert":  # a model can be made in any directory
        raise NodeError(
            key,
            f"{stage} made {', '.join(names) or 'nothing'} on worker {place.name} instead of "
            f"{key}; plan a sweep with the kind of device and the version that its workers have",
        )
