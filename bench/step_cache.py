"""Measures --step-cache on the tiny trained Wan of wanpipe/demo: in how many steps the network
runs, what that saves, and what it changes, against the same films without it.

    python -m bench.step_cache                              the table of bench/README.md
    python -m bench.step_cache --count 2 --steps 20         less

Prints Markdown rows. Time is that of the processor, since other work on the machine does not change
it. With --cache DIR entries are kept, but what is found there takes no time.
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
from wanpipe.pipeline.sources import Sources
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, open_model

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4)
COMPARED = 0.1
HEAD = (
    "| weights | steps | threshold | network ran in | time | latent | frames, worst film "
    "| color, shape and motion |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Film:
    """One film: its end, in how many steps the network ran, and what denoising took."""

    latent: np.ndarray
    frames: np.ndarray
    ran: int
    seconds: float


def randomized(store: Store) -> Model:
    """Convert the demo's text-to-video checkpoint with random weights in its transformer."""
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


def film(
    model: Model, text: Entry, number: int, steps: int, threshold: float, store: Store
) -> Film:
    """Make the film of one prompt; threshold 0 computes every step."""
    started = time.process_time()
    params = denoise.Params(seeds=(SEED + number,), steps=steps, step_cache=threshold)
    [last] = denoise.run(model, Sources(text=text), params, store)
    seconds = time.process_time() - started
    frames = decode.run(model, Sources(step=last), decode.Params(), store).read("frames")
    ran, step = 0, last
    while True:
        ran += step.made.network_ran is not False
        if step.parent is None:
            break
        [step] = [store.find("denoise", step.parent)]
    return Film(last.read("latent"), frames, ran, seconds)


@dataclass(frozen=True)
class Row:
    """What the rows of one model have in common."""

    label: str
    model: Model
    chosen: list[Case]
    store: Store

    def films(self, steps: int, threshold: float) -> list[Film]:
        """Make the film of every prompt, T5 loaded once."""
        asked = encode_text.Params(prompts=tuple(prompt for _, prompt, _ in self.chosen))
        texts = encode_text.run(self.model, asked, self.store)
        return [
            film(self.model, text, number, steps, threshold, self.store)
            for (number, _, _), text in zip(self.chosen, texts, strict=True)
        ]


def measure(row: Row, steps: int, thresholds: Sequence[float]) -> None:
    """Print the row of every threshold, after that of the films without a cache; then that of as
    many steps without one as the network ran in at the threshold COMPARED.
    """
    whole = row.films(steps, 0.0)
    compare(f"{row.label} | {steps} | 0", whole, whole, row.chosen)
    for threshold in thresholds:
        films = row.films(steps, threshold)
        compare(f"{row.label} | {steps} | {threshold:g}", films, whole, row.chosen)
        if threshold == COMPARED:
            fewer = round(float(np.mean([one.ran for one in films])))
    if COMPARED in thresholds and fewer < steps:
        label = f"{row.label} | {fewer} | 0, against {steps} steps"
        compare(label, row.films(fewer, 0.0), whole, row.chosen)


def compare(label: str, films: list[Film], whole: list[Film], chosen: list[Case]) -> None:
    """Print one row: films against those whose every step was computed."""
    ran = [one.ran for one in films]
    spent = sum(one.seconds for one in films) / sum(one.seconds for one in whole)
    good = [
        judge.score(f.frames, scene)["all"] for f, (_, _, scene) in zip(films, chosen, strict=True)
    ]
    pairs = list(zip(films, whole, strict=True))
    latents = [np.linalg.norm(a.latent - b.latent) / np.linalg.norm(b.latent) for a, b in pairs]
    changes = "same | same"
    if any(latents):
        ours, theirs = (np.stack([pair[i].frames for pair in pairs]) for i in (0, 1))
        worst = min(map(psnr, ours, theirs))
        changes = f"{100 * np.mean(latents):.2g} % | {psnr(ours, theirs):.1f} dB, {worst:.1f} dB"
    told = f"{np.mean(ran):.1f} ({min(ran)} to {max(ran)})" if min(ran) < max(ran) else f"{ran[0]}"
    print(f"| {label} | {told} | {spent:.2f} | {changes} | {share(good)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10, help="prompts, of 50")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--cache", type=Path, help="keep entries here; default: a temporary one")
    asked = parser.parse_args(arguments)
    print(f"MLX {mx.__version__}, {describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(asked.cache or Path(folder))
        print(HEAD, flush=True)
        model, chosen = converted("t2v", store), cases(asked.count)
        with tempfile.TemporaryDirectory() as other:  # the first film pays for what later ones find
            [text] = encode_text.run(model, encode_text.Params(prompts=("",)), Store(other))
            film(model, text, 0, 4, 0.0, Store(other))
        for steps in asked.steps:
            measure(Row("trained", model, chosen, store), steps, asked.thresholds)
        measure(Row("random", randomized(store), chosen[:2], store), 20, [0.1, 1.0])


if __name__ == "__main__":
    main()
