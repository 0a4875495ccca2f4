"""The live table of a sweep on a terminal."""

import io

from rich.console import Console

from wanpipe.cli.progress import BarReport
from wanpipe.sweeps.node import Graph, Node
from wanpipe.sweeps.progress import Progress

TEXT, STEP = "1" * 32, "2" * 32
VIDEO = "videos/a-yellow-star-spins-quickly-on-2-4.mp4"
WIDTH = 60
GRAPH = Graph(
    nodes=(
        Node(key=TEXT, stage="encode-text", command=(), videos=(VIDEO,)),
        Node(key=STEP, stage="denoise", command=(), needs=(TEXT,), units=20, videos=(VIDEO,)),
    )
)


def terminal() -> BarReport:
    """A report on a terminal of sixty columns, whose output is kept."""
    report = BarReport()
    report.console = Console(file=io.StringIO(), force_terminal=True, highlight=False, width=WIDTH)
    return report


def lines(report: BarReport, progress: Progress) -> list[str]:
    """The lines of the table as they stand on the screen."""
    shown = report.console.render_lines(progress.picture(WIDTH), pad=False)
    return ["".join(part.text for part in line) for line in shown]


def test_the_table_shows_who_makes_what_and_how_far_it_is() -> None:
    report = terminal()
    with Progress(GRAPH, report) as progress:
        made = {"worker": "1", "seconds": 2, "computed": 1, "loaded": ()}
        progress.told({"event": "started", "key": TEXT, "name": "1"})
        progress.done(TEXT, made)
        progress.told({"event": "progress", "key": STEP, "name": "2", "done": 3, "total": 20})
        title, head, *rows = lines(report, progress)
    assert title.strip() == "0 of 1 video, 1 of 2 entries"
    assert head.split() == ["worker", "stage", "entry", "steps", "time", "videos"]
    assert rows[0].split()[:5] == ["2", "denoise", STEP[:8], "3/20", "0:00"]
    assert "".join(row[head.index("videos") :].strip() for row in rows) == VIDEO
    # the line of the last row has room for ^C, so that the screen does not scroll
    assert max(map(len, [title, head, *rows])) <= WIDTH - len("^C")


def test_a_terminal_has_a_line_for_what_is_done_and_none_for_what_the_table_shows() -> None:
    report = terminal()
    with Progress(GRAPH, report) as progress:
        progress.told({"event": "started", "key": TEXT, "name": "1"})
        progress.done(TEXT, {"worker": "1", "seconds": 2, "computed": 1, "loaded": ()})
    stream = report.console.file
    assert isinstance(stream, io.StringIO)
    assert "encode-text 11111111: done in 2.0 s by worker 1; 1 of 2 entries" in stream.getvalue()
    assert "started" not in stream.getvalue()
