"""Measures the cache: publishing, finding, listing, previews, codecs, and bytes per step.

    python -m bench.cache [--entries N] [--folder DIR]

Prints Markdown tables. Takes two minutes and 500 MB of disk. A step's computation is a wait, as it
is for the host of a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np

from wanpipe.models.geometry import latent_shape
from wanpipe.models.vae.vae import to_uint8
from wanpipe.pipeline.frames import take_behind
from wanpipe.runtime.documents import convert, encode, to_builtins
from wanpipe.store import Draft, Publisher, Recipe, Run, Store, material
from wanpipe.store.entry import ATTRIBUTE, seal_of
from wanpipe.store.runs import with_key

SHAPE = (16, 21, 60, 104)  # the latent of 832x480, 81 frames
ARRAYS = ("latent", "x0", "solver/sample", "solver/x0_before")  # of a UniPC step
STEP = 1.0  # seconds; the goal for a step of 1.3B on one H100
PIECES, PIECE = 21, 0.043  # pieces of a video, seconds each; 0.9 s per video on one H100
STEPS = 50
SETTINGS = {"width": 832, "height": 480, "num_frames": 81, "steps": STEPS}
SETTINGS |= {"guide_scale": [5.0, 5.0], "shift": 5.0, "scheduler": "unipc"}
HASH = "{:032x}".format
MODELS = {  # channels, stride, width, height, frames, steps
    "Wan2.1 T2V 1.3B, I2V 480P": (16, (4, 8, 8), 832, 480, 81, 50),
    "Wan2.1 14B, Wan2.2 A14B": (16, (4, 8, 8), 1280, 720, 81, 40),
    "Wan2.2 TI2V-5B": (48, (4, 16, 16), 1280, 704, 121, 50),
}


def latents(seed: int) -> dict[str, np.ndarray]:
    """Draw the arrays of a step: noise, and fields as smooth as a latent."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(SHAPE, dtype=np.float32)
    smooth = np.cumsum(generator.standard_normal(SHAPE, dtype=np.float32), axis=-1)
    smooth /= smooth.std()
    return dict(zip(ARRAYS, (noise, smooth, noise + smooth, smooth * 0.9), strict=True))


def filler(arrays: dict[str, np.ndarray], seconds: float) -> Callable[[Draft], dict[str, Any]]:
    """Return a function that waits `seconds` and then writes the arrays."""

    def fill(draft: Draft) -> dict[str, Any]:
        time.sleep(seconds)
        for name, array in arrays.items():
            draft.write(name, array.copy())  # a copy, like from a device
        return {"wanpipe": "0", "mlx": "0", "device": "none", "peak_bytes": 0}

    return fill


def recipe(number: int, step: int = 0, parent: str | None = None) -> Recipe:
    """Return the recipe of a step of a run."""
    noise = {"algorithm": "none", "seed": number, "shape": list(SHAPE)}
    made = material(
        "denoise",
        **({"parent": parent} if parent else {"noise": noise}),
        text=HASH(1),
        image=None,
        expert=HASH(2),
        loras=[],
        guide_scale=5.0,
        timestep=999.0 - step,
        sigma=1 - step / STEPS,
        sigma_next=1 - (step + 1) / STEPS,
        solver={"name": "unipc", "order": 2},
        dtype="bfloat16",
    )
    return Recipe(material=made, inputs={"text": HASH(1)}, step=step, parent=parent)


def run_of(number: int, steps: list[Recipe]) -> Run:
    """Return the record of a run of these steps."""
    fields = {
        "key": HASH(0),
        "start": to_builtins(steps[0].material.noise),
        "steps": [one.key for one in steps],
        "inputs": {"text": HASH(1)},
        "settings": SETTINGS,
        "dtype": "bfloat16",
        "model": {"key": HASH(3), "directory": "/models/tiny"},
        "seed": number,
        "prompt": "a red circle moves right on a white background",
    }
    return with_key(convert(fields, Run))


