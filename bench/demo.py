"""Measures how well the tiny Wan of wanpipe/demo follows its prompts: films of held-out prompts,
made by the stages as users run them, judged by their decoded frames.

    python bench/demo.py                                   everything, 50 prompts
    python bench/demo.py --parts solvers pair --count 20   some parts, prompts evenly chosen

Prints Markdown rows. With --cache DIR films are kept, and a second run reuses them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# isort: split
import numpy as np

from stages import convert, decode, denoise, encode_image, encode_text
from wanpipe import demo
from wanpipe.demo import judge, world
from wanpipe.models.config import NEGATIVE
from wanpipe.pipeline.sources import Sources
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, open_model

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.models.vae import Decoder, Encoder

NAMES = ("colour", "shape", "motion", "speed", "background", "all")
SEED = 100  # of the first prompt's film; the next prompt has the next seed
TILES = ((48, 16), (64, 16), (64, 32), (72, 48), (80, 64))  # pixels, and how many overlap
FIRST = 500  # seed of the first prompt's image and of its clip for the VAE
GROUP = 32  # the largest group size that divides the widths of the demo's transformers
HEAD = (
    "| model | solver, steps | prompts | colour | shape | motion | speed | background "
    "| colour, shape and motion | more |\n|---|---|---|---|---|---|---|---|---|---|"
)

Case = tuple[int, str, world.Scene]  # number of the prompt, the prompt, what it asks for


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row: the model, how it is run, and what else is told of its films."""

    label: str
    model: Model
    solver: str = "unipc"
    steps: int = 20
    negative: str | None = None
    lora: float | None = None
    given: Path | None = None  # folder of the first frames
    more: Callable[[list[np.ndarray]], str] = field(default=lambda clips: "")


def converted(name: str, store: Store, bits: int | None = None) -> Model:
    """Convert a demo checkpoint, quantised where bits are given."""
    more: dict[str, Any] = {}
    if bits is not None:
        more = {"quantize": True, "bits": bits, "group_size": GROUP}
    with demo.checkpoint(name) as folder:
        return open_model(convert.run(convert.Params(checkpoint_dir=folder, **more), store))


