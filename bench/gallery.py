"""Measures the gallery of a cache of many runs: building it, and opening it in Chromium.

    python -m bench.gallery [--runs N] [--folder DIR] [--small]

Prints a Markdown table. The runs have few steps and small latents, and share one video, so that the
cache is made in a minute; one picture of a step of full size is timed beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.cache import HASH, SETTINGS, filler, formatted, latents, table
from bench.cache import recipe as full_recipe
from bench.cache import run_of as full_run
from tests.browser.chromium import missing, resize, start
from wanpipe.cache.gallery.folder import MARK, VIDEOS, Folder
from wanpipe.cache.gallery.pictures import Colors, PictureWriter
from wanpipe.media.video import write_video
from wanpipe.runtime.documents import convert, encode, to_builtins
from wanpipe.store import Draft, Recipe, Run, Store, key_of, material
from wanpipe.store.runs import with_key

SHAPE = (16, 3, 15, 26)  # a latent of 208x120, 9 frames
STEPS, FPS = 4, 16.0
PROMPTS = ("a cat plays the piano", "a red circle moves right", "rain on a window, at night")
OPENINGS = 5  # of a page; the median is shown


def fill(root: Path, count: int) -> list[Run]:
    """Make a cache of finished runs, and a few unfinished ones; return them."""
    store, runs = Store(root), []
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (9, 120, 208, 3), dtype=np.uint8)
    for number in range(count):
        parent, steps = None, []
        for step in range(STEPS):
            steps.append(step_recipe(number, step, parent))
            parent = steps[-1].key
        finished = number % 10 > 0
        for one in steps if finished else steps[:2]:
            latent = generator.standard_normal(SHAPE, dtype=np.float32)
            store.get_or_create(one, filler({"latent": latent, "x0": 0.5 * latent}, 0.0))
        frames = frames_recipe(steps[-1].key)
        if finished:
            store.get_or_create(frames, frame_filler(pixels))
        runs.append(run_of(number, steps, frames.key if finished else None))
        path = store.runs.path(runs[-1].key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(runs[-1]))
    return runs


def step_recipe(number: int, step: int, parent: str | None) -> Recipe:
    """Return the recipe of a step of a run."""
    one = full_recipe(number, step, parent)
    if parent is not None:
        return one
    noise = {"algorithm": "none", "seed": number, "shape": list(SHAPE)}
    fields = {**one.material_dict, "noise": noise}
    del fields["stage"]
    del fields["schema"]
    del fields["algorithm"]
    return Recipe(material=material("denoise", **fields), inputs=one.inputs, step=0)


def frames_recipe(step: str) -> Recipe:
    """Return the recipe of the frames of a step."""
    vae = {"vae": HASH(4), "tiling": None, "trim_first_frames": 0, "dtype": "float32"}
    return Recipe(material=material("decode", step=step, **vae), inputs={"step": step})


def frame_filler(pixels: np.ndarray) -> Callable[[Draft], dict[str, Any]]:
    """Return a function that writes frames."""

    def write(draft: Draft) -> dict[str, Any]:
        with draft.stream("frames", pixels.shape) as sink:
            sink.append(pixels)
        return {"wanpipe": "0", "mlx": "0", "device": "none", "peak_bytes": 0}

    return write


def run_of(number: int, steps: list[Recipe], frames: str | None) -> Run:
    """Return the record of a run, with its video if it has frames."""
    size = {"width": 208, "height": 120, "num_frames": 9, "steps": STEPS}
    fields: dict[str, Any] = {
        "key": HASH(0),
        "start": to_builtins(steps[0].material.noise),
        "steps": [one.key for one in steps],
        "inputs": {"text": HASH(1)},
        "settings": SETTINGS | size,
        "dtype": "float32",
        "model": {"key": HASH(3 + number % 2), "directory": f"/models/model-{number % 2}"},
        "seed": number,
        "prompt": f"{PROMPTS[number % len(PROMPTS)]}, take {number}",
        "negative_prompt": "static, blurred details, subtitles, worst quality " * 5,
        "fps": FPS,
        "created": f"2026-{1 + number % 12:02d}-{1 + number % 28:02d}T12:00:00+00:00",
    }
    if frames is not None:
        fields["videos"] = [{"path": f"/videos/{number}.mp4", "frames": frames, "fps": FPS}]
    return with_key(convert(fields, Run))


def place_videos(site: Path, runs: list[Run]) -> None:
    """Put one video into the folder of the gallery, under the name of each run's."""
    (site / VIDEOS).mkdir(parents=True)
    (site / MARK).touch()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 120, 208, 3), dtype=np.uint8)
    video = write_video(site.parent / "video.mp4", [pixels], FPS)
    for video_of in (video_of for run in runs for video_of in run.videos):
        key = key_of({"frames": video_of.frames, "fps": video_of.fps})
        os.link(video, site / VIDEOS / f"{key}.mp4")


