"""What a cache holds, at a glance: its entries and runs with prompt and names, and its bytes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wanpipe.runtime import units
from wanpipe.store.index import Summary, size_of
from wanpipe.store.runs import Run
from wanpipe.store.schema import STAGES
from wanpipe.store.store import Store

INTERIOR = "denoise, interior steps among them"
REST = (".damaged", ".tmp")  # what is no entry


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What to list; None is no condition. Texts are looked for in any case, ages are in seconds.

    With `steps` every step has a row; otherwise the steps of a run share one.
    """

    stage: str | None = None
    model: str | None = None
    prompt: str | None = None
    older_than: float | None = None
    newer_than: float | None = None
    steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry, or the steps of a run by the last one that is there, with prompt and labels.

    `done` are the steps of the run that are there, `bytes` those of all that the row stands for.
    """

    row: Summary
    what: str
    prompt: str | None
    names: Sequence[str]
    pinned: bool
    bytes: int
    run: Run | None = None
    done: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as one object."""
        run = self.run
        about = {
            "run": run and run.key,
            "seed": run and run.seed,
            "steps": run and run.settings.steps,
            "done": self.done,
            "videos": [video.path for video in run.videos] if run else [],
        }
        row = {name: getattr(self.row, name) for name in self.row.__struct_fields__}
        del row["noted"]
        return {
            **row,
            **about,
            "what": self.what,
            "bytes": self.bytes,
            "prompt": self.prompt,
            "names": list(self.names),
            "pinned": self.pinned,
        }


def listed(store: Store, chosen: Filter) -> list[Listed]:
    """Entries that meet the conditions, oldest first, each with its prompt, names and pin."""
    rows = store.index.read()
    runs = store.runs.all()
    owner = {step: run for run in reversed(runs) for step in run.steps}
    names: dict[str, list[str]] = {}
    for name, place in store.names.all().items():
        names.setdefault(place, []).append(name)
    pins = set(store.pins.all().values())
    models = {row.key: row.what for row in rows.values() if row.stage == "convert"}
    prompt_of = prompter(rows)
    folded = {} if chosen.steps or chosen.stage == "denoise" else fold(runs, rows)
    inner = {step.place for steps in folded.values() for step in steps}
    now, found = time.time(), []

    def add(row: Summary, run: Run | None, steps: Sequence[Summary]) -> None:
        prompt = prompt_of(row)
        if run is not None and prompt is None:
            prompt = run.prompt
        model = f"{run.model.directory} {run.model.variant}" if run else row.model
        model = f"{model} {models.get(model.split(' ')[0].rpartition('/')[2], '')}"
        if fits(chosen, row, prompt, model, now):
            found.append(
                Listed(
                    row=row,
                    what=said(row, run),
                    prompt=prompt,
                    names=[name for step in steps for name in names.get(step.place, ())],
                    pinned=any(step.place in pins for step in steps),
                    bytes=sum(step.bytes for step in steps),
                    run=run,
                    done=len(steps) if row.place in inner else None,
                )
            )

    for place, row in rows.items():
        if chosen.stage in (None, row.stage) and place not in inner:
            step = row.inputs.get("step", row.key)
            add(row, owner.get(step), [row])
    for key, steps in folded.items():
        if chosen.stage is None:
            add(steps[-1], next(run for run in runs if run.key == key), steps)
    return sorted(found, key=lambda one: (one.row.time, one.row.step or 0, one.row.key))


def fold(runs: Sequence[Run], rows: Mapping[str, Summary]) -> dict[str, list[Summary]]:
    """The steps of each run that are there, in order, by the key of the run."""
    folded = {}
    for run in runs:
        steps = [rows[f"denoise/{key}"] for key in run.steps if f"denoise/{key}" in rows]
        if any(step.readable for step in steps):
            folded[run.key] = [step for step in steps if step.readable]
    return folded


def said(row: Summary, run: Run | None) -> str:
    """What an entry holds, in words, beside prompt, seed and step."""
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
    """Whether an entry meets the conditions but that of the stage."""
    if chosen.prompt is not None and chosen.prompt.lower() not in (prompt or "").lower():
        return False
    if chosen.model is not None and chosen.model.lower() not in model.lower():
        return False
    if chosen.older_than is None and chosen.newer_than is None:
        return True
    age = now - units.seconds_of(row.time)
    return (chosen.older_than is None or age > chosen.older_than) and (
        chosen.newer_than is None or age <= chosen.newer_than
    )


def prompter(rows: Mapping[str, Summary]) -> Callable[[Summary], str | None]:
    """Return a function that gives the prompt behind an entry, where its text is still there."""
    texts = {row.key: row.prompt for row in rows.values() if row.stage == "encode-text"}

    def prompt_of(row: Summary) -> str | None:
        text = row.inputs.get("text")
        if text is None and (step := rows.get(f"denoise/{row.inputs.get('step')}")):
            text = step.inputs.get("text")
        return texts.get(text) if text else row.prompt

    return prompt_of


def usage(store: Store) -> dict[str, dict[str, int]]:
    """Entries and bytes by stage, of interior steps among them, of what is no entry, and in all."""
    rows = list(store.index.read().values())
    parents = {row.parent for row in rows}
    groups: dict[str, list[int]] = {stage: [] for stage in STAGES}
    groups[INTERIOR] = []
    for row in rows:
        groups[row.stage].append(row.bytes)
        if row.stage == "denoise" and row.key in parents:
            groups[INTERIOR].append(row.bytes)
    total = [size for stage in STAGES for size in groups[stage]]
    for name in REST:
        folders = [path for path in (store.root / name).glob("*") if path.is_dir()]
        groups[name] = [size_of(path) for path in folders]
        total += groups[name]
    groups["in all"] = total
    return {
        name: {"entries": len(sizes), "bytes": sum(sizes)}
        for name, sizes in groups.items()
        if sizes or name == "in all"
    }
