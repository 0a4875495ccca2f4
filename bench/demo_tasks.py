"""Measures what the demo models make of images, videos and masks that training never saw.

    python -m bench.demo_tasks                                       every task, 50 prompts
    python -m bench.demo_tasks --tasks vace-control i2v-first-last --count 16

Makes the videos with the stages, judges their decoded frames, and prints Markdown rows. With
--cache DIR the entries are kept, and a second run reuses them.
"""

import argparse
import tempfile
import time
from pathlib import Path

# isort: split
import numpy as np
from PIL import Image

from bench.demo import SEED, converted
from bench.train_demo import cases
from bench.train_demo.cases import Case
from bench.train_demo.verdict import NAMES, judge_video, report
from stages import decode, denoise, encode_image, encode_text, encode_video
from wanpipe.pipeline.inputs import Inputs
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model

MODELS = {"i2v": "i2v-a14b", "vace": "vace"}  # by the first word of a task


def save(folder: Path, frames: np.ndarray) -> Path:
    """Write frames (T, Y, X, 3) uint8 as a folder of PNG files."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return folder


def given(model: Model, case: Case, folder: Path, store: Store) -> Inputs:
    """Encode what a case gives: images or first frames for image-to-video, a context for VACE."""
    if model.config.task == "i2v":
        if case.extend:
            clip = save(folder / "clip", case.target[: case.extend])
            params = encode_video.Params(video=clip, extend=case.extend)
            return Inputs(video=encode_video.run(model, params, store))
        known = [int(i) for i in np.flatnonzero(case.mask.max(axis=(1, 2)) == 0)]
        files = sorted(save(folder / "ends", case.target[known]).iterdir())
        paths = dict(zip(known, files, strict=True))
        images = encode_image.Params(image=paths.get(0), last_image=paths.get(len(case.target) - 1))
        return Inputs(image=encode_image.run(model, images, store))
    files: dict = {}
    if case.film:
        files["video"] = save(folder / "video", case.source)
        files["mask"] = save(folder / "mask", np.repeat(case.mask[..., None] * 255, 3, axis=-1))
    if case.reference is not None:
        files["references"] = (folder / "reference.png",)
        Image.fromarray(case.reference).save(folder / "reference.png")
    return Inputs(video=encode_video.run(model, encode_video.Params(**files), store))


def video(model: Model, case: Case, text: Entry, store: Store) -> np.ndarray:
    """Make the video of a case and return its frames (T, Y, X, 3) uint8."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = given(model, case, Path(folder), store)
    settings = denoise.Params(seeds=(SEED + case.number,))
    sources = Inputs(text=text, image=inputs.image, video=inputs.video)
    [step] = denoise.run(model, sources, settings, store)
    return decode.run(model, Inputs(step=step), decode.Params(), store).read("frames")


def measure(name: str, model: Model, count: int, store: Store) -> None:
    """Make and judge the videos of one task, and print its row."""
    started = time.monotonic()
    prompts = [index * 50 // count for index in range(count)]
    chosen = [cases.CASES[name](index) for index in prompts]
    params = encode_text.Params(prompts=tuple(case.prompt for case in chosen))
    texts = encode_text.run(model, params, store)
    judged = [
        judge_video(video(model, case, text, store), case)
        for case, text in zip(chosen, texts, strict=True)
    ]
    report(name, judged, chosen, time.monotonic() - started)


def main() -> None:
    """Measure the chosen tasks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(cases.CASES), choices=list(cases.CASES))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    print(f"| task | videos | {' | '.join(NAMES)} | more |\n|{'---|' * (len(NAMES) + 3)}")
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(args.cache or Path(scratch) / "cache")
        models = {kind: converted(name, store) for kind, name in MODELS.items()}
        for name in args.tasks:
            measure(name, models[name.partition("-")[0]], args.count, store)


if __name__ == "__main__":
    main()
