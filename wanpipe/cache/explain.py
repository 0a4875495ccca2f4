"""Explains why an entry does not exist: the closest one that does, and every field that differs.

Reads records and runs only. Field names come from the declaration of the stage.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError
from wanpipe.runtime.documents import to_builtins
from wanpipe.runtime.units import quote
from wanpipe.store.entry import read_record
from wanpipe.store.index import Summary
from wanpipe.store.recipe import Recipe
from wanpipe.store.runs import Settings
from wanpipe.store.schema import Record, field_metas

CANDIDATES = 1000  # entries to compare, the most similar and latest first
# labels of the settings that define the schedule of a run, and of those that define its size
STEPS = {"steps": "steps", "shift": "shift", "scheduler": "solver", "timesteps": "timesteps"}
SIZE = {
    "width": "width",
    "height": "height",
    "num_frames": "frames",
    "trim_first_frames": "trimmed frames",
}


@dataclass(frozen=True)
class Difference:
    """One field in which the existing entry (`there`) and the planned one (`wanted`) differ."""

    what: str
    there: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what} {self.there} → {self.wanted}"


@dataclass(frozen=True)
class Explanation:
    """The closest entry (None if none compares), what is the same in it, and what differs."""

    nearest: str | None
    same: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        if self.nearest is None:
            return ""
        if not self.differences:
            return "exists, computed again by --force"
        known = f"{', '.join(self.same)}: same; " if self.same else ""
        return known + ", ".join(map(str, self.differences))


@dataclass(frozen=True)
class Known:
    """Facts that records do not have: prompts of texts and settings of steps, both by key, and the
    settings that are planned.
    """

    root: Path
    prompts: Callable[[str], str | None]
    settings: Callable[[str], Settings | None]
    planned: Settings | None


def explain(recipe: Recipe, rows: Iterable[Summary], known: Known) -> Explanation:
    """Compare what would be computed with the closest entry in `rows`."""
    best: tuple[Record, list[Difference]] | None = None
    for summary in candidates(recipe, rows):
        try:
            record = read_record(known.root / summary.id)
        except StoreError:
            continue  # damaged, or being removed: reported when it is used
        found = differences(recipe, record, known)
        if best is None or len(found) < len(best[1]):
            best = record, found
    if best is None:
        return Explanation(None)
    record, found = best
    return Explanation(record.key, same_fields(recipe, record), tuple(found))


def same_fields(recipe: Recipe, record: Record) -> tuple[str, ...]:
    """Name the important fields that are the same, in words."""
    wanted, existing = recipe.material_dict, to_builtins(record.material)
    return tuple(
        meta.extra["same"]
        for name, meta in field_metas(recipe.stage_spec.material).items()
        if meta.extra and "same" in meta.extra
        if wanted.get(name) is not None and fields_agree(name, recipe, record, wanted, existing)
    )


def fields_agree(
    name: str, recipe: Recipe, record: Record, wanted: dict[str, Any], existing: dict[str, Any]
) -> bool:
    """Whether two materials have the same value or the same input in a field.

    Values can differ for the same input: at guidance 1 a step has the key of its prompt alone.
    """
    key = recipe.inputs.get(name)
    return wanted.get(name) == existing.get(name) or (
        key is not None and key == record.inputs.get(name)
    )


def candidates(recipe: Recipe, rows: Iterable[Summary]) -> list[Summary]:
    """Return entries of the same stage, and of the same step after the same parent.

    Those with the same inputs come first, then the latest.
    """
    wanted = (recipe.stage, recipe.step, recipe.parent)
    fitting = [row for row in rows if (row.stage, row.step, row.parent) == wanted]
    fitting.sort(key=lambda row: (row.inputs == recipe.inputs, row.time), reverse=True)
    return fitting[:CANDIDATES]


def differences(recipe: Recipe, record: Record, known: Known) -> list[Difference]:
    """Return every field in which an entry differs from the recipe, important ones first."""
    wanted, existing = recipe.material_dict, to_builtins(record.material)
    fields = field_metas(recipe.stage_spec.material)
    pair = (known.settings(record.key), known.planned)
    found: list[Difference] = []
    for name, meta in fields.items():
        if name == "step_noise" or fields_agree(name, recipe, record, wanted, existing):
            continue  # the noise of a step follows from seed and solver
        grid = bool(meta.extra and meta.extra.get("grid"))
        if name == "noise" and isinstance(existing.get(name), dict) and name in wanted:
            found += noise_differences(
                existing[name], wanted[name], settings_differences(SIZE, *pair)
            )
        elif not grid or not (steps := settings_differences(STEPS, *pair)):
            values = existing.get(name), wanted.get(name)
            if name == "text":  # at guidance 1 the material has the key of the prompt alone
                values = record.inputs.get(name, values[0]), recipe.inputs.get(name, values[1])
            old = format_value(name, values[0], to_builtins(record.made), pair[0], known)
            new = format_value(name, values[1], recipe.made, pair[1], known)
            found.append(Difference(meta.title or name, old, new))
        else:
            found += [one for one in steps if one not in found]
    return found


def settings_differences(
    names: dict[str, str], existing: Settings | None, wanted: Settings | None
) -> list[Difference]:
    """Return the named settings in which two runs differ; none if a run is unknown."""
    if existing is None or wanted is None:
        return []
    before, after = to_builtins(existing), to_builtins(wanted)
    return [
        Difference(label, format_brief(before[name]), format_brief(after[name]))
        for name, label in names.items()
        if before[name] != after[name]
    ]


def noise_differences(
    existing: dict[str, Any], wanted: dict[str, Any], size: list[Difference]
) -> list[Difference]:
    """Return how two start noises differ, the size in terms of the settings if they are known."""
    labels = {"algorithm": "noise", "seed": "seed", "digest": "given noise"}
    if not size:
        labels["shape"] = "size of the latent"
    return size + [
        Difference(label, format_brief(existing.get(name)), format_brief(wanted.get(name)))
        for name, label in labels.items()
        if existing.get(name) != wanted.get(name)
    ]


def format_value(
    name: str, value: Any, made: dict[str, Any], settings: Settings | None, known: Known
) -> str:
    """Format a value of the material: prompts replace token ids and keys of texts."""
    if name == "text" and isinstance(value, str):
        prompt = known.prompts(value)
        return value[:8] if prompt is None else quote(prompt)
    field = {"prompt": "prompt", "negative": "negative_prompt"}.get(name)
    if field in made:
        return quote(made[field])
    if name == "loras" and isinstance(value, list):
        names = {lora.hash: lora.name for lora in settings.loras} if settings else {}
        parts = [
            f"{names.get(digest, format_brief(digest))} {strength}" for digest, strength in value
        ]
        return " + ".join(parts) or "none"
    if name == "nag" and isinstance(value, dict):
        return f"{value['scale']:g} (tau {value['tau']:g}, alpha {value['alpha']:g})"
    if name == "step_cache" and isinstance(value, dict):
        return f"{value['threshold']:g} ({value['since']} steps after a reset)"
    return format_brief(value)


def format_brief(value: Any) -> str:
    """Format a value briefly: keys and hashes have eight digits."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value if len(value) < 24 else f"{value[:8]}…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 32 else f"{text[:31]}…"
