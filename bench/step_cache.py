"""Measures --step-cache on the demo model, compared with the same videos without it.

    python -m bench.step_cache                              everything
    python -m bench.step_cache --count 2 --steps 20         two prompts, 20 steps

Prints Markdown rows: in how many steps the network ran, the time, and the error. Times are
processor times, which other work on the machine does not change. With --cache DIR the entries are
kept, but reused entries take no time.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# isort: split
import mlx.core as mx
import numpy as np

from bench.demo import SEED, Case, cases, converted, psnr, share
from bench.train_demo import judge
from stages import convert, decode, denoise, encode_text
from wanpipe import demo
from wanpipe.backend.device import describe
from wanpipe.pipeline.inputs import Inputs
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, open_model

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4)
COMPARED = 0.1
HEAD = (
    "| weights | steps | threshold | network ran in | time | latent | frames, worst video "
    "| color, shape and motion |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Video:
    """A video: its last latent, in how many steps the network ran, and the denoising time."""

    latent: np.ndarray
    frames: np.ndarray
    ran: int
    seconds: float


def randomized(store: Store) -> Model:
    """Convert the text-to-video checkpoint with a random transformer."""
    with tempfile.TemporaryDirectory() as folder, demo.checkpoint("t2v") as source:
        copy = Path(folder) / "random"
        shutil.copytree(source, copy)
        [file] = copy.glob("diffusion_pytorch_model*.safetensors")
        mx.random.seed(0)
        weights = {
            name: (mx.random.normal(value.shape) * value.shape[-1] ** -0.5).astype(value.dtype)
            for name, value in mx.load(str(file)).items()
        }
        file.unlink()
        mx.save_safetensors(str(file), weights)
        return open_model(convert.run(convert.Params(checkpoint_dir=copy), store))


def video(
    model: Model, text: Entry, number: int, steps: int, threshold: float, store: Store
) -> Video:
    """Make the video of one prompt; a threshold of 0 computes every step."""
    started = time.process_time()
    params = denoise.Params(seeds=(SEED + number,), steps=steps, step_cache=threshold)
    [last] = denoise.run(model, Inputs(text=text), params, store)
    seconds = time.process_time() - started
    frames = decode.run(model, Inputs(step=last), decode.Params(), store).read("frames")
    ran, step = 0, last
    while True:
        ran += step.made.network_ran is not False
        if step.parent is None:
            break
        [step] = [store.find("denoise", step.parent)]
    return Video(last.read("latent"), frames, ran, seconds)


@dataclass(frozen=True)
class Row:
    """The model, prompts and store of a group of rows."""

    label: str
    model: Model
    chosen: list[Case]
    store: Store

    def videos(self, steps: int, threshold: float) -> list[Video]:
        """Make the video of every prompt, loading T5 once."""
        params = encode_text.Params(prompts=tuple(prompt for _, prompt, _ in self.chosen))
        texts = encode_text.run(self.model, params, self.store)
        return [
            video(self.model, text, number, steps, threshold, self.store)
            for (number, _, _), text in zip(self.chosen, texts, strict=True)
        ]


def measure(row: Row, steps: int, thresholds: Sequence[float]) -> None:
    """Print a row without the step cache, and a row for every threshold.

    After the threshold COMPARED, also prints a row without the cache, with as many steps as the
    network ran in.
    """
    whole = row.videos(steps, 0.0)
    compare(f"{row.label} | {steps} | 0", whole, whole, row.chosen)
    for threshold in thresholds:
        videos = row.videos(steps, threshold)
        compare(f"{row.label} | {steps} | {threshold:g}", videos, whole, row.chosen)
        if threshold == COMPARED:
            fewer = round(float(np.mean([one.ran for one in videos])))
    if COMPARED in thresholds and fewer < steps:
        label = f"{row.label} | {fewer} | 0, against {steps} steps"
        compare(label, row.videos(fewer, 0.0), whole, row.chosen)


def compare(label: str, videos: list[Video], whole: list[Video], chosen: list[Case]) -> None:
    """Print one row: videos against those with every step computed."""
    ran = [one.ran for one in videos]
    spent = sum(one.seconds for one in videos) / sum(one.seconds for one in whole)
    good = [
        judge.score(one.frames, scene)["all"]
        for one, (_, _, scene) in zip(videos, chosen, strict=True)
    ]
    pairs = list(zip(videos, whole, strict=True))
    latents = [np.linalg.norm(a.latent - b.latent) / np.linalg.norm(b.latent) for a, b in pairs]
    changes = "same | same"
    if any(latents):
        ours, theirs = (np.stack([pair[i].frames for pair in pairs]) for i in (0, 1))
        worst = min(map(psnr, ours, theirs))
        changes = f"{100 * np.mean(latents):.2g} % | {psnr(ours, theirs):.1f} dB, {worst:.1f} dB"
    steps = f"{np.mean(ran):.1f} ({min(ran)} to {max(ran)})" if min(ran) < max(ran) else f"{ran[0]}"
    print(f"| {label} | {steps} | {spent:.2f} | {changes} | {share(good)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10, help="Number of prompts, of 50.")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50], help="Default: 20 50.")
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=list(THRESHOLDS), help="For --step-cache."
    )
    parser.add_argument("--cache", type=Path, help="Keep the cache here; default: a temporary one.")
    args = parser.parse_args(arguments)
    print(f"MLX {mx.__version__}, {describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.cache or Path(folder))
        print(HEAD, flush=True)
        model, chosen = converted("t2v", store), cases(args.count)
        with tempfile.TemporaryDirectory() as other:  # warm-up
            [text] = encode_text.run(model, encode_text.Params(prompts=("",)), Store(other))
            video(model, text, 0, 4, 0.0, Store(other))
        for steps in args.steps:
            measure(Row("trained", model, chosen, store), steps, args.thresholds)
        measure(Row("random", randomized(store), chosen[:2], store), 20, [0.1, 1.0])


if __name__ == "__main__":
    main()
