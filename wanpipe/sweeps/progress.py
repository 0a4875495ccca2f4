"""Shows how far a sweep is: a live table on a terminal, and events for lines and for programs."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from wanpipe.cli.messages import count
from wanpipe.cli.progress import BarReport
from wanpipe.runtime.report import Report
from wanpipe.runtime.text import printable
from wanpipe.runtime.units import format_duration
from wanpipe.sweeps.node import Graph, Node, Outcome, State

if TYPE_CHECKING:
    from rich.constrain import Constrain
    from rich.live import Live
    from rich.table import Table

SHOW_SECONDS = 0.25  # between two pictures of the table
MARGIN = 4  # columns: where a terminal shows ^C, so that the line does not wrap
MOST_NAMES = 3  # of videos in a row
ENDED: tuple[State, ...] = ("exists", "done")


@dataclass
class Running:
    """A node that a worker works on since a moment; `steps` tells how far it is."""

    worker: str
    since: float = field(default_factory=time.monotonic)
    steps: str = ""


class Progress(AbstractContextManager["Progress"]):
    """What became of the nodes of a graph, and what runs. Reports every change as an event."""

    def __init__(self, graph: Graph, report: Report) -> None:
        self.nodes = {node.key: node for node in graph.nodes}
        self.report = report
        self.outcomes = {
            node.key: Outcome(key=node.key, state="exists") for node in graph.nodes if node.exists
        }
        self.running: dict[str, Running] = {}
        self.taken: dict[str, list[float]] = {}  # seconds a unit, by stage
        self.shown = 0.0
        self.live: Live | None = None

    def __enter__(self) -> Self:
        if isinstance(self.report, BarReport):
            from rich.live import Live

            console = self.report.console
            picture = self.picture(console.width)
            self.live = Live(picture, console=console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def event(self, kind: str, key: str, **fields: Any) -> None:
        """Report an event of a node."""
        node = self.nodes[key]
        videos = list(node.videos)
        self.report.event(kind, stage=node.stage, key=key, videos=videos, **fields)

    def queued(self, node: Node) -> None:
        """Report that a node waits for a worker."""
        self.event("queued", node.key)

    def told(self, news: dict[str, Any]) -> None:
        """Take what a worker tells of a node; several sweeps may hear it."""
        key, worker = str(news.get("key")), str(news.get("name"))
        if key not in self.nodes or key in self.outcomes:
            return
        if news.get("event") == "started":
            self.running[key] = Running(worker)
            if self.live is None:  # the table shows it
                self.event("started", key, worker=worker)
        elif news.get("event") == "progress":
            running = self.running.setdefault(key, Running(worker))
            running.steps = f"{news.get('done')}/{news.get('total')}"

    def done(self, key: str, made: dict[str, Any]) -> None:
        """Note that a node is made, and report it."""
        seconds = float(made["seconds"])
        self.running.pop(key, None)
        if made["computed"]:
            node = self.nodes[key]
            self.taken.setdefault(node.stage, []).append(seconds / max(1, node.units))
        self.outcomes[key] = Outcome(
            key=key,
            state="done",
            seconds=seconds,
            worker=made["worker"],
            computed=made["computed"],
            loaded=tuple(made["loaded"]),
        )
        left = self.seconds_left()
        self.event(
            "done",
            key,
            worker=made["worker"],
            seconds=round(seconds, 3),
            ended=len(self.outcomes),
            total=len(self.nodes),
            seconds_left=None if left is None else round(left, 1),
        )

    def failed(self, key: str, cause: str, text: str) -> None:
        """Note that a node failed, or is skipped because `cause` failed, and report it."""
        self.running.pop(key, None)
        state: State = "failed" if key == cause else "skipped"
        if key != cause:
            stage = self.nodes[cause].stage if cause in self.nodes else "entry"
            text = f"needs {stage} {cause[:8]}, which failed: {text}"
        self.outcomes[key] = Outcome(key=key, state=state, error=text)
        self.event(state, key, text=text)

    def seconds_left(self) -> float | None:
        """Estimate the time left, from what was made and from what the plan expects."""
        total = 0.0
        for key, node in self.nodes.items():
            if key in self.outcomes:
                continue
            taken = self.taken.get(node.stage)
            expected = sum(taken) / len(taken) * node.units if taken else node.seconds
            if expected is None:
                return None
            running = self.running.get(key)
            total += max(0.0, expected - (time.monotonic() - running.since if running else 0.0))
        workers = {running.worker for running in self.running.values()}
        return total / max(1, len(workers))

    def show(self) -> None:
        """Draw the table again, if it is shown and old."""
        if self.live is not None and time.monotonic() - self.shown > SHOW_SECONDS:
            self.shown = time.monotonic()
            self.live.update(self.picture(self.live.console.width), refresh=True)

    def summary(self) -> str:
        """Return how many videos and entries are there, and the time left."""
        wanted: dict[str, bool] = {}
        for key, node in self.nodes.items():
            outcome = self.outcomes.get(key)
            there = outcome is not None and outcome.state in ENDED
            for video in node.videos:
                wanted[video] = wanted.get(video, True) and there
        parts = [f"{sum(wanted.values())} of {count(len(wanted), 'video')}"] if wanted else []
        states = [outcome.state for outcome in self.outcomes.values()]
        made = sum(state in ENDED for state in states)
        parts.append(f"{made} of {count(len(self.nodes), 'entry')}")
        bad = len(states) - made
        parts += [f"{bad} failed or skipped"] if bad else []
        left = self.seconds_left()
        parts += [] if left is None else [f"{format_duration(left)} left"]
        return ", ".join(parts)

    def picture(self, width: int) -> "Constrain":
        """Return the table for a terminal of this width."""
        from rich.constrain import Constrain

        return Constrain(self.table(), width - MARGIN)

    def table(self) -> "Table":
        """Return a table with a row for each node that is being made."""
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("worker", "stage", "entry", "steps", "time", "videos"):
            table.add_column(column, overflow="fold", no_wrap=column != "videos")
        for key, running in sorted(self.running.items(), key=lambda pair: pair[1].worker):
            node = self.nodes[key]
            table.add_row(
                printable(running.worker),
                node.stage,
                key[:8],
                running.steps,
                format_duration(time.monotonic() - running.since),
                printable(named(node)),
            )
        return table


def named(node: Node) -> str:
    """Return the names of some of the videos that need a node."""
    names = ", ".join(node.videos[:MOST_NAMES])
    more = len(node.videos) - MOST_NAMES
    return f"{names} and {more} more" if more > 0 else names
