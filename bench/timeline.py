"""Draws where the time of a process goes, from the events that it printed.

A process does one thing after another, so every moment belongs to the next event that ends
something. Entries are published behind the steps; only waiting for them is a span of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

# kinds of work in the order of the legend, in colors that color-blind people can tell apart
COLORS = {
    "start": "#7f7f7f",
    "convert": "#8c6d31",
    "text": "#cc79a7",
    "image": "#d55e00",
    "loading": "#e69f00",
    "steps": "#0072b2",
    "decoding": "#009e73",
    "publishing": "#56b4e9",
    "video": "#b8a600",
    "end": "#4d4d4d",
}
ENCODINGS = {"convert": "convert", "encode-text": "text", "encode-image": "image"}
LEFT, WIDTH, RIGHT = 210, 860, 150  # pixels of the names, the time, and the seconds
TOP, ROW, BAR = 96, 28, 20
COLUMNS = 5  # of the legend
END = "text-anchor='end'"
LETTER = 7  # pixels, about, of a small letter


@dataclass(frozen=True)
class Event:
    """An event of the command; `at` is in seconds since the process started."""

    at: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Something that the process did: its kind, its row in the picture, and a short label."""

    kind: str
    row: str
    label: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def spans(events: Sequence[Event], wall: float) -> list[Span]:
    """Divide the whole time of a process, `wall`, among what it did. Spans follow each other."""
    found = [Span("start", "start", "", 0.0, events[0].at if events else wall)]
    if not events:
        return found
    stepping, network = False, "steps"  # whether steps are left
    for event in events:
        kind, stage = event.fields["event"], event.fields.get("stage")
        closed: tuple[str, str, str] | None = None
        component = event.fields.get("component") or ""
        if kind in ("loaded", "progress") and component.endswith("noise_model"):
            network = f"steps, {component}"
        if kind == "loaded":
            closed = ("loading", f"load {component}", "")
        elif kind == "progress" and stage == "denoise":
            stepping = event.fields["done"] < event.fields["total"]
            closed = ("steps", network, str(event.fields["done"]))
        elif kind == "progress" and stage == "decode":
            closed = ("decoding", "decode", "")
        elif kind == "computed" and stage in ENCODINGS:
            closed = (ENCODINGS[stage], stage, "")
        elif kind == "computed" and not stepping:
            closed = ("publishing", f"publish {stage}", "")
        elif kind == "written":
            closed = ("video", "write the video", "")
        if closed is not None:
            found.append(Span(*closed, found[-1].end, event.at))
    return joined([*found, Span("end", "end", "", found[-1].end, wall)])


def joined(found: Sequence[Span]) -> list[Span]:
    """Join spans of one row that follow each other, except steps."""
    result: list[Span] = []
    for span in found:
        if result and span.kind != "steps" and result[-1].row == span.row:
            span = Span(span.kind, span.row, span.label, result.pop().start, span.end)
        result.append(span)
    return result


def totals(found: Sequence[Span], field: str) -> dict[str, float]:
    """Return the seconds of each kind or row, in the order in which they begin."""
    seconds: dict[str, float] = {}
    for span in found:
        name = getattr(span, field)
        seconds[name] = seconds.get(name, 0.0) + span.seconds
    return seconds


def write_trace(events: Sequence[Event], wall: float, path: Path) -> None:
    """Write a timeline in Chrome's trace format: what took time, and when each event came."""
    common = {"pid": 1, "tid": 1}
    rows: list[dict[str, Any]] = [
        {
            "name": f"{span.row} {span.label}".strip(),
            "cat": span.kind,
            "ph": "X",
            "ts": 1e6 * span.start,
            "dur": 1e6 * span.seconds,
            **common,
        }
        for span in spans(events, wall)
    ]
    for event in events:
        fields = event.fields
        names = (fields["event"], *(fields.get(key) for key in ("stage", "component", "step")))
        name = " ".join(str(part) for part in names if part is not None)
        rows.append({"name": name, "ph": "i", "s": "p", "ts": 1e6 * event.at, **common})
    path.write_text(json.dumps({"traceEvents": rows}), encoding="utf-8")


