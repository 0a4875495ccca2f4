"""What a cache holds, at a glance: its entries with prompt and names, and its bytes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def listed(store: Store, chosen: Filter) -> list[dict[str, Any]]:
    """Summaries of entries, oldest first, each with its prompt, names and pin."""
    rows = store.index.read()
    names: dict[str, list[str]] = {}
    for name, place in store.names.all().items():
        names.setdefault(place, []).append(name)
    pins = set(store.pins.all().values())
    models = {row.key: row.what for row in rows.values() if row.stage == "convert"}
    now = time.time()
    found = []
    for row in rows.values():
        if chosen.stage not in (None, row.stage):
            continue
        prompt = prompt_of(row, rows)
        age = now - words.seconds_of(row.time)
        model = f"{row.model} {models.get(row.model.rpartition('/')[2], '')}"
        if fits(chosen, prompt, model, age):
            labels = {"names": names.get(row.place, []), "pinned": row.place in pins}
            found.append({**columns(row), "prompt": prompt, **labels})
    return sorted(found, key=lambda row: (row["time"], row["step"] or 0, row["key"]))


def columns(row: Summary) -> dict[str, Any]:
    """A summary as a dictionary."""
    return {name: getattr(row, name) for name in Summary.__slots__}


def fits(chosen: Filter, prompt: str | None, model: str, age: float) -> bool:
    """Whether an entry meets the conditions but that of the stage."""
    return (
        (chosen.prompt is None or chosen.prompt.lower() in (prompt or "").lower())
        and (chosen.model is None or chosen.model.lower() in model.lower())
        and (chosen.older_than is None or age > chosen.older_than)
        and (chosen.newer_than is None or age <= chosen.newer_than)
    )


def prompt_of(row: Summary, rows: Mapping[str, Summary]) -> str | None:
    """The prompt behind an entry, where its text is still there."""
    if row.prompt is not None:
        return row.prompt
    text, step = row.inputs.get("text"), row.inputs.get("step")
    before = rows.get(f"encode-text/{text}") or rows.get(f"denoise/{step}")
    return prompt_of(before, rows) if before else None


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
