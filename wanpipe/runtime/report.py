"""Receives events and progress. The base class ignores them: Python users get it by default.

`wanpipe.cli.progress` has the reports that the command line prints.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wanpipe.runtime import interrupt


class Task:
    """A task of `total` units of work; `advance` after each."""

    def __init__(self, report: "Report", label: str, total: int) -> None:
        self.report, self.label, self.total = report, label, total
        self.done = 0
        self.started = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """Count `units` more as done and report it. Raises Interrupted after a signal."""
        self.done += units
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        self.report.progress(self, elapsed, left)
        interrupt.check()


class Report:
    """A report that ignores everything: the default for library use, and the base class."""

    def event(self, kind: str, **fields: Any) -> None:
        """Report an event: `computed`, `reused`, `skipped`, `loaded`, `damaged`,
        `planned`, `forecast`, `memory`, `written`, `pulled`.
        """

    def remark(self, text: str) -> None:
        """Report one line that the user should know."""

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        """Report that `task` advanced; times are in seconds."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """Start a task of `total` units of work named `label`."""
        yield Task(self, label, total)
