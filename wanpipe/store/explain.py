"""Says in words why an entry is not there: the nearest one that is, and every field that differs.

Reads records only. Knows the materials of the stages by the words for their fields.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError
from wanpipe.store.index import Summary, record_at
from wanpipe.store.recipe import Recipe
from wanpipe.words import quoted

CANDIDATES = 1000  # records that are compared, the likeliest and latest of them
HEAD = {"schema": "form of entries", "stage": "stage", "algorithm": "algorithm"}
WORDS: dict[str, dict[str, str]] = {
    "convert": {
        "source": "checkpoint files",
        "variant": "variant",
        "dtype": "dtype",
        "quantization": "quantisation",
    },
    "encode-text": {
        "prompt": "prompt",
        "negative": "negative prompt",
        "t5": "T5",
        "tokenizer": "tokenizer",
        "text_len": "text length",
        "dtype": "compute dtype",
    },
    "encode-image": {
        "pixels": "picture",
        "clip_pixels": "picture for CLIP",
        "vae": "VAE",
        "clip": "CLIP",
        "width": "width",
        "height": "height",
        "num_frames": "frames",
        "mode": "mode",
        "dtype": "compute dtype",
    },
    "denoise": {
        "text": "text",
        "image": "image",
        "noise": "noise",
        "parent": "step before",
        "expert": "transformer",
        "loras": "LoRAs",
        "guide_scale": "guidance",
        "timestep": "timestep",
        "sigma": "noise level",
        "sigma_next": "next noise level",
        "solver": "solver",
        "step_cache": "step cache",
        "dtype": "compute dtype",
    },
    "decode": {
        "step": "step",
        "vae": "VAE",
        "tiling": "tiling",
        "trim_first_frames": "trimmed frames",
        "dtype": "compute dtype",
    },
}
GRID = ("timestep", "sigma", "sigma_next", "solver")  # what the settings in STEPS settle
STEPS = {"steps": "steps", "shift": "shift", "scheduler": "solver", "timesteps": "timesteps"}
SIZE = {
    "width": "width",
    "height": "height",
    "num_frames": "frames",
    "trim_first_frames": "trimmed frames",
}
MAIN = {"text": "text", "image": "image", "noise": "seed", "expert": "model"}


@dataclass(frozen=True)
class Difference:
    """One thing in which two entries differ, in words."""

    what: str
    there: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what} {self.there} → {self.wanted}"


@dataclass(frozen=True)
class Explanation:
    """The nearest entry (None where none compares), what is the same in it, and what differs."""

    nearest: str | None
    same: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        if self.nearest is None:
            return ""
        if not self.differences:
            return "there, made again by --force"
        known = f"{', '.join(self.same)}: same; " if self.same else ""
        return known + ", ".join(map(str, self.differences))


Prompts = Callable[[str], str | None]  # the prompt of a text entry, by key


def explain(recipe: Recipe, rows: Iterable[Summary], root: Path, prompts: Prompts) -> Explanation:
    """Compare what would be computed with the nearest of the entries under `root` in `rows`."""
    best: tuple[dict[str, Any], list[Difference]] | None = None
    for summary in candidates(recipe, rows):
        try:
            record = record_at(root / summary.place)
            found = differences(recipe, record, prompts)
        except (StoreError, KeyError, TypeError, AttributeError):
            continue  # damaged or just being removed: whoever needs it will be told
        if best is None or len(found) < len(best[1]):
            best = record, found
    if best is None:
        return Explanation(None)
    record, found = best
    return Explanation(str(record["key"]), same(recipe.whole, record["material"]), tuple(found))


def same(wanted: dict[str, Any], there: dict[str, Any]) -> tuple[str, ...]:
    """What a person would ask first and need not look for, in words."""
    return tuple(
        label
        for name, label in MAIN.items()
        if wanted.get(name) is not None and wanted.get(name) == there.get(name)
    )


def candidates(recipe: Recipe, rows: Iterable[Summary]) -> list[Summary]:
    """Entries worth comparing with: of the stage, and of the same step after the same one; those
    with the same inputs first, then the latest.
    """
    step, parent = recipe.extra.get("step"), recipe.extra.get("parent")
    fitting = [
        row for row in rows if (row.stage, row.step, row.parent) == (recipe.stage, step, parent)
    ]
    fitting.sort(key=lambda row: (row.inputs == recipe.inputs, row.time), reverse=True)
    return fitting[:CANDIDATES]


def differences(recipe: Recipe, record: dict[str, Any], prompts: Prompts) -> list[Difference]:
    """Every field in which an entry differs from the recipe, the telling ones first."""
    wanted, there = recipe.whole, record["material"]
    words = WORDS.get(recipe.stage, {}) | HEAD
    order = [*words, *(name for name in [*wanted, *there] if name not in words)]
    names = [name for name in dict.fromkeys(order) if wanted.get(name) != there.get(name)]
    made = (record["made"], recipe.made)
    found: list[Difference] = []
    for name in names:
        if name == "noise" and isinstance(there.get(name), dict) and name in wanted:
            found += noise_words(there[name], wanted[name], settings_words(SIZE, *made))
        elif name not in GRID or not (steps := settings_words(STEPS, *made)):
            old = word(name, there.get(name), made[0], prompts)
            new = word(name, wanted.get(name), made[1], prompts)
            found.append(Difference(words.get(name, name), old, new))
        else:
            found += [one for one in steps if one not in found]
    return found


def settings_words(
    names: dict[str, str], there: dict[str, Any], wanted: dict[str, Any]
) -> list[Difference]:
    """Those of the named settings in which two runs differ."""
    before, after = there.get("settings", {}), wanted.get("settings", {})
    return [
        Difference(label, brief(before.get(name)), brief(after.get(name)))
        for name, label in names.items()
        if before.get(name) != after.get(name)
    ]


def noise_words(
    there: dict[str, Any], wanted: dict[str, Any], size: list[Difference]
) -> list[Difference]:
    """How two start noises differ: in seed or digest, and in size, in the words of the settings
    where those tell.
    """
    labels = {"algorithm": "noise", "seed": "seed", "digest": "given noise"}
    if not size:
        labels["shape"] = "size of the latent"
    return size + [
        Difference(label, brief(there.get(name)), brief(wanted.get(name)))
        for name, label in labels.items()
        if there.get(name) != wanted.get(name)
    ]


def word(name: str, value: Any, made: dict[str, Any], prompts: Prompts) -> str:
    """A value of the material in words: prompts in place of token ids and keys of texts."""
    if name == "text" and isinstance(value, str):
        prompt = prompts(value)
        return value[:8] if prompt is None else quoted(prompt)
    noted = {"prompt": "prompt", "negative": "negative_prompt"}.get(name)
    if noted in made:
        return quoted(made[noted])
    if name == "loras" and isinstance(value, list):
        names = {lora["hash"]: lora["name"] for lora in made.get("settings", {}).get("loras", ())}
        told = [f"{names.get(digest, brief(digest))} {strength}" for digest, strength in value]
        return " + ".join(told) or "none"
    if name == "step_cache" and isinstance(value, dict):
        return f"{value['threshold']:g} ({value['since']} steps after a reset)"
    return brief(value)


def brief(value: Any) -> str:
    """A value in few letters: keys and hashes cut to eight digits."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value if len(value) < 24 else f"{value[:8]}…"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 32 else f"{text[:31]}…"
