"""Progress for people and programs: bars on a terminal, plain lines elsewhere, JSON on request.

Everything goes to stderr; stdout is for the paths of entries.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from wanpipe.runtime.report import Report, Task
from wanpipe.runtime.units import amount, clock

PLAIN_INTERVAL = 1.0  # seconds between two plain progress lines


class JsonReport(Report):
    """One JSON object a line, flushed at once."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def event(self, kind: str, **fields: Any) -> None:
        print(
            json.dumps({"event": kind, **fields}, ensure_ascii=False), file=self.stream, flush=True
        )

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
    """Plain lines, at most one progress line a second and always the last."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.last = 0.0

    def line(self, text: str) -> None:
        """Print one line."""
        print(text, file=self.stream, flush=True)

    def event(self, kind: str, **fields: Any) -> None:
        sentence = describe(kind, fields)
        if sentence:
            self.line(sentence)

    def remark(self, text: str) -> None:
        self.line(f"wanpipe: {text}")

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        now = time.monotonic()
        if task.done < task.total and now - self.last < PLAIN_INTERVAL:
            return
        self.last = now
        rate = elapsed / task.done
        self.line(f"{task.label} {task.done}/{task.total}  {rate:.2f} s each  {clock(left)} left")


class BarReport(PlainReport):
    """Progress bars with time left, for a terminal; lines go above the bar."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self.console = Console(stderr=True, highlight=False)
        self.bars: dict[int, Any] = {}

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        task = Task(self, label, total)
        with Progress(*columns, console=self.console) as bar:
            self.bars[id(task)] = (bar, bar.add_task(label, total=total))
            try:
                yield task
            finally:
                del self.bars[id(task)]


def describe(kind: str, fields: dict[str, Any]) -> str:
    """Put an event in one line for a person; empty where it is of no interest to one."""
    subject = f"{fields.get('stage', '')} {str(fields.get('key', ''))[:8]}".strip()
    if fields.get("step") is not None:
        subject = f"{subject} (step {fields['step'] + 1})"
    if kind == "reused":
        return f"{subject}: already there"
    if kind == "computed" and fields.get("stage") != "denoise":
        return f"{subject}: computed in {fields['seconds']:.1f} s"
    if kind == "planned":
        return describe_plan(subject, fields)
    if kind == "missing":
        return describe_miss(subject, fields)
    if kind == "collected":
        return describe_collection(fields)
    if kind == "memory":
        return str(fields["text"])
    if kind == "forecast":
        return describe_forecast(fields)
    if kind == "written":
        return f"wrote {fields['path']}"
    if kind == "quantized":
        error = f"relative error {100 * fields['relative_error']:.2g} %"
        return f"{fields['component']} {fields['layer']}: quantised, {error}"
    if kind == "lora":
        name = Path(fields["path"]).name
        return f"LoRA {name} at {fields['strength']:g} on {fields['component']}: {fields['text']}"
    return ""


def describe_plan(subject: str, fields: dict[str, Any]) -> str:
    """Put what is planned of one entry in a line; of the steps of a run, `missing` tells."""
    if fields["status"] != "to compute":
        return f"{subject}: {fields['status']}"
    told = fields["stage"] == "denoise" or fields.get("reason")
    return "" if told else f"{subject}: to compute"


def describe_miss(subject: str, fields: dict[str, Any]) -> str:
    """Put in a line what is missing, how it differs from what is there, and what follows."""
    more = fields["steps"] - 1
    line = f"{subject}: to compute" + (f", and {more} more steps after it" if more else "")
    if fields["nearest"] is None:
        return f"{line} ({fields['reason']})"
    line += f"; nearest is {fields['nearest'][:8]}: {fields['reason']}"
    if fields["step"] is not None and fields["differences"]:
        every = "all " if fields["step"] == 0 else ""
        line += f"; so {every}{fields['steps']} steps are new"
    return line


def describe_forecast(fields: dict[str, Any]) -> str:
    """Put in a line what work that is to come will take."""
    seconds = fields["seconds"]
    line = f"{fields['stage']} with {fields['component']}: "
    line += f"{fields['units']} steps, " if fields["stage"] == "denoise" else ""
    line += f"at most {amount(fields['peak_bytes'], 'B')} of memory"
    if seconds is None:
        return f"{line}; how long shows when one was made here"
    return f"{line}, about {clock(seconds)} at the pace of the last ones here"


def describe_collection(fields: dict[str, Any]) -> str:
    """Put in a line what was removed from a cache, or would be, and what stays."""
    verb = "would remove" if fields["dry_run"] else "removed"
    gone = f"{verb} {fields['entries']} entries, {amount(fields['bytes'], 'B')}"
    return f"{gone}; {fields['entries_left']} stay, {amount(fields['bytes_left'], 'B')}"


def make_report(events: str | None, quiet: bool) -> Report:
    """Choose by the options of a command and by what stderr is."""
    if events == "json":
        return JsonReport()
    if quiet:
        return QuietReport()
    return BarReport() if sys.stderr.isatty() else PlainReport()


class QuietReport(PlainReport):
    """Only remarks: what a person must know even with --quiet, such as a damaged entry."""

    def event(self, kind: str, **fields: Any) -> None:
        """Say nothing."""

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        """Say nothing."""
