"""Lists the entries and runs of a cache with prompts and names, and its disk usage."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wanpipe.runtime import units
from wanpipe.store.index import Summary, disk_usage
from wanpipe.store.runs import Run
from wanpipe.store.schema import STAGES
from wanpipe.store.scratch import own_folders
from wanpipe.store.store import Store

INTERIOR = "denoise, interior steps among them"
NOT_ENTRIES = (".damaged", ".tmp")  # folders that contain no entries


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions of a listing; None is no condition. Case is ignored, ages are in seconds.

    With `steps` every step has a row; otherwise the steps of a run share one.
    """

    stage: str | None = None
    model: str | None = None
    prompt: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    steps: bool = False


@dataclass(frozen=True, kw_only=True)
class ListedEntry:
    """An entry, or a run by its last existing step, with prompt and names.

    `done` is the number of existing steps of a run, `bytes` the size of the entry or of them all.
    """

    row: Summary
    what: str
    prompt: str | None
    names: Sequence[str]
    pinned: bool
    bytes: int
    run: Run | None = None
    done: int | None = None

    @property
    def videos(self) -> list[str]:
        """Paths of the videos that were written of a run, or of frames; the latest last."""
        videos = self.run.videos if self.run else []
        return [one.path for one in videos if self.done is not None or one.frames == self.row.key]

    def to_json(self) -> dict[str, Any]:
        """Return all fields as one JSON object."""
        run = self.run
        about = {
            "run": run and run.key,
            "seed": run and run.seed,
            "steps": run and run.step_count,
            "done": self.done,
            "videos": [video.path for video in run.videos] if run else [],
        }
        row = {name: getattr(self.row, name) for name in self.row.__struct_fields__}
        del row["legacy"]
        return {
            **row,
            **about,
            "what": self.what,
            "bytes": self.bytes,
            "prompt": self.prompt,
            "names": list(self.names),
            "pinned": self.pinned,
        }


def list_entries(store: Store, chosen: Filter) -> list[ListedEntry]:
    """Return the entries that meet the conditions, oldest first, with prompt, names and pin."""
    rows = store.index.read()
    runs = store.runs.all()
    owner = {step: run for run in reversed(runs) for step in run.steps}
    names: dict[str, list[str]] = {}
    for name, entry_id in store.names.all().items():
        names.setdefault(entry_id, []).append(name)
    pins = set(store.pins.all().values())
    models = {row.key: row.what for row in rows.values() if row.stage == "convert"}
    prompt_of = prompt_lookup(rows)
    folded = {} if chosen.steps or chosen.stage == "denoise" else fold_runs(runs, rows)
    folded_ids = {step.id for steps in folded.values() for step in steps}
    now, found = time.time(), []

    def add(row: Summary, run: Run | None, steps: Sequence[Summary]) -> None:
        prompt = prompt_of(row)
        if run is not None and prompt is None:
            prompt = run.prompt
        model = f"{run.model.directory} {run.model.variant}" if run else row.model
        model = f"{model} {models.get(model.split(' ')[0].rpartition('/')[2], '')}"
        if fits(chosen, row, prompt, model, now):
            found.append(
                ListedEntry(
                    row=row,
                    what=settings_summary(row, run),
                    prompt=prompt,
                    names=[name for step in steps for name in names.get(step.id, ())],
                    pinned=any(step.id in pins for step in steps),
                    bytes=sum(step.bytes for step in steps),
                    run=run,
                    done=len(steps) if row.id in folded_ids else None,
                )
            )

    for entry_id, row in rows.items():
        if chosen.stage in (None, row.stage) and entry_id not in folded_ids:
            step = row.inputs.get("step", row.key)
            add(row, owner.get(step), [row])
    for key, steps in folded.items():
        if chosen.stage is None:
            add(steps[-1], next(run for run in runs if run.key == key), steps)
    return sorted(found, key=lambda one: (one.row.time, one.row.step or 0, one.row.key))


def fold_runs(runs: Sequence[Run], rows: Mapping[str, Summary]) -> dict[str, list[Summary]]:
    """Return the existing steps of each run, in order, by the key of the run."""
    folded = {}
    for run in runs:
        steps = [rows[f"denoise/{key}"] for key in run.steps if f"denoise/{key}" in rows]
        if any(step.readable for step in steps):
            folded[run.key] = [step for step in steps if step.readable]
    return folded


def settings_summary(row: Summary, run: Run | None) -> str:
    """Describe an entry in words, without prompt, seed and step."""
    if run is None:
        return row.what
    settings = run.settings
    parts = [f"{settings.width}x{settings.height}", f"{settings.num_frames} frames"]
    parts += [row.what] if row.what else []
    strengths = dict(row.loras)
    acting = [lora for lora in settings.loras if lora.hash in strengths]
    parts += [f"{lora.name} {strengths[lora.hash]}" for lora in acting]
    return ", ".join(parts)


def fits(chosen: Filter, row: Summary, prompt: str | None, model: str, now: float) -> bool:
    """Return whether an entry meets the conditions, except that of the stage."""
    if chosen.prompt is not None and chosen.prompt.lower() not in (prompt or "").lower():
        return False
    if chosen.model is not None and chosen.model.lower() not in model.lower():
        return False
    if chosen.older_than is None and chosen.newer_than is None:
        return True
    age = now - units.parse_timestamp(row.time)
    return (chosen.older_than is None or age > chosen.older_than) and (
        chosen.newer_than is None or age <= chosen.newer_than
    )


def prompt_lookup(rows: Mapping[str, Summary]) -> Callable[[Summary], str | None]:
    """Return a function that returns the prompt of an entry, None if its text was removed."""
    texts = {row.key: row.prompt for row in rows.values() if row.stage == "encode-text"}

    def prompt_of(row: Summary) -> str | None:
        text = row.inputs.get("text")
        if text is None and (step := rows.get(f"denoise/{row.inputs.get('step')}")):
            text = step.inputs.get("text")
        return texts.get(text) if text else row.prompt

    return prompt_of


def usage(store: Store) -> dict[str, dict[str, int]]:
    """Return entries and bytes by stage, of interior steps, of other folders, and in all."""
    rows = list(store.index.read().values())
    parents = {row.parent for row in rows}
    groups: dict[str, list[int]] = {stage: [] for stage in STAGES}
    groups[INTERIOR] = []
    for row in rows:
        groups[row.stage].append(row.bytes)
        if row.stage == "denoise" and row.key in parents:
            groups[INTERIOR].append(row.bytes)
    total = [size for stage in STAGES for size in groups[stage]]
    for name in NOT_ENTRIES:
        homes = own_folders(store.root, name)
        folders = [path for home in homes for path in home.iterdir() if path.is_dir()]
        groups[name] = [disk_usage(path) for path in folders]
        total += groups[name]
    groups["in all"] = total
    return {
        name: {"entries": len(sizes), "bytes": sum(sizes)}
        for name, sizes in groups.items()
        if sizes or name == "in all"
    }
