"""Small entries for tests of the store: recipes, and what fills them, without models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wanpipe.report import Report
from wanpipe.store import Draft, Entry, Recipe, Store

SHAPE = (4, 2, 3, 5)
SETTINGS = {
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "steps": 8,
    "guide_scale": [5.0, 5.0],
    "shift": 5.0,
    "scheduler": "unipc",
    "timesteps": None,
    "trim_first_frames": 0,
}


class Heard(Report):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.remarks: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"event": kind, **fields})

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def count(self, kind: str) -> int:
        return sum(event["event"] == kind for event in self.events)


def recipe(number: int = 0, stage: str = "decode", **more: Any) -> Recipe:
    return Recipe(stage=stage, algorithm=1, material={"number": number}, **more)


MADE = {"device": "none", "wanpipe": "0", "mlx": "0", "peak_bytes": 0}


def fill(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Callable[[Draft], dict[str, Any]]:
    """Fills a draft with the arrays of a step, which follow from the seed."""
    return filler(("latent", "x0", "solver/sample"), shape, "CFHW"[-len(shape) :], seed)


def filler(
    names: tuple[str, ...], shape: tuple[int, ...], axes: str, seed: int
) -> Callable[[Draft], dict[str, Any]]:
    def write(draft: Draft) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        for name in names:
            draft.write(name, generator.standard_normal(shape, dtype=np.float32), axes)
        return dict(MADE)

    return write


def fill_frames(draft: Draft) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 4, 3), dtype=np.uint8)
    with draft.stream("frames", pixels.shape, "uint8", ("T", "Y", "X", "C"), 4) as sink:
        sink.append(pixels)
    return dict(MADE)


def forbidden(draft: Draft) -> dict[str, Any]:
    raise AssertionError("computed again")


def arrays(entry: Entry) -> dict[str, bytes]:
    return {name: entry.read(name).tobytes() for name in entry.names}


def text(store: Store, prompt: str = "a cat") -> Entry:
    made = {"prompt": prompt, "negative_prompt": "", "model": "/models/tiny"}
    material = {
        "t5": "t",
        "prompt": [len(prompt), *prompt.encode()],
        "negative": [1],
        "dtype": "float32",
    }
    entry = Recipe(stage="encode-text", algorithm=1, material=material, made=made)
    return store.obtain(entry, filler(("prompt", "negative"), (3, 5), "LD", len(prompt)))


def step_recipe(
    words: Entry, step: int, parent: str | None, seed: int = 1, **changes: Any
) -> Recipe:
    """A step of a run of eight; `changes` may have guide_scale, shift and so on."""
    settings = SETTINGS | {name: changes[name] for name in changes if name in SETTINGS}
    guide = changes.get("guide_scale", [5.0, 5.0])[0]
    start = {"noise": {"algorithm": "n", "seed": seed, "shape": list(SHAPE)}}
    material = {
        **({"parent": parent} if parent else start),
        "expert": "e" * 32,
        "loras": [],
        "text": words.key,
        "image": None,
        "guide_scale": guide,
        "timestep": 999.0 - 100 * step - settings["shift"],
        "sigma": 1.0 - step / 8,
        "sigma_next": 1.0 - (step + 1) / 8,
        "solver": {"name": settings["scheduler"], "order": 1},
        "dtype": "float32",
    }
    return Recipe(
        stage="denoise",
        algorithm=1,
        material=material,
        inputs={"text": words.key},
        extra={"step": step, "parent": parent},
        made={"settings": settings, "seed": seed, "model": "/models/tiny", "vae": "v"},
    )


def chain(
    store: Store,
    words: Entry,
    steps: int,
    after: Entry | None = None,
    seed: int = 1,
    **changes: Any,
) -> list[Entry]:
    """Make the steps of a run from the noise, or from `after` on, up to step number `steps`."""
    first = 0 if after is None else after.record["step"] + 1
    parent, made = (after.key if after else None), []
    for step in range(first, steps):
        entry = store.obtain(
            step_recipe(words, step, parent, seed, **changes), fill(step + 100 * seed)
        )
        made.append(entry)
        parent = entry.key
    return made


def frames(store: Store, step: Entry) -> Entry:
    made = {"fps": 16, "model": "/models/tiny", "lineage": {**SETTINGS, "seed": 1}}
    decoding = Recipe(
        stage="decode",
        algorithm=1,
        material={"vae": "v", "step": step.key},
        inputs={"step": step.key},
        made=made,
    )
    return store.obtain(decoding, fill_frames)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below with its bytes, without what is only a shortcut."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (".index", ".hashes.json")
    }
