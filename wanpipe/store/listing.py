"""What a cache holds, at a glance: its entries with prompt and names, and its bytes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wanpipe import words
from wanpipe.store.index import STAGES, Summary, size_of
from wanpipe.store.store import Store

INTERIOR = "denoise, interior steps among them"
REST = (".damaged", ".tmp")  # what is no entry


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What to list; None is no condition. Texts are looked for in any case, ages are in seconds."""

    stage: str | None = None
    model: str | None = None
    prompt: str | None = None
    older_than: float | None = None
    newer_than: float | None = None


class Listed(NamedTuple):
    """An entry with its prompt and labels."""

    row: Summary
    prompt: str | None
    names: Sequence[str]
    pinned: bool

    def to_json(self) -> dict[str, Any]:
        """All of it as one object."""
        return {
            **self.row._asdict(),
            "prompt": self.prompt,
            "names": list(self.names),
            "pinned": self.pinned,
        }


def listed(store: Store, chosen: Filter) -> list[Listed]:
    """Entries that meet the conditions, oldest first, each with its prompt, names and pin."""
    rows = store.index.read()
    names: dict[str, list[str]] = {}
    for name, place in store.names.all().items():
        names.setdefault(place, []).append(name)
    pins = set(store.pins.all().values())
    models = {row.key: row.what for row in rows.values() if row.stage == "convert"}
    prompt_of = prompter(rows)
    now, anything = time.time(), Filter(stage=chosen.stage)
    found = []
    for place, row in rows.items():
        if chosen.stage in (None, row.stage):
            prompt = prompt_of(row)
            if chosen == anything or fits(chosen, row, prompt, models, now):
                found.append(Listed(row, prompt, names.get(place, ()), place in pins))
    return sorted(found, key=lambda one: (one.row.time, one.row.step or 0, one.row.key))


def fits(
    chosen: Filter, row: Summary, prompt: str | None, models: Mapping[str, str], now: float
) -> bool:
    """Whether an entry meets the conditions but that of the stage."""
    if chosen.prompt is not None and chosen.prompt.lower() not in (prompt or "").lower():
        return False
    if chosen.model is not None:
        model = f"{row.model} {models.get(row.model.rpartition('/')[2], '')}"
        if chosen.model.lower() not in model.lower():
            return False
    if chosen.older_than is None and chosen.newer_than is None:
        return True
    age = now - words.seconds_of(row.time)
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
