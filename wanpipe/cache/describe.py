"""Describes an entry or a run in rows of name and value: what it is, and what it was made from.

Reads records only, no array.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError
from wanpipe.runtime.documents import to_builtins
from wanpipe.runtime.units import format_duration, format_si
from wanpipe.store import Entry, Run, Store
from wanpipe.store.entry import read_record
from wanpipe.store.index import disk_usage
from wanpipe.store.schema import ROLES

Rows = Iterator[tuple[str, Any]]
UNSHOWN = {"schema", "stage", "algorithm", "prompt", "negative"}  # fields of the material


def describe_run(run: Run, store: Store) -> Rows:
    """Describe a run: its settings, the steps that exist, and its videos."""
    yield "run", run.key
    yield from describe_settings(run)
    existing = sum(store.path("denoise", key).is_dir() for key in run.steps)
    yield "steps", f"{existing} of {len(run.steps)} in the cache"
    yield "last step", run.last
    for role, key in run.inputs.items():
        yield f"from {role}", f"{ROLES[role]}/{key}"
    if isinstance(run.start, str):
        yield "branches from", f"denoise/{run.start}"
    yield "model", run.model.directory
    for video in run.videos:
        yield f"video {Path(video.path).name}", f"{video.path}, {video.fps:g} frames per second"


def describe_settings(run: Run) -> Rows:
    """Describe the prompts, seed and settings of a run."""
    fields = {"prompt": run.prompt, "negative_prompt": run.negative_prompt, "seed": run.seed}
    yield from ((name, value) for name, value in fields.items() if value is not None)
    yield "settings", to_builtins(run.settings)


def describe_entry(entry: Entry, store: Store) -> Rows:
    """Describe an entry: its material, arrays and origin, back to the prompt and the model."""
    made = entry.made
    yield "entry", str(entry.path)
    yield "stage", entry.stage
    runs = store.runs.of(entry.key) if entry.stage == "denoise" else []
    if entry.stage == "denoise":
        yield "step", f"{entry.step + 1}" + (f" of {runs[0].step_count}" if runs else "")
    if runs:
        yield "run", ", ".join(run.key for run in runs)
        yield from describe_settings(runs[0])
    given = {
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "image": made.image,
        "last_image": made.last_image,
        "video": made.video,
        "mask": made.mask,
        "references": made.references,
        "fit": made.fit,
    }
    yield from ((name, value) for name, value in given.items() if value is not None)
    for name, value in to_builtins(entry.material).items():
        if name not in UNSHOWN and value is not None:
            yield f"material {name}", value
    for name, numbers in made.statistics.items():
        text = ", ".join(f"{key} {value:.4g}" for key, value in to_builtins(numbers).items())
        yield f"array {name}", f"{entry.shape(name)}, {text}"
    if made.concerns:
        yield "concerns", ", ".join(made.concerns)
    yield "on disk", format_si(disk_usage(entry.path), "B")
    place = f"{made.devices} × {made.device}" if made.devices > 1 else made.device
    yield (
        "made",
        f"{made.time} in {format_duration(made.seconds)} ({made.seconds} s) on {place}",
    )
    versions = f"wanpipe {made.wanpipe}, mlx {made.mlx}"
    yield "made with", f"{versions}, peak {format_si(made.peak_bytes, 'B')}"
    if made.bits_by:
        yield "bits follow from", made.bits_by
    labels = [*store.names.of(f"{entry.stage}/{entry.key}")]
    labels += ["pinned"] if store.pins.get(entry.key) else []
    if labels:
        yield "names", ", ".join(labels)
    model = runs[0].model.directory if runs else made.model
    yield "model", model
    if checkpoint := checkpoint_of(model or ""):
        yield "checkpoint", checkpoint
    yield from describe_inputs(entry, store)


def describe_inputs(entry: Entry, store: Store) -> Rows:
    """Describe the entries that an entry was made from, and theirs in turn."""
    for role, key in entry.inputs.items():
        stage = ROLES[role]
        try:
            source = store.peek(stage, key)
            note = f": {summary(source, store)}" if source else " (removed)"
        except StoreError:
            source, note = None, " (damaged)"
        yield f"from {role}", f"{stage}/{key}{note}"
        if source is not None:
            yield from describe_inputs(source, store)


def summary(entry: Entry, store: Store) -> str:
    """Summarize an input: its prompt or image, or its step and seed."""
    if entry.stage != "denoise":
        return entry.made.prompt or entry.made.files
    run = store.runs.latest(entry.key)
    if run is None:
        return f"step {entry.step + 1}"
    return f"step {entry.step + 1} of {run.step_count}, seed {run.seed}"


def checkpoint_of(model: str) -> str | None:
    """Return the checkpoint that a model was converted from, if the model is a cache entry."""
    try:
        return read_record(Path(model)).made.checkpoint
    except StoreError:
        return None