def build(root: Path) -> float:
    """Time `wanpipe gallery` as a process, in seconds."""
    command = [sys.executable, "-m", "wanpipe", "gallery", "--output", "site", "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def full_size(root: Path) -> float:
    """Time the picture of a step of 832x480, 81 frames, in seconds."""
    store = Store(root)
    one = full_recipe(0)
    step = store.get_or_create(one, filler(latents(0), 0.0)).key
    run = full_run(0, [one, full_recipe(0, 1, step)])
    writer, taken = PictureWriter(root, Folder(root / "pictures-only")), []
    (root / "pictures-only").mkdir()
    for _ in range(5):
        started = time.perf_counter()
        writer.strip(step, run, Colors(root, [], {}))
        taken.append(time.perf_counter() - started)
        for picture in (root / "pictures-only").rglob("*.webp"):
            picture.unlink()
    return median(taken)


def opened(page: Path) -> Iterator[tuple[str, str]]:
    """Time opening a page and filtering its cards, each in a new browser."""
    script = """const entry = performance.getEntriesByType('navigation')[0];
      const paint = performance.getEntriesByName('first-contentful-paint')[0];
      return [paint ? paint.startTime : 0, entry.domContentLoadedEventEnd, entry.loadEventEnd]"""
    search = """const started = performance.now();
      document.forms[0].elements.prompt.value = 'rain';
      document.forms[0].dispatchEvent(new Event('input', {bubbles: true}));
      document.body.getBoundingClientRect();
      return performance.now() - started"""
    times = []
    for _ in range(OPENINGS):
        browser = start()
        try:
            resize(browser, (1280, 900))
            browser.get(page.as_uri())
            time.sleep(0.5)
            loaded = browser.execute_script(script)
            times.append([*loaded, browser.execute_script(search)])
        finally:
            browser.quit()
    names = ("first paint", "ready for input", "everything on the screen loaded", "a filter")
    for name, column in zip(names, zip(*times, strict=True), strict=True):
        yield f"Chromium: {name}", f"{formatted(median(column) / 1e3)}"


def measured(root: Path, count: int) -> Iterator[tuple[str, str]]:
    """Measure everything in a folder."""
    runs = fill(root / "cache", count)
    place_videos(root / "site", runs)
    yield f"build the gallery of {count:,} runs, {STEPS} small steps each", formatted(build(root))
    yield "build it again, nothing new", formatted(build(root))
    yield "picture of a step, 832×480, 81 frames", formatted(full_size(root / "full"))
    page = root / "site" / "index.html"
    yield "the page of all runs", f"{page.stat().st_size / 1e6:.2f} MB"
    if reason := missing():
        yield "Chromium", reason
    else:
        yield from opened(page)


def main() -> None:
    """Measure everything in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="Runs in the cache.")
    parser.add_argument("--folder", type=Path, help="Directory on the disk to measure.")
    parser.add_argument("--small", action="store_true", help="Use 20 runs.")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        count = 20 if options.small else options.runs
        table(("work", "time"), measured(Path(folder), count))


if __name__ == "__main__":
    main()