def cases(count: int) -> list[Case]:
    """Choose held-out prompts evenly, each with its number among all."""
    prompts = world.test_prompts()
    chosen = [index * len(prompts) // count for index in range(count)]
    return [(index, *prompts[index]) for index in chosen]


def film(setup: Setup, text: Entry, number: int, store: Store) -> np.ndarray:
    """Make the film of one prompt: frames (T, Y, X, 3) uint8, as the decode entry has them."""
    image = None
    if setup.given is not None:
        asked = encode_image.Params(image=setup.given / f"{number}.png")
        image = encode_image.run(setup.model, asked, store)
    loras = () if setup.lora is None else ((demo.LORA, setup.lora),)
    params = denoise.Params(
        seeds=(SEED + number,), steps=setup.steps, scheduler=setup.solver, lora=loras
    )
    [step] = denoise.run(setup.model, Sources(text=text, image=image), params, store)
    frames = decode.run(setup.model, Sources(step=step), decode.Params(), store)
    return frames.read("frames")


def films(setup: Setup, chosen: list[Case], store: Store) -> list[np.ndarray]:
    """Make the films of some prompts, T5 loaded once."""
    prompts = tuple(prompt for _, prompt, _ in chosen)
    asked = encode_text.Params(prompts=prompts, negative_prompt=setup.negative)
    texts = encode_text.run(setup.model, asked, store)
    return [
        film(setup, text, number, store) for (number, _, _), text in zip(chosen, texts, strict=True)
    ]


def measure(setup: Setup, chosen: list[Case], store: Store) -> None:
    """Make and judge the films of one row, and print it; then what went wrong, as a comment."""
    started = time.monotonic()
    clips = films(setup, chosen, store)
    scores = [judge.score(clip, scene) for clip, (_, _, scene) in zip(clips, chosen, strict=True)]
    shares = " | ".join(share([score[name] for score in scores]) for name in NAMES)
    told = f"{setup.solver}, {setup.steps} | {len(chosen)}"
    print(f"| {setup.label} | {told} | {shares} | {setup.more(clips)} |", flush=True)
    for (number, prompt, _), clip, score in zip(chosen, clips, scores, strict=True):
        wrong = [name for name in NAMES if score[name] is False]
        if wrong:
            print(f"<!-- {number}, {prompt!r}: not {', '.join(wrong)}; {judge.look(clip)} -->")
    print(f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)


def share(answers: Sequence[bool | None]) -> str:
    """Tell how many of the answers that a prompt asks for are right."""
    known = [answer for answer in answers if answer is not None]
    return f"{100 * sum(known) / max(len(known), 1):.0f} %"


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of bytes, in dB."""
    error = ((ours.astype(np.float64) - reference) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def t2v(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model at its default settings."""
    measure(Setup(label="T2V", model=converted("t2v", store)), chosen, store)


def solvers(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model with every solver, at 20, 10 and 4 steps."""
    model = converted("t2v", store)
    for steps in (20, 10, 4):
        for solver in ("unipc", "dpm++", "euler"):
            setup = Setup(label="T2V", model=model, solver=solver, steps=steps)
            measure(setup, chosen, store)


def negatives(chosen: list[Case], store: Store) -> None:
    """Measure the empty negative prompt and the official one."""
    model = converted("t2v", store)
    for label, text in (("official", NEGATIVE), ("empty", "")):
        measure(Setup(label=f"T2V, {label} negative", model=model, negative=text), chosen, store)


def pair(chosen: list[Case], store: Store) -> None:
    """Measure the two experts of text-to-video."""
    model = converted("t2v-a14b", store)
    measure(Setup(label="T2V, two experts", model=model), chosen, store)


def image(chosen: list[Case], store: Store) -> None:
    """Measure the two experts of image-to-video, which get the first frame of a true clip."""
    model = converted("i2v-a14b", store)
    with tempfile.TemporaryDirectory() as folder:
        given = first_frames(chosen, Path(folder))

        def kept(clips: list[np.ndarray]) -> str:
            values = [psnr(clip[0], one) for clip, one in zip(clips, given, strict=True)]
            return f"first frame {np.mean(values):.1f} dB, worst {min(values):.1f} dB"

        setup = Setup(label="I2V, two experts", model=model, given=Path(folder), more=kept)
        measure(setup, chosen, store)


def first_frames(chosen: list[Case], folder: Path) -> list[np.ndarray]:
    """Draw the first frame of every scene, (Y, X, 3) uint8, and write it to the folder."""
    from PIL import Image

    frames = [world.render(scene, seed=FIRST + number)[0] for number, _, scene in chosen]
    for (number, _, _), frame in zip(chosen, frames, strict=True):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return frames


def quantized(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model with its blocks in 8 and in 4 bits."""
    for bits in (8, 4):
        model = converted("t2v", store, bits)
        measure(Setup(label=f"T2V, {bits} bits in groups of {GROUP}", model=model), chosen, store)


def lora(chosen: list[Case], store: Store) -> None:
    """Measure the outline LoRA at three strengths: how many films show outlines."""

    def outlined(clips: list[np.ndarray]) -> str:
        lines = share([judge.look(clip).outline for clip in clips])
        return f"{lines} outlines, inside {100 * np.mean([inside(c) for c in clips]):.0f} % filled"

    model = converted("t2v", store)
    for strength in (0.0, 0.5, 1.0):
        label = f"T2V, outline LoRA at {strength:g}"
        measure(Setup(label=label, model=model, lora=strength, more=outlined), chosen, store)


def inside(frames: np.ndarray) -> float:
    """How full the inside of the shape is, 0 to 1, in the median frame."""
    pixels = frames.astype(np.float32)
    cover, _ = judge.separate(pixels, judge.backdrop(pixels))
    return 0.0 if cover is None else float(np.median(judge.outlines(cover)[2]))


def vae(chosen: list[Case], store: Store) -> None:
    """Measure encoder and decoder on clips of held-out scenes, filled and outlined."""
    print("\n| VAE, there and back | clips | pooled | mean | worst |\n|---|---|---|---|---|")
    for label, outline in (("filled shapes", False), ("outlines", True)):
        clips, backs = zip(*round_trips(chosen, outline, store), strict=True)
        values = [psnr(back, clip) for clip, back in zip(clips, backs, strict=True)]
        pooled = psnr(np.stack(backs), np.stack(clips))
        told = f"{pooled:.1f} dB | {np.mean(values):.1f} dB | {min(values):.1f} dB"
        print(f"| {label} | {len(clips)} | {told} |", flush=True)


def round_trips(
    chosen: list[Case], outline: bool, store: Store
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode and decode clips: what went in and what came out, uint8 (T, Y, X, 3)."""
    from wanpipe.models.vae import video_uint8

    encoder, decoder = halves(store)
    for number, _, scene in chosen:
        clip = world.render(scene, seed=FIRST + number, outline=outline)
        yield clip, video_uint8(decoder.frames(encoder(scaled(clip))))


def tiles(chosen: list[Case], store: Store) -> None:
    """Measure decoding in tiles against decoding whole frames."""
    from wanpipe.models import tiling
    from wanpipe.models.vae import video_uint8

    print("\n| tile, overlap | clips | to whole frames | worst pixel |\n|---|---|---|---|")
    encoder, decoder = halves(store)
    scenes = [world.render(scene, seed=FIRST + number) for number, _, scene in chosen[:6]]
    latents = [encoder(scaled(clip)) for clip in scenes]
    whole = np.stack([video_uint8(decoder.frames(latent)) for latent in latents])
    for tile, overlap in TILES:
        pieces = (tiling.decode(decoder, latent, 8, tile, overlap) for latent in latents)
        tiled = np.stack([np.concatenate(list(one)) for one in pieces])
        worst = np.abs(tiled.astype(int) - whole).max()
        told = f"{len(scenes)} | {psnr(tiled, whole):.1f} dB | {worst}"
        print(f"| {tile}, {overlap} | {told} |", flush=True)


def halves(store: Store) -> "tuple[Encoder, Decoder]":
    """Load the demo's VAE."""
    import mlx.core as mx

    from wanpipe.models import vae as networks
    from wanpipe.weights.load import load_network

    model = converted("i2v-a14b", store)
    encoder, decoder = networks.Encoder(model.config.vae), networks.Decoder(model.config.vae)
    load_network(encoder, model.checked("vae_encoder", store), mx.float32)
    load_network(decoder, model.checked("vae", store), mx.float32)
    return encoder, decoder


def scaled(clip: np.ndarray) -> "mx.array":
    """Bytes (T, Y, X, 3) as the VAE takes them."""
    import mlx.core as mx

    return mx.array(clip.astype(np.float32) / 127.5 - 1)


PARTS: dict[str, Callable[[list[Case], Store], None]] = {
    "t2v": t2v,
    "pair": pair,
    "image": image,
    "solvers": solvers,
    "quantized": quantized,
    "lora": lora,
    "negatives": negatives,
    "vae": vae,
    "tiles": tiles,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--count", type=int, default=50, help="prompts, of 50")
    parser.add_argument("--cache", type=Path, help="keep entries here; default: a temporary one")
    asked = parser.parse_args(arguments)
    import mlx.core as mx

    from wanpipe.backend.device import describe

    print(f"MLX {mx.__version__}, {describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(asked.cache or Path(folder))
        print(HEAD, flush=True)
        for name in asked.parts:
            PARTS[name](cases(asked.count), store)


if __name__ == "__main__":
    main()