def write_picture(events: Sequence[Event], wall: float, path: Path, title: str) -> None:
    """Draw a timeline as SVG: the whole, the share of each kind, and one row for each work."""
    found = spans(events, wall)
    rows, kinds = totals(found, "row"), totals(found, "kind")
    first = TOP + 22 * -(-len(kinds) // COLUMNS) + 14
    bottom = first + ROW * len(rows)
    scale = WIDTH / wall
    parts = [
        text(20, 32, f"{title}: {seconds(wall)}", "font-size='20' font-weight='bold'"),
        text(LEFT - 10, 68, "the whole process", END),
        *(bar(span, 50, 26, scale) for span in found),
        *draw_legend(kinds, wall),
        *draw_axis(wall, first - 6, bottom),
    ]
    for index, (row, took) in enumerate(rows.items()):
        y = first + ROW * index
        parts.append(text(LEFT - 10, y + 15, row, END))
        parts += [bar(span, y, BAR, scale) for span in found if span.row == row]
        parts.append(text(LEFT + WIDTH + 80, y + 15, seconds(took), END))
        parts.append(text(LEFT + WIDTH + 140, y + 15, f"{took / wall:.1%}", END))
    size = f"width='{LEFT + WIDTH + RIGHT}' height='{bottom + 40}'"
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='sans-serif' font-size='13'>"
    )
    paper = "<rect width='100%' height='100%' fill='white'/>"
    path.write_text("\n".join([head, paper, *parts, "</svg>\n"]), encoding="utf-8")


def draw_legend(kinds: dict[str, float], wall: float) -> list[str]:
    """Draw the share of each kind."""
    drawn = []
    for index, kind in enumerate(name for name in COLORS if name in kinds):
        x = LEFT + index % COLUMNS * WIDTH // COLUMNS
        y = TOP + 22 * (index // COLUMNS)
        drawn.append(f"<rect x='{x}' y='{y - 11}' width='13' height='13' fill='{COLORS[kind]}'/>")
        drawn.append(text(x + 18, y, f"{kind} {kinds[kind] / wall:.1%}"))
    return drawn


def draw_axis(wall: float, top: float, bottom: float) -> list[str]:
    """Draw lines at round numbers of seconds."""
    distance = tick(wall)
    drawn = []
    for number in range(int(wall / distance) + 1):
        x = LEFT + number * distance * WIDTH / wall
        drawn.append(f"<path d='M{x:.1f} {top} V{bottom}' stroke='#d0d0d0'/>")
        drawn.append(text(x, bottom + 18, f"{number * distance:g} s", "text-anchor='middle'"))
    return drawn


def tick(wall: float) -> float:
    """Return 1, 2 or 5 times a power of ten, for at most 12 lines in `wall` seconds."""
    steps = (step * 10.0**power for power in range(-6, 9) for step in (1, 2, 5))
    return next(step for step in steps if wall <= 12 * step)


def bar(span: Span, y: float, height: float, scale: float) -> str:
    """Draw a span, with its label if there is room."""
    x, width = LEFT + span.start * scale, span.seconds * scale
    hint = f"{span.row} {span.label}".strip() + f", {seconds(span.seconds)}"
    drawn = f"<rect x='{x:.2f}' y='{y}' width='{max(width, 0.5):.2f}' height='{height}'"
    drawn += f" fill='{COLORS[span.kind]}'"
    drawn += " stroke='white' stroke-width='1'>" if width > 4 else ">"
    drawn += f"<title>{escape(hint)}</title></rect>"
    labels = (f"{span.label}: {seconds(span.seconds)}", span.label) if span.label else ()
    label = next((one for one in labels if LETTER * len(one) + 8 < width), None)
    if label:
        middle = "text-anchor='middle' fill='white'"
        drawn += text(x + width / 2, y + height / 2 + 5, label, middle)
    return drawn


def text(x: float, y: float, words: str, more: str = "") -> str:
    """Draw words."""
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(words)}</text>"


def seconds(value: float) -> str:
    """Format seconds, or milliseconds."""
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"