def seconds_of(work: Callable[[], object], times: int = 5) -> float:
    """Return the median time of some work, in seconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return median(taken)


def process(*words: str, cwd: Path) -> float:
    """Return the median time of a command as a process, in seconds."""
    command = [sys.executable, "-m", "wanpipe", *words, "--quiet"]
    return seconds_of(
        lambda: subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL), times=3
    )


def formatted(seconds: float) -> str:
    """Format a time in seconds or milliseconds."""
    return f"{seconds:.2f} s" if seconds > 0.5 else f"{seconds * 1e3:.3g} ms"


def publishing(root: Path, steps: int = 10) -> Iterator[tuple[str, str]]:
    """Time the publication of a step, alone and during the computation of the next one."""
    arrays, store = latents(0), Store(root)
    size = sum(array.nbytes for array in arrays.values()) / 1e6
    store.get_or_create(recipe(0), filler(arrays, 0.0))
    numbers = iter(range(1, 100))
    at_once = seconds_of(lambda: store.get_or_create(recipe(next(numbers)), filler(arrays, 0.0)))
    yield f"publish a step ({size:.1f} MB)", f"{formatted(at_once)}, {size / at_once:.0f} MB/s"
    started = time.perf_counter()
    with Publisher(store) as behind:
        for number in range(100, 100 + steps):
            behind.get_or_create(recipe(number), filler(arrays, STEP))
        added = (time.perf_counter() - started) / steps - STEP
        ended = time.perf_counter()
    last = time.perf_counter() - ended
    share = f"{100 * added / STEP:.1f} %"
    yield (
        f"publish it during steps of {STEP:g} s: added per step",
        f"{formatted(added)}, {share}",
    )
    yield "wait for the last step's publication", formatted(last)
    key = recipe(0).key
    yield (
        "find a step and check every digest",
        formatted(seconds_of(lambda: store.find("denoise", key))),
    )


def frames(root: Path) -> Iterator[tuple[str, str]]:
    """Time the publication of a video's frames, alone and during a decode that is a wait."""
    pixels = mx.random.uniform(-0.5, 0.5, (4, 480, 832, 3))
    mx.eval(pixels)
    shape = (4 * PIECES, *pixels.shape[1:])

    def publish_video(seconds: float) -> None:
        def pieces() -> Iterator[np.ndarray]:
            for _ in range(PIECES):
                time.sleep(seconds)
                yield np.array(to_uint8(pixels))

        def fill(draft: Draft) -> dict[str, Any]:
            with draft.stream("frames", shape) as sink:
                take_behind(pieces(), 0, sink.append, lambda: None)
            return {"wanpipe": "0", "mlx": "0", "device": "none", "peak_bytes": 0}

        vae = {"vae": HASH(4), "tiling": None, "trim_first_frames": 0, "dtype": "bfloat16"}
        made = material("decode", step=HASH(next(numbers)), **vae)
        Store(root).get_or_create(Recipe(material=made), fill)

    numbers = iter(range(1000, 1100))
    alone = seconds_of(lambda: publish_video(0.0), 3)
    yield (
        f"convert and publish the frames of a video ({np.prod(shape) / 1e6:.0f} MB)",
        formatted(alone),
    )
    behind = seconds_of(lambda: publish_video(PIECE), 3) - PIECES * PIECE
    yield f"the same during {PIECES} pieces of {1e3 * PIECE:g} ms: added", formatted(behind)


def previews(root: Path) -> Iterator[tuple[str, str]]:
    """Time a contact sheet of ten full-size drafts."""
    store = Store(root / "cache")
    for number in range(10):
        store.get_or_create(recipe(number), filler(latents(number), 0.0))
        store.save_run(run_of(number, [recipe(number), recipe(number, 1)]))
    taken = process("preview", "--all-drafts", "--output", "sheet.png", cwd=root)
    yield "preview of ten drafts, whole process", f"{taken:.2f} s"


