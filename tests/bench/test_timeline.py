"""A timeline gives every moment of a process to what it did then."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.timeline import Event, Span, spans, tick, totals, write_picture


def event(at: float, kind: str, **fields: Any) -> Event:
    return Event(at, {"event": kind, **fields})


EVENTS = [
    event(1.0, "memory", component="low_noise_model", text="streamed"),
    event(1.5, "progress", stage="encode-text", done=1, total=1),
    event(2.0, "computed", stage="encode-text"),
    event(2.5, "loaded", component="high_noise_model"),
    event(4.0, "progress", stage="denoise", done=1, total=2),
    event(4.2, "computed", stage="denoise", step=0),
    event(5.0, "loaded", component="low_noise_model"),
    event(7.0, "progress", stage="denoise", done=2, total=2),
    event(7.1, "computed", stage="denoise", step=1),
    event(7.5, "loaded", component="vae"),
    event(8.0, "progress", stage="decode", done=1, total=2),
    event(9.0, "progress", stage="decode", done=2, total=2),
    event(9.2, "computed", stage="decode"),
    event(9.5, "written", path="frames.png"),
]


def test_spans_follow_each_other_from_start_to_end() -> None:
    assert spans(EVENTS, 10.0) == [
        Span("start", "start", "", 0.0, 1.0),
        Span("text", "encode-text", "", 1.0, 2.0),
        Span("loading", "load high_noise_model", "", 2.0, 2.5),
        Span("steps", "steps, high_noise_model", "1", 2.5, 4.0),
        Span("loading", "load low_noise_model", "", 4.0, 5.0),
        Span("steps", "steps, low_noise_model", "2", 5.0, 7.0),
        Span("publishing", "publish denoise", "", 7.0, 7.1),
        Span("loading", "load vae", "", 7.1, 7.5),
        Span("decoding", "decode", "", 7.5, 9.0),
        Span("publishing", "publish decode", "", 9.0, 9.2),
        Span("video", "write the video", "", 9.2, 9.5),
        Span("end", "end", "", 9.5, 10.0),
    ]


def test_a_process_without_events_is_all_start() -> None:
    assert spans([], 3.0) == [Span("start", "start", "", 0.0, 3.0)]


def test_totals_add_the_spans_of_a_kind() -> None:
    kinds = totals(spans(EVENTS, 10.0), "kind")
    assert kinds["steps"] == pytest.approx(3.5)
    assert kinds["loading"] == pytest.approx(1.9)
    assert sum(kinds.values()) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("wall", "distance"), [(0.5, 0.05), (10, 1), (21.5, 2), (57, 5), (600, 50)]
)
def test_the_axis_has_round_numbers(wall: float, distance: float) -> None:
    assert tick(wall) == pytest.approx(distance)


def test_the_picture_is_svg_that_shows_shares_and_seconds(tmp_path: Path) -> None:
    path = tmp_path / "time.svg"
    write_picture(EVENTS, 10.0, path, "a14b & 2 steps")
    drawing = ET.fromstring(path.read_text("utf-8"))
    texts = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a14b & 2 steps: 10.00 s", "steps 35.0%", "start 10.0%", "2: 2.00 s"} <= set(texts)
