"""Builds small entries for tests of the store: recipes and fill functions, without models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wanpipe.runtime.documents import convert, to_builtins
from wanpipe.runtime.report import Report
from wanpipe.store import Draft, Entry, Recipe, Run, Store, material
from wanpipe.store.runs import with_key

SHAPE = (4, 2, 3, 5)
SETTINGS = {
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "steps": 8,
    "guide_scale": [5.0, 5.0],
    "shift": 5.0,
    "scheduler": "unipc",
}
HASH = "{:032x}".format


class RecordingReport(Report):
    """Keeps events and remarks in lists."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.remarks: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"event": kind, **fields})

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def count(self, kind: str) -> int:
        return sum(event["event"] == kind for event in self.events)


def recipe(number: int = 0, stage: str = "denoise", **more: Any) -> Recipe:
    """Return the first step of seed `number`, whose text does not exist; or a model."""
    if stage == "convert":
        sources = {"config.json": HASH(number)}
        model = {"variant": "tiny", "dtype": "float32", "quantization": None}
        return Recipe(material=material("convert", source=sources, **model), **more)
    noise = {"algorithm": "n", "seed": number, "shape": list(SHAPE)}
    made = material("denoise", noise=noise, text=HASH(1), **step_fields(0))
    return Recipe(material=made, **{"inputs": {"text": HASH(1)}, "step": 0, **more})


def step_fields(step: int, **changes: Any) -> dict[str, Any]:
    """Return the fields of the material of step `step` of eight, without noise, parent and text."""
    return {
        "expert": "e" * 32,
        "loras": [],
        "image": None,
        "guide_scale": 5.0,
        "timestep": 999.0 - 100 * step,
        "sigma": 1.0 - step / 8,
        "sigma_next": 1.0 - (step + 1) / 8,
        "solver": {"name": "unipc", "order": 1},
        "dtype": "float32",
    } | changes


MADE = {"device": "none", "wanpipe": "0", "mlx": "0", "peak_bytes": 0}


def fill(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Callable[[Draft], dict[str, Any]]:
    """Return a function that fills a draft with the arrays of a step, drawn from the seed."""
    return filler(("latent", "x0", "solver/sample"), shape, seed)


def filler(
    names: tuple[str, ...], shape: tuple[int, ...], seed: int
) -> Callable[[Draft], dict[str, Any]]:
    def write(draft: Draft) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        for name in names:
            draft.write(name, generator.standard_normal(shape, dtype=np.float32))
        return dict(MADE)

    return write


def fill_frames(draft: Draft) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 4, 3), dtype=np.uint8)
    with draft.stream("frames", pixels.shape) as sink:
        sink.append(pixels)
    return dict(MADE)


def fill_model(draft: Draft) -> dict[str, Any]:
    (draft.path / "config.json").write_text("{}")
    draft.attach("config.json")
    return dict(MADE)


def forbidden(draft: Draft) -> dict[str, Any]:
    raise AssertionError("computed again")


def arrays(entry: Entry) -> dict[str, bytes]:
    return {name: entry.read(name).tobytes() for name in entry.names}


def text(store: Store, prompt: str = "a cat") -> Entry:
    made = {"prompt": prompt, "negative_prompt": "", "model": "/models/tiny"}
    fields = {
        "t5": HASH(2),
        "tokenizer": HASH(3),
        "prompt": [len(prompt), *prompt.encode()],
        "negative": [1],
        "text_len": 512,
        "dtype": "float32",
    }
    entry = Recipe(material=material("encode-text", **fields), made=made)
    return store.get_or_create(entry, filler(("prompt", "negative"), (3, 5), len(prompt)))


def step_recipe(
    words: Entry, step: int, parent: str | None, seed: int = 1, **changes: Any
) -> Recipe:
    """Return a step of a run of eight; `changes` may have guide_scale, shift and so on."""
    settings = SETTINGS | {name: changes[name] for name in changes if name in SETTINGS}
    noise = {"algorithm": "n", "seed": seed, "shape": list(SHAPE)}
    made = material(
        "denoise",
        **({"parent": parent} if parent else {"noise": noise}),
        text=words.key,
        **step_fields(
            step,
            guide_scale=changes.get("guide_scale", [5.0])[0],
            timestep=999.0 - 100 * step - settings["shift"],
            solver={"name": settings["scheduler"], "order": 1},
        ),
    )
    return Recipe(material=made, inputs={"text": words.key}, step=step, parent=parent)


def run_of(words: Entry, recipes: Sequence[Recipe], seed: int = 1, **changes: Any) -> Run:
    """Return the run of these steps."""
    first = recipes[0]
    start = first.parent or to_builtins(first.material.noise)
    settings = SETTINGS | {name: changes[name] for name in changes if name in SETTINGS}
    fields = {
        "key": HASH(0),
        "start": start,
        "first": first.step,
        "steps": [recipe.key for recipe in recipes],
        "inputs": {"text": words.key},
        "settings": settings,
        "dtype": "float32",
        "model": {"key": HASH(9), "directory": "/models/tiny"},
        "seed": seed,
        "prompt": words.made.prompt,
        "fps": 16.0,
    }
    return with_key(convert(fields, Run))


def chain(
    store: Store,
    words: Entry,
    steps: int,
    after: Entry | None = None,
    seed: int = 1,
    **changes: Any,
) -> list[Entry]:
    """Make the steps of a run from the noise, or from `after` on, up to step number `steps`, and
    save the run of all eight.
    """
    first = 0 if after is None else after.step + 1
    parent, recipes = (after.key if after else None), []
    for step in range(first, 8):
        recipes.append(step_recipe(words, step, parent, seed, **changes))
        parent = recipes[-1].key
    store.save_run(run_of(words, recipes, seed, **changes))
    return [
        store.get_or_create(recipe, fill(first + index + 100 * seed))
        for index, recipe in enumerate(recipes[: steps - first])
    ]


def frames(store: Store, step: Entry) -> Entry:
    decoding = material(
        "decode", vae=HASH(4), step=step.key, tiling=None, trim_first_frames=0, dtype="float32"
    )
    recipe = Recipe(material=decoding, inputs={"step": step.key}, made={"model": "/models/tiny"})
    return store.get_or_create(recipe, fill_frames)


def tree(root: Path) -> dict[str, bytes]:
    """Return every file below `root` with its bytes, without the index."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (".index", ".hashes.json")
    }