def fill_cache(root: Path, count: int) -> list[str]:
    """Write the records of `count` steps without arrays, and of their runs; return the keys."""
    store, keys = Store(root), []
    for number in range(count // STEPS):
        parent, steps = None, []
        for step in range(STEPS):
            one = recipe(number, step, parent)
            made = {"time": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
            record = {
                "schema": 1,
                "stage": "denoise",
                "key": one.key,
                "material": one.material_dict,
            }
            record |= {"inputs": one.inputs, "step": step, "parent": parent}
            record |= {"digest": {}, "files": {}, "made": made}
            group = {"attributes": {ATTRIBUTE: record}, "zarr_format": 3, "node_type": "group"}
            folder = root / "denoise" / one.key
            folder.mkdir(parents=True)
            record["seal"] = seal_of(folder, group)
            (folder / "zarr.json").write_text(json.dumps(group))
            steps.append(one)
            parent = one.key
        run = run_of(number, steps)
        store.runs.path(run.key).parent.mkdir(exist_ok=True)
        store.runs.path(run.key).write_bytes(encode(run))
        keys += [one.key for one in steps]
    return keys


def full_cache(root: Path, count: int) -> Iterator[tuple[str, str]]:
    """Time finding and listing among many entries."""
    keys = fill_cache(root / "cache", count)
    store = Store(root / "cache")
    small = {name: array[:, :2, :4, :4] for name, array in latents(0).items()}
    key = store.get_or_create(recipe(0), filler(small, 0.0)).key
    works: dict[str, Callable[[], object]] = {
        f"among {count:,} entries: check that one exists": lambda: store.has("denoise", key),
        "find one with four small arrays": lambda: store.find("denoise", key),
        "locate by whole key": lambda: store.locate(keys[9]),
        "locate by prefix": lambda: store.locate(keys[9][:12]),
        "the run of a step": lambda: store.runs.of(keys[9]),
    }
    for name, work in works.items():
        yield name, formatted(seconds_of(work, times=9))
    started = time.perf_counter()
    store.index.read()
    yield "rebuild the index", f"{time.perf_counter() - started:.1f} s"
    yield "read the index", f"{seconds_of(store.index.read, 3):.2f} s"
    for words in (("cache", "ls"), ("cache", "ls", "--stage", "decode"), ("cache", "du")):
        yield f"`wanpipe {' '.join(words)}`, whole process", f"{process(*words, cwd=root):.2f} s"
    taken = process("cache", "gc", "--keep-steps", "last", "--dry-run", cwd=root)
    yield "`wanpipe cache gc --keep-steps last --dry-run`", f"{taken:.2f} s"


def codecs() -> Iterator[tuple[str, ...]]:
    """Compare codecs on the two kinds of array in a step."""
    from numcodecs import LZ4, Blosc, Zstd

    arrays = latents(1)
    kinds = {
        "zstd, level 1 (used)": Zstd(1),
        "zstd, level 3": Zstd(3),
        "zstd, level 9": Zstd(9),
        "lz4": LZ4(),
        "blosc: byte shuffle, zstd 1": Blosc("zstd", 1, Blosc.SHUFFLE),
        "blosc: bit shuffle, zstd 1": Blosc("zstd", 1, Blosc.BITSHUFFLE),
    }
    for name, codec in kinds.items():
        cells = [name]
        for array in (arrays["latent"], arrays["x0"]):
            packed = codec.encode(array)
            cells.append(f"{100 * (1 - len(packed) / array.nbytes):.1f} %")
        megabytes = array.nbytes / 1e6
        cells.append(f"{megabytes / seconds_of(lambda: codec.encode(array)):.0f} MB/s")  # noqa: B023
        cells.append(f"{megabytes / seconds_of(lambda: codec.decode(packed)):.0f} MB/s")  # noqa: B023
        yield tuple(cells)


def bytes_per_step(saved: float = 0.076) -> Iterator[tuple[str, ...]]:
    """Compute the disk space of a step at each model's default size; the codec saves `saved`."""
    for name, (channels, stride, width, height, frames, steps) in MODELS.items():
        shape = (channels, *latent_shape(width, height, frames, stride))
        one = float(np.prod(shape)) * 4 * (1 - saved) / 1e6
        size = f"{width}x{height}, {frames} frames"
        yield (
            name,
            size,
            f"{shape}",
            f"{one:.1f} MB",
            f"{4 * one:.0f} MB",
            f"{4 * one * steps / 1e3:.1f} GB",
        )


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    """Print a Markdown table, row by row."""
    print("|" + "|".join(f" {cell} " for cell in head) + "|")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("|" + "|".join(f" {cell} " for cell in row) + "|", flush=True)
    print()


def main() -> None:
    """Measure everything in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=100_000, help="Entries in the full cache.")
    parser.add_argument("--folder", type=Path, help="Directory on the disk to measure.")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        table(("work", "time"), publishing(root / "publishing"))
        table(("work", "time"), frames(root / "frames"))
        (root / "previews").mkdir()
        table(("work", "time"), previews(root / "previews"))
        (root / "full").mkdir()
        table(("work", "time"), full_cache(root / "full", options.entries))
    head = ("codec", "saved on noise", "saved on x0", "writing", "reading")
    table(head, codecs())
    head = ("model", "default size", "latent", "an array", "a step", "a run, every step kept")
    table(head, bytes_per_step())


if __name__ == "__main__":
    main()
