"""Formats events as lines of text for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wanpipe.runtime.units import format_duration, format_si


def describe(kind: str, fields: dict[str, Any]) -> str:
    """Return an event as one line, or an empty text for an event that only programs need."""
    if kind == "reused":
        return reused(fields)
    if kind == "pulled":
        return f"{subject(fields)}: pulled from the remote"
    if kind == "computed" and fields.get("stage") != "denoise":  # its progress is shown already
        return f"{subject(fields)}: computed in {fields['seconds']:.1f} s"
    if kind == "planned":
        return planned(fields)
    if kind == "missing":
        return missing(fields)
    if kind == "collected":
        return collected(fields)
    if kind == "memory":
        return str(fields["text"])
    if kind == "forecast":
        return forecast(fields)
    if kind == "file":
        return f"{fields['name']}: {format_si(fields['bytes'], 'B')}, {fields['status']}"
    if kind in ("download", "downloaded"):
        return download(kind, fields)
    if kind == "written":
        return f"wrote {fields['path']}"
    if kind == "quantized":
        error = f"relative error {100 * fields['relative_error']:.2g}%"
        return f"{fields['component']} {fields['layer']}: quantized, {error}"
    if kind == "nodes":
        return nodes(fields)
    if kind == "sweep":
        return sweep(fields)
    if kind in ("started", "done", "failed", "skipped") and "videos" in fields:
        return node(kind, fields)
    if kind == "lora":
        name = Path(fields["path"]).name
        return f"LoRA {name} at {fields['strength']:g} on {fields['component']}: {fields['text']}"
    return ""


def subject(fields: dict[str, Any]) -> str:
    """Name the entry of an event by stage, short key and, if it has one, step."""
    name = f"{fields['stage']} {fields['key'][:8]}"
    step = fields.get("step")
    return name if step is None else f"{name} (step {step + 1})"


def count(number: int, noun: str) -> str:
    """Format a number with its noun: 1 step, 20 steps, 2 entries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def reused(fields: dict[str, Any]) -> str:
    """Report an entry, or a video file, that already exists."""
    if fields["stage"] == "film":
        return f"{fields['path']} is up to date"
    return f"{subject(fields)}: cached"


def planned(fields: dict[str, Any]) -> str:
    """Report the plan for one entry. A step, or an entry with a reason, has an event `missing`."""
    if fields["status"] != "to compute":
        return f"{subject(fields)}: cached"
    explained = fields["stage"] == "denoise" or fields.get("reason")
    return "" if explained else f"{subject(fields)}: to compute"


def missing(fields: dict[str, Any]) -> str:
    """Report what will be computed, and how the closest entry in the cache differs from it."""
    stage, nearest, line = fields["stage"], fields["nearest"], f"{subject(fields)}: to compute"
    if stage == "denoise":
        line = f"denoise: {count(fields['steps'], 'step')} to compute"
    if nearest is not None and not fields["differences"]:
        line += " again (--force)"
    if fields.get("step"):
        line += f", starting at step {fields['step'] + 1}"
    if nearest is None:
        return line if fields.get("step") else f"{line}. The cache has no {stage} entry yet."
    if not fields["differences"]:
        return line
    what = "run" if stage == "denoise" else "entry"
    return f"{line}. Closest {what}: {nearest[:8]}, which differs in {differing(fields)}."


def differing(fields: dict[str, Any]) -> str:
    """List the differences of an event `missing`: seed (0 → 4) and guidance (2.0 → 6.0)."""
    return listed(
        [f"{one['what']} ({one['there']} → {one['wanted']})" for one in fields["differences"]]
    )


def listed(texts: Sequence[str]) -> str:
    """Join texts as in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def forecast(fields: dict[str, Any]) -> str:
    """Report the memory and time that planned work needs."""
    line = f"{fields['stage']} with {fields['component']}: "
    line += f"{count(fields['units'], 'step')}, " if fields["stage"] == "denoise" else ""
    line += f"at most {format_si(fields['peak_bytes'], 'B')} of memory"
    place = "this device"
    if "devices" in fields:
        place = f"{fields['devices']} of these devices"
        line += f" on each of {fields['devices']} devices ({fields['way']})"
    if "ahead_bytes" in fields:
        line += f", plus {format_si(fields['ahead_bytes'], 'B')} for the next network"
    if fields["seconds"] is None:
        return f"{line}; no time estimate until this stage has run on {place}"
    time = format_duration(max(1, fields["seconds"]))
    if fields.get("at_best"):
        return f"{line}, {time} at best (estimated from recent runs on one device)"
    return f"{line}, about {time} (estimated from recent runs)"


def node(kind: str, fields: dict[str, Any]) -> str:
    """Report what became of an entry of a sweep."""
    line = f"{subject(fields)}: "
    if kind == "started":
        return line + f"started by worker {fields['worker']}"
    if kind != "done":
        return line + f"{kind}, {fields['text']}"
    line += f"done in {fields['seconds']:.1f} s by worker {fields['worker']}"
    line += f"; {fields['ended']} of {count(fields['total'], 'entry')}"
    left = fields["seconds_left"]
    return line if left is None else f"{line}, {format_duration(left)} left"


def nodes(fields: dict[str, Any]) -> str:
    """Report how many entries of a stage a sweep computes."""
    line = f"{fields['stage']}: {fields['nodes']} to compute"
    if fields["stage"] == "denoise" and fields["nodes"]:
        line += f" ({count(fields['units'], 'step')})"
    return line + (f", {fields['cached']} cached" if fields["cached"] else "")


def sweep(fields: dict[str, Any]) -> str:
    """Report what a sweep takes."""
    line = f"{count(fields['videos'], 'video')}, {fields['missing']} to make"
    if not fields["missing"]:
        return line
    line += f": {format_si(fields['bytes'], 'B')} of new entries"
    if fields["peak_bytes"]:
        line += f", at most {format_si(fields['peak_bytes'], 'B')} of memory"
    if fields["seconds"] is None:
        return f"{line}; no time estimate until each stage has run on this device"
    time = format_duration(max(1, fields["seconds"]))
    return f"{line}, about {time} on one device (estimated from recent runs)"


def download(kind: str, fields: dict[str, Any]) -> str:
    """Report a download, or with --dry-run its plan."""
    size = format_si(fields["bytes"], "B")
    line = f"{fields['repository']}: {fields['files']} of {count(fields['of'], 'file')}, {size}"
    if not fields["missing"]:
        return f"{line}, all there"
    missing = format_si(fields["missing"], "B")
    if kind == "download":
        return f"{line}, {missing} to download"
    return f"{line}, {missing} downloaded in {format_duration(fields['seconds'])}"


def collected(fields: dict[str, Any]) -> str:
    """Report what gc removed from a cache, or would remove, and what is left."""
    verb = "would remove" if fields["dry_run"] else "removed"
    removed = f"{count(fields['entries'], 'entry')} ({format_si(fields['bytes'], 'B')})"
    left = f"{count(fields['entries_left'], 'entry')} ({format_si(fields['bytes_left'], 'B')})"
    return f"{verb} {removed}; {left} left"
