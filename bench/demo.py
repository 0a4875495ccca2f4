"""Measures how well the demo models follow prompts that training never saw.

    python -m bench.demo                                   everything, 50 prompts
    python -m bench.demo --parts solvers pair --count 20   some parts, evenly chosen prompts

Makes the videos with the stages, judges their decoded frames (bench/train_demo/judge.py), and
prints Markdown rows. With --cache DIR the entries are kept, and a second run reuses them.
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

from bench.train_demo import judge
from bench.train_demo.verdict import NAMES
from stages import convert, decode, denoise, encode_image, encode_text
from wanpipe import demo
from wanpipe.demo import world
from wanpipe.models.variants import NEGATIVE
from wanpipe.pipeline.inputs import Inputs
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, open_model

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.models.vae.vae import Decoder, Encoder

SEED = 100  # seed of the first prompt's video; later prompts count up
TILES = ((48, 16), (64, 16), (64, 32), (72, 48), (80, 64))  # size and overlap in pixels
FIRST = 500  # seed of the first prompt's image and VAE clip
GROUP = 32  # the largest group size that divides the widths of the demo models
HEAD = (
    "| model | solver, steps | prompts | color | shape | motion | speed | background "
    "| color, shape and motion | more |\n|---|---|---|---|---|---|---|---|---|---|"
)

Case = tuple[int, str, world.Scene]  # number of the prompt, prompt, scene


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row: the model, its settings, and what the last column shows."""

    label: str
    model: Model
    solver: str = "unipc"
    steps: int = 20
    negative: str | None = None
    lora: float | None = None
    given: Path | None = None  # folder of first frames
    more: Callable[[list[np.ndarray]], str] = field(default=lambda clips: "")


def converted(name: str, store: Store, bits: int | None = None) -> Model:
    """Convert a demo checkpoint, quantized if `bits` is given."""
    more: dict[str, Any] = {}
    if bits is not None:
        more = {"quantize": True, "bits": bits, "group_size": GROUP}
    with demo.checkpoint(name) as folder:
        return open_model(convert.run(convert.Params(checkpoint_dir=folder, **more), store))


