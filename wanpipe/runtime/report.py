"""Receives events and progress. The base class says nothing: it is what Python users get.

`wanpipe.cli.progress` has the reports that the command line prints.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wanpipe.runtime import interrupt


class Task:
    """One stretch of work of `total` units; `advance` after each."""

    def __init__(self, report: "Report", label: str, total: int) -> None:
        self.report, self.label, self.total = report, label, total
        self.done = 0
        self.started = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """Count `units` more as done and show it. Raises Interrupted where a signal came."""
        self.done += units
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        self.report.progress(self, elapsed, left)
        interrupt.check()


class Report:
    """Say nothing: the default for library use, and the base of the others."""

    def event(self, kind: str, **fields: Any) -> None:
        """Tell that something happened: `computed`, `reused`, `skipped`, `loaded`, `damaged`,
        `planned`, `forecast`, `memory`, `written`.
        """

    def remark(self, text: str) -> None:
        """Tell a person one line they should know."""

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        """Show that `task` advanced; times in seconds."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """Open a stretch of `total` units of work under `label`."""
        yield Task(self, label, total)
