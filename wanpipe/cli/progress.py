"""Prints progress and messages on stderr: bars on a terminal, plain lines elsewhere, or JSON lines.

stdout is only for the paths of entries. `wanpipe.cli.messages` formats the events.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from wanpipe.cli.messages import describe
from wanpipe.runtime.report import Report, Task
from wanpipe.runtime.text import printable, to_json
from wanpipe.runtime.units import format_duration

PLAIN_INTERVAL = 1.0  # seconds between two plain progress lines


class JsonReport(Report):
    """Prints one JSON object per line, flushed at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def event(self, kind: str, **fields: Any) -> None:
        print(to_json({"event": kind, **fields}), file=self.stream, flush=True)

    def remark(self, text: str) -> None:
        self.event("remark", text=text)

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        self.event(
            "progress",
            stage=task.label,
            done=task.done,
            total=task.total,
            seconds=round(elapsed, 3),
            seconds_left=round(left, 3),
        )


class PlainReport(Report):
    """Prints plain lines, with at most one progress line a second, and none for a short task."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.last = 0.0

    def line(self, text: str) -> None:
        """Print one line."""
        print(printable(text), file=self.stream, flush=True)

    def event(self, kind: str, **fields: Any) -> None:
        text = describe(kind, fields)
        if text:
            self.line(text)

    def remark(self, text: str) -> None:
        self.line(f"wanpipe: {text}")

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        now = time.monotonic()
        ended = task.done >= task.total
        # what takes less than a line's interval in all gets none
        since = task.started if ended else max(task.started, self.last)
        if now - since < PLAIN_INTERVAL:
            return
        self.last = now
        rate, eta = elapsed / task.done, format_duration(left)
        self.line(f"{task.label} {task.done}/{task.total}  {rate:.2f} s each  {eta} left")


class BarReport(PlainReport):
    """Shows progress bars with the time left on a terminal, and prints lines above them."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self.console = Console(stderr=True, highlight=False)
        self.bars: dict[int, Any] = {}

    def line(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        bar, identity = self.bars[id(task)]
        bar.update(identity, completed=task.done)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        task = Task(self, label, total)
        with Progress(*columns, console=self.console) as bar:
            self.bars[id(task)] = (bar, bar.add_task(printable(label), total=total))
            try:
                yield task
            finally:
                del self.bars[id(task)]


class QuietReport(PlainReport):
    """Prints only messages that matter even with --quiet, such as a damaged entry."""

    def event(self, kind: str, **fields: Any) -> None:
        """Print nothing."""

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        """Print nothing."""


def make_report(events: str | None, quiet: bool) -> Report:
    """Choose a report by --events, --quiet, and whether stderr is a terminal."""
    if events == "json":
        return JsonReport()
    if quiet:
        return QuietReport()
    return BarReport() if sys.stderr.isatty() else PlainReport()