def cases(count: int) -> list[Case]:
    """Choose held-out prompts evenly, each with its number."""
    prompts = world.test_prompts()
    chosen = [index * len(prompts) // count for index in range(count)]
    return [(index, *prompts[index]) for index in chosen]


def video(setup: Setup, text: Entry, number: int, store: Store) -> np.ndarray:
    """Make the video of one prompt and return its frames (T, Y, X, 3), uint8."""
    image = None
    if setup.given is not None:
        params = encode_image.Params(image=setup.given / f"{number}.png")
        image = encode_image.run(setup.model, params, store)
    loras = () if setup.lora is None else ((demo.LORA, setup.lora),)
    settings = denoise.Params(
        seeds=(SEED + number,), steps=setup.steps, scheduler=setup.solver, lora=loras
    )
    [step] = denoise.run(setup.model, Inputs(text=text, image=image), settings, store)
    frames = decode.run(setup.model, Inputs(step=step), decode.Params(), store)
    return frames.read("frames")


def videos(setup: Setup, chosen: list[Case], store: Store) -> list[np.ndarray]:
    """Make the videos of several prompts, loading T5 once."""
    prompts = tuple(prompt for _, prompt, _ in chosen)
    params = encode_text.Params(prompts=prompts, negative_prompt=setup.negative)
    texts = encode_text.run(setup.model, params, store)
    return [
        video(setup, text, number, store)
        for (number, _, _), text in zip(chosen, texts, strict=True)
    ]


def measure(setup: Setup, chosen: list[Case], store: Store) -> None:
    """Make and judge the videos of one row, and print it, with the misses as comments."""
    started = time.monotonic()
    clips = videos(setup, chosen, store)
    scores = [judge.score(clip, scene) for clip, (_, _, scene) in zip(clips, chosen, strict=True)]
    shares = " | ".join(share([score[name] for score in scores]) for name in NAMES)
    how = f"{setup.solver}, {setup.steps} | {len(chosen)}"
    print(f"| {setup.label} | {how} | {shares} | {setup.more(clips)} |", flush=True)
    for (number, prompt, _), clip, score in zip(chosen, clips, scores, strict=True):
        wrong = [name for name in NAMES if score[name] is False]
        if wrong:
            print(f"<!-- {number}, {prompt!r}: not {', '.join(wrong)}; {judge.look(clip)} -->")
    print(f"<!-- {time.monotonic() - started:.0f} s -->", flush=True)


def share(answers: Sequence[bool | None]) -> str:
    """Return the percentage of right answers, without those that the prompt leaves open."""
    known = [answer for answer in answers if answer is not None]
    return f"{100 * sum(known) / max(len(known), 1):.0f} %"


def psnr(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 frames, in dB."""
    error = ((ours.astype(np.float64) - reference) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def t2v(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model with its default settings."""
    measure(Setup(label="T2V", model=converted("t2v", store)), chosen, store)


def solvers(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model with every solver and 20, 10 and 4 steps."""
    model = converted("t2v", store)
    for steps in (20, 10, 4):
        for solver in ("unipc", "dpm++", "euler"):
            setup = Setup(label="T2V", model=model, solver=solver, steps=steps)
            measure(setup, chosen, store)


def negatives(chosen: list[Case], store: Store) -> None:
    """Measure the official and the empty negative prompt."""
    model = converted("t2v", store)
    for label, text in (("official", NEGATIVE), ("empty", "")):
        measure(Setup(label=f"T2V, {label} negative", model=model, negative=text), chosen, store)


def pair(chosen: list[Case], store: Store) -> None:
    """Measure the two-expert text-to-video model."""
    model = converted("t2v-a14b", store)
    measure(Setup(label="T2V, two experts", model=model), chosen, store)


def image(chosen: list[Case], store: Store) -> None:
    """Measure the two-expert image-to-video model, given the first frame of a rendered clip."""
    model = converted("i2v-a14b", store)
    with tempfile.TemporaryDirectory() as folder:
        given = first_frames(chosen, Path(folder))

        def first_frame(clips: list[np.ndarray]) -> str:
            values = [psnr(clip[0], one) for clip, one in zip(clips, given, strict=True)]
            return f"first frame {np.mean(values):.1f} dB, worst {min(values):.1f} dB"

        setup = Setup(label="I2V, two experts", model=model, given=Path(folder), more=first_frame)
        measure(setup, chosen, store)


def first_frames(chosen: list[Case], folder: Path) -> list[np.ndarray]:
    """Draw the first frame of every scene, (Y, X, 3) uint8, and write it to a folder."""
    from PIL import Image

    frames = [world.render(scene, seed=FIRST + number)[0] for number, _, scene in chosen]
    for (number, _, _), frame in zip(chosen, frames, strict=True):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return frames


def quantized(chosen: list[Case], store: Store) -> None:
    """Measure the text-to-video model in 8 and in 4 bits."""
    for bits in (8, 4):
        model = converted("t2v", store, bits)
        measure(Setup(label=f"T2V, {bits} bits in groups of {GROUP}", model=model), chosen, store)


def lora(chosen: list[Case], store: Store) -> None:
    """Measure the outline LoRA at three strengths."""

    def outlined(clips: list[np.ndarray]) -> str:
        lines = share([judge.look(clip).outline for clip in clips])
        return f"{lines} outlines, inside {100 * np.mean([inside(c) for c in clips]):.0f} % filled"

    model = converted("t2v", store)
    for strength in (0.0, 0.5, 1.0):
        label = f"T2V, outline LoRA at {strength:g}"
        measure(Setup(label=label, model=model, lora=strength, more=outlined), chosen, store)


def inside(frames: np.ndarray) -> float:
    """Return how much of the inside of the shape is filled, 0 to 1, in the median frame."""
    pixels = frames.astype(np.float32)
    cover, _ = judge.separate(pixels, judge.backdrop(pixels))
    return 0.0 if cover is None else float(np.median(judge.outlines(cover)[2]))


def vae(chosen: list[Case], store: Store) -> None:
    """Measure a VAE round trip of held-out scenes, filled and outlined."""
    print("\n| VAE round trip | clips | pooled | mean | worst |\n|---|---|---|---|---|")
    for label, outline in (("filled shapes", False), ("outlines", True)):
        clips, backs = zip(*round_trips(chosen, outline, store), strict=True)
        values = [psnr(back, clip) for clip, back in zip(clips, backs, strict=True)]
        pooled = psnr(np.stack(backs), np.stack(clips))
        cells = f"{pooled:.1f} dB | {np.mean(values):.1f} dB | {min(values):.1f} dB"
        print(f"| {label} | {len(clips)} | {cells} |", flush=True)


def round_trips(
    chosen: list[Case], outline: bool, store: Store
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode and decode clips; yield inputs and outputs, uint8 (T, Y, X, 3)."""
    from wanpipe.models.vae.vae import video_uint8

    encoder, decoder = load_vae(store)
    for number, _, scene in chosen:
        clip = world.render(scene, seed=FIRST + number, outline=outline)
        yield clip, video_uint8(decoder.frames(encoder(scaled(clip))))


def tiles(chosen: list[Case], store: Store) -> None:
    """Compare decoding in tiles with decoding whole frames."""
    from wanpipe.models.vae import tiling
    from wanpipe.models.vae.vae import video_uint8

    print("\n| tile, overlap | clips | to whole frames | worst pixel |\n|---|---|---|---|")
    encoder, decoder = load_vae(store)
    scenes = [world.render(scene, seed=FIRST + number) for number, _, scene in chosen[:6]]
    latents = [encoder(scaled(clip)) for clip in scenes]
    whole = np.stack([video_uint8(decoder.frames(latent)) for latent in latents])
    for tile, overlap in TILES:
        pieces = (tiling.decode(decoder, latent, 8, tile, overlap) for latent in latents)
        tiled = np.stack([np.concatenate(list(one)) for one in pieces])
        worst = np.abs(tiled.astype(int) - whole).max()
        cells = f"{len(scenes)} | {psnr(tiled, whole):.1f} dB | {worst}"
        print(f"| {tile}, {overlap} | {cells} |", flush=True)


def load_vae(store: Store) -> "tuple[Encoder, Decoder]":
    """Load the encoder and the decoder of the demo models."""
    import mlx.core as mx

    from wanpipe.models.vae import vae as networks
    from wanpipe.weights.load import load_network

    model = converted("i2v-a14b", store)
    encoder, decoder = networks.Encoder(model.config.vae), networks.Decoder(model.config.vae)
    load_network(encoder, model.checked("vae_encoder", store), mx.float32)
    load_network(decoder, model.checked("vae", store), mx.float32)
    return encoder, decoder


def scaled(clip: np.ndarray) -> "mx.array":
    """Scale uint8 frames (T, Y, X, 3) to -1 to 1."""
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
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="Default: all."
    )
    parser.add_argument("--count", type=int, default=50, help="Number of prompts, of 50.")
    parser.add_argument("--cache", type=Path, help="Keep the cache here; default: a temporary one.")
    args = parser.parse_args(arguments)
    import mlx.core as mx

    from wanpipe.backend.device import describe

    print(f"MLX {mx.__version__}, {describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.cache or Path(folder))
        print(HEAD, flush=True)
        for name in args.parts:
            PARTS[name](cases(args.count), store)


if __name__ == "__main__":
    main()
