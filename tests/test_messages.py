"""What the command line prints for the events of a run, pinned as people read it."""

from typing import Any

import pytest

from wanpipe.cli.messages import describe, listed

KEY = "321a8e95" + "0" * 24
NEAR = "ec33fb4e" + "0" * 24
GUIDANCE = {"what": "guidance", "there": "2.0", "wanted": "6.0"}
SEED = {"what": "seed", "there": "0", "wanted": "1"}
WIDTH = {"what": "width", "there": "832", "wanted": "480"}
STEP = {"stage": "denoise", "key": KEY, "step": 0}
TEXT = {"stage": "encode-text", "key": KEY, "step": None}


def missing(entry: dict[str, Any], *differences: dict[str, str], **more: Any) -> dict[str, Any]:
    """The fields of an event `missing`."""
    return {**entry, "steps": 20, "nearest": NEAR, "differences": differences, **more}


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (
            "nodes",
            {"stage": "denoise", "nodes": 3, "units": 24, "cached": 1},
            "denoise: 3 to compute (24 steps), 1 cached",
        ),
        (
            "nodes",
            {"stage": "denoise", "nodes": 0, "units": 0, "cached": 2},
            "denoise: 0 to compute, 2 cached",
        ),
        ("sweep", {"videos": 1, "missing": 0}, "1 video, 0 to make"),
        (
            "sweep",
            {"videos": 9, "missing": 8, "bytes": 3e9, "peak_bytes": 12e9, "seconds": 3661},
            "9 videos, 8 to make: 3 GB of new entries, at most 12 GB of memory, about 1:01:01 on "
            "one device (estimated from recent runs)",
        ),
        ("reused", TEXT, "encode-text 321a8e95: cached"),
        ("reused", {**STEP, "step": 7}, "denoise 321a8e95 (step 8): cached"),
        ("reused", {"stage": "film", "path": "cat.mp4"}, "cat.mp4 is up to date"),
        ("computed", {**TEXT, "seconds": 1.23}, "encode-text 321a8e95: computed in 1.2 s"),
        ("computed", {**STEP, "seconds": 1.23}, ""),
        ("planned", {**TEXT, "status": "already there"}, "encode-text 321a8e95: cached"),
        ("planned", {**TEXT, "status": "to compute"}, "encode-text 321a8e95: to compute"),
        ("planned", {**TEXT, "status": "to compute", "reason": "new"}, ""),
        ("planned", {**STEP, "status": "to compute"}, ""),
        (
            "missing",
            missing(STEP, GUIDANCE),
            "denoise: 20 steps to compute. "
            "Closest run: ec33fb4e, which differs in guidance (2.0 → 6.0).",
        ),
        (
            "missing",
            missing({**STEP, "step": 19}, SEED, WIDTH, GUIDANCE, steps=1),
            "denoise: 1 step to compute, starting at step 20. Closest run: ec33fb4e, which differs "
            "in seed (0 → 1), width (832 → 480) and guidance (2.0 → 6.0).",
        ),
        ("missing", missing(STEP), "denoise: 20 steps to compute again (--force)"),
        (
            "missing",
            missing(STEP, nearest=None),
            "denoise: 20 steps to compute. The cache has no denoise entry yet.",
        ),
        (
            "missing",
            missing({**STEP, "step": 8}, nearest=None, steps=12),
            "denoise: 12 steps to compute, starting at step 9",
        ),
        (
            "missing",
            missing(TEXT, nearest=None, steps=1),
            "encode-text 321a8e95: to compute. The cache has no encode-text entry yet.",
        ),
        (
            "missing",
            missing(TEXT, {"what": "prompt", "there": "“a cat”", "wanted": "“a dog”"}, steps=1),
            "encode-text 321a8e95: to compute. "
            "Closest entry: ec33fb4e, which differs in prompt (“a cat” → “a dog”).",
        ),
        (
            "forecast",
            {
                "stage": "denoise",
                "component": "model",
                "units": 20,
                "peak_bytes": 2 * 10**9,
                "seconds": 0.2,
            },
            "denoise with model: 20 steps, at most 2 GB of memory, "
            "about 0:01 (estimated from recent runs)",
        ),
        (
            "forecast",
            {
                "stage": "denoise",
                "component": "model",
                "units": 4,
                "peak_bytes": 2 * 10**9,
                "seconds": 60.0,
                "devices": 2,
                "way": "they share the tokens",
                "at_best": True,
            },
            "denoise with model: 4 steps, at most 2 GB of memory on each of 2 devices (they share "
            "the tokens), 1:00 at best (estimated from recent runs on one device)",
        ),
        (
            "forecast",
            {
                "stage": "decode",
                "component": "vae",
                "units": 1,
                "peak_bytes": 2 * 10**9,
                "seconds": None,
            },
            "decode with vae: at most 2 GB of memory; "
            "no time estimate until this stage has run on this device",
        ),
        (
            "collected",
            {"dry_run": True, "entries": 1, "bytes": 500, "entries_left": 2, "bytes_left": 9000},
            "would remove 1 entry (500 B); 2 entries (9 kB) left",
        ),
        (
            "collected",
            {"dry_run": False, "entries": 0, "bytes": 0, "entries_left": 1, "bytes_left": 9000},
            "removed 0 entries (0 B); 1 entry (9 kB) left",
        ),
        ("written", {"path": "cat.mp4"}, "wrote cat.mp4"),
        (
            "quantized",
            {"component": "model", "layer": "blocks.0", "relative_error": 0.0123},
            "model blocks.0: quantized, relative error 1.2%",
        ),
        ("loaded", {"component": "vae"}, ""),
    ],
)
def test_an_event_is_one_plain_line(kind: str, fields: dict[str, Any], text: str) -> None:
    assert describe(kind, fields) == text


def test_a_list_reads_as_a_sentence() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c"]) == "a, b and c"
