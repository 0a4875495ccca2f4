"""run: a prompt to a film, through all five stages.

Reads: a checkpoint or a model, a prompt, an image where the model takes one.
Writes: what the five stages write, and one film per seed.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from stages import convert, decode, denoise, encode_image, encode_text
from wanpipe.cache.planning import PlanStore
from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.pipeline.sources import Sources
from wanpipe.runtime.report import Problems
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, find_model, open_model

LONGEST_STEM = 60  # letters of the prompt in the name of a film

# options that tell how a checkpoint is converted
CONVERSION = ("dtype", "model_version", "quantize", "quantize_text_encoder", "bits", "group_size")


@dataclass(frozen=True, kw_only=True)
class Params:
    """What each stage is told; `image` is None for text-to-video. Without an output the film is
    named by its prompt.
    """

    text: encode_text.Params
    image: encode_image.Params | None
    denoise: denoise.Params
    decode: decode.Params


@dataclass(frozen=True)
class Film:
    """A film and the entry of its frames."""

    path: Path
    frames: Entry


def run(model: Model, params: Params, store: Store) -> list[Film]:
    """Make one film per seed, computing only what the cache lacks, and return the films.

    Everything is planned first, so that what cannot be right fails before any weight is loaded.
    """
    if not store.dry:
        planned = PlanStore(store.root, Problems(store.report), store.force, store.memo)
        make(model, params, planned)
    return make(model, params, store)


def make(model: Model, params: Params, store: Store) -> list[Film]:
    """Go through the stages with `store`, which computes or plans."""
    text = encode_text.run(model, params.text, store)[0]
    image = None
    if params.image is not None:
        frames = params.denoise.num_frames or model.config.defaults.num_frames
        frames += 4 * (params.denoise.trim_first_frames or 0)
        image = encode_image.run(model, replace(params.image, num_frames=frames), store)
    steps = denoise.solve(model, Sources(text=text, image=image), params.denoise, store)
    films = []
    for index, (step, made_by) in enumerate(steps):
        output = film_path(params, step, index if len(steps) > 1 else None)
        decoding = replace(params.decode, output=output)
        given = Sources(step=step, run=made_by)
        films.append(Film(output, decode.run(model, given, decoding, store)))
    return films


def film_path(params: Params, step: Entry, index: int | None) -> Path:
    """Name a film: as asked, with the seed where there are several, else by prompt and step."""
    asked = params.decode.output
    if asked is None:
        words = re.findall(r"\w+", params.text.prompts[0].lower())[:6]
        return Path(f"{'-'.join(words)[:LONGEST_STEM]}-{step.key[:8]}.mp4")
    if index is None:
        return asked
    return asked.with_stem(f"{asked.stem}-{params.denoise.seeds[index]}")


def choose_model(
    reference: str | None, conversion: convert.Params | None, store: Store
) -> Model | None:
    """Open --model, or convert --checkpoint-dir first; None where that is only planned."""
    if (reference is None) == (conversion is None):
        raise UsageError(
            "a run takes a model or a checkpoint; give --model or --checkpoint-dir, not both"
        )
    if conversion is None:
        return find_model(reference, [], store)
    directory = convert.run(conversion, store)
    if store.dry and not directory.is_dir():
        store.report.remark(
            "what follows depends on the converted model; plan again when it is there"
        )
        return None
    return open_model(directory)


@click.command("run")
@options.model
@options.checkpoint
@options.quantization
@click.option("--prompt", metavar="TEXT", help="Describe the video.")
@options.negative
@options.image
@options.canvas
@options.sampling
@options.loras
@options.memory
@options.video
@stage_options
def command(session: Session, model: str | None, checkpoint_dir: Path | None, **asked: Any) -> None:
    """Make a video from a prompt, with all five stages in order.

    Only what the cache lacks is computed. Without --output the video is named after the prompt.
    """
    if not asked["prompt"]:
        raise UsageError("no prompt is given; use --prompt")
    params = read(asked)
    if params.decode.output is not None:
        from wanpipe.media import video

        video.video_format(params.decode.output)
    conversion = None
    if checkpoint_dir is not None:
        conversion = convert.Params(
            checkpoint_dir=checkpoint_dir,
            **{name: asked[name] for name in CONVERSION},
        )
    found = choose_model(model, conversion, session.store)
    films = run(found, params, session.store) if found else []
    session.print_paths([film.path for film in films], [film.frames.path for film in films])


def read(asked: dict[str, Any]) -> Params:
    """Sort the options of the command by the stage that they are for."""

    def some(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    image = None
    if asked["image"] is not None:
        image = encode_image.Params(**some("image", "fit", "width", "height", "memory"))
    elif asked["fit"] is not None:
        raise UsageError("--fit says how an image meets the canvas; give --image or leave it out")
    negative = options.read_negative(asked["negative_prompt"], asked["no_negative_prompt"])
    sampling = some("num_frames", "trim_first_frames", "steps", "guide_scale", "shift")
    sampling |= some("scheduler", "timesteps", "step_cache", "seeds", "noise")
    sampling |= some("lora", "lora_high", "lora_low", "memory")
    sides = some("width", "height") if image is None else {}  # else the canvas of the image
    return Params(
        text=encode_text.Params(
            prompts=(asked["prompt"],), negative_prompt=negative, **some("memory")
        ),
        image=image,
        denoise=denoise.Params(**sampling, **sides),
        decode=decode.Params(**some("output", "fps", "tiling", "memory")),
    )
