"""run: make videos from prompts, with all stages.

Reads: a checkpoint or a model, prompts, and images or a video if the model takes them.
Writes: the entries of all stages, and one video per prompt and seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from stages import convert, decode, denoise, encode_image, encode_text, encode_video
from wanpipe.cli import options
from wanpipe.cli.like import Like
from wanpipe.cli.prompts import read_prompts
from wanpipe.cli.seeds import choose_seeds
from wanpipe.cli.session import Session, stage_options
from wanpipe.cli.values import REFERENCE
from wanpipe.denoising.launched import serves_another
from wanpipe.errors import UsageError
from wanpipe.media.names import Named, name_videos
from wanpipe.media.video import check_keeps, check_writable
from wanpipe.pipeline.inputs import Inputs
from wanpipe.pipeline.plan import Plan
from wanpipe.pipeline.schedule import make
from wanpipe.store import Entry, Store
from wanpipe.store.schema import STAGES
from wanpipe.weights.model import Model, find_model, open_model

# options that tell how a checkpoint is converted
QUANTIZATION = ("quantize_bits", "quantize", "quantize_text_encoder", "bits", "group_size")
CONVERSION = ("dtype", "model_version", *QUANTIZATION)


@dataclass(frozen=True, kw_only=True)
class Params:
    """The parameters of each stage. `image` and `video` are None for text-to-video.

    `condition` is the entry of an image or video, instead of these. Without an output, the video is
    named after its prompt.
    """

    text: encode_text.Params
    image: encode_image.Params | None
    video: encode_video.Params | None = None
    condition: Entry | None = None
    denoise: denoise.Params
    decode: decode.Params


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plans of all stages in order, the videos, and the entries of their frames."""

    plans: tuple[Plan[Any], ...]
    videos: tuple[Path, ...]
    frames: tuple[Entry, ...]


def plan(model: Model, params: Params, store: Store) -> RunPlan:
    """Plan one video per prompt and seed. Invalid options fail here, before weights are loaded."""
    params = complete(model, params)
    texts = encode_text.plan(model, params.text, store)
    conditions = plan_condition(model, params, store)
    given = [plan.entries[0] for plan in conditions]
    given += [] if params.condition is None else [params.condition]
    found: dict[str, Any] = {STAGES[entry.stage].role: entry for entry in given}
    text, *more = distinct(texts.entries, store)
    inputs = Inputs(text=text, more_texts=tuple(more), **found)
    steps = denoise.plan(model, inputs, params.denoise, store)
    made = list(zip(steps.entries, steps.runs, strict=True))
    videos = name_videos(
        params.decode.output,
        [
            Named(key=step.key, number=number, prompt=made_by.prompt, seed=made_by.seed)
            for number, (step, made_by) in enumerate(made, 1)
        ],
    )
    decodings = []
    for output, (step, made_by) in zip(videos, made, strict=True):
        check_keeps(output, input_files(params))
        decoding = replace(params.decode, output=output)
        sources = Inputs(step=step, run=made_by, video=inputs.video)
        decodings.append(decode.plan(model, sources, decoding, store))
    return RunPlan(
        plans=(texts, *conditions, steps, *decodings),
        videos=tuple(videos),
        frames=tuple(decoding.entries[0] for decoding in decodings),
    )


def distinct(texts: Sequence[Entry], store: Store) -> list[Entry]:
    """Return each text once, with a remark if prompts are the same to the text encoder."""
    found: dict[str, Entry] = {}
    for text in texts:
        found.setdefault(text.key, text)
    if same := len(texts) - len(found):
        store.report.remark(f"{same} of {len(texts)} prompts left out: others have the same tokens")
    return list(found.values())


def complete(model: Model, params: Params) -> Params:
    """Give the image or the video the size that the steps have, and VACE an empty video."""
    asked, image, video = params.denoise, params.image, params.video
    frames, extra = asked.num_frames, 4 * (asked.trim_first_frames or 0)
    if video is None and image is None and model.config.task == "vace":
        video = encode_video.Params(width=asked.width, height=asked.height, memory=asked.memory)
    if image is not None:
        count = model.config.defaults.num_frames if frames is None else frames
        image = replace(image, num_frames=count + extra)
    elif video is not None and frames is not None:
        video = replace(video, num_frames=frames + extra)
    return replace(params, image=image, video=video)


def plan_condition(model: Model, params: Params, store: Store) -> list[Plan[Any]]:
    """Plan the entry of the image or video that the video is made from, if there is one to make."""
    if params.condition is not None:
        return []
    if params.image is not None:
        return [encode_image.plan(model, params.image, store)]
    if params.video is not None:
        return [encode_video.plan(model, params.video, store)]
    return []


def run(model: Model, params: Params, store: Store) -> list[Path]:
    """Make one video per prompt and seed, prompt by prompt, and return their paths.

    Computes only what the cache lacks.
    """
    planned = plan(model, params, store)
    make(planned.plans, store)
    return list(planned.videos)


def input_files(params: Params) -> list[Path]:
    """Return the images and videos that a video is made from."""
    image, video = params.image, params.video
    found = [] if image is None else [image.image, image.last_image]
    if video is not None:
        found += [video.video, video.mask, *video.references]
        found += [path for _, path in video.keyframes]
    return [path for path in found if path is not None]


def plan_model(
    reference: str | None, conversion: convert.Params | None, session: Session
) -> Model | None:
    """Open --model, or convert --checkpoint-dir first; None if the conversion is only planned."""
    if (reference is None) == (conversion is None):
        raise UsageError(
            "a run takes a model or a checkpoint; give --model or --checkpoint-dir, not both"
        )
    if conversion is None:
        return find_model(reference, [], session.store)
    planned = convert.plan(conversion, session.store)
    session.make(planned)
    directory = planned.paths[0]
    if session.dry_run and not directory.is_dir():
        session.store.report.remark(
            "what follows depends on the converted model; plan again when it is there"
        )
        return None
    return open_model(directory)


@click.command("run")
@click.option(
    "--like",
    type=REFERENCE,
    metavar="VIDEO",
    help="Make this video again, with what else is given changed: a video that wanpipe wrote, a "
    "run, a step or frames.",
)
@options.model
@options.checkpoint
@options.quantization
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Describe the video; - reads this from standard input. Repeatable, for one video per "
    "prompt and seed.",
)
@click.option(
    "--prompt-file",
    type=options.PATH,
    metavar="FILE",
    help="Take every line of this text file as a prompt.",
)
@options.negative
@options.image
@options.video_inputs
@options.exif
@options.canvas
@options.sampling
@options.loras
@options.memory
@options.devices
@options.video
@options.tiny
@stage_options
def command(
    session: Session,
    like: str | None,
    model: str | None,
    checkpoint_dir: Path | None,
    **asked: Any,
) -> None:
    """Make a video from a prompt, with all stages in order.

    Several prompts or seeds give a video for each, and load each network once. Computes only what
    is not in the cache. Without --output, a video is named after its prompt.
    """
    if serves_another():
        return
    asked["prompts"] = read_prompts(asked["prompts"], asked.pop("prompt_file"))
    asked["seeds"] = choose_seeds(asked["seeds"], asked["auto_seeds"], session.store.report)
    record, given, condition = None, asked, None
    if like is not None:
        record = Like.read(like, session.store)
        asked = record.complete(given)
        condition = record.condition(asked)
        if model is None and checkpoint_dir is None:
            model = str(record.find_model())
    if not all(asked["prompts"] or ("",)):
        raise UsageError("no prompt is given; use --prompt or --prompt-file")
    params = replace(read(asked), condition=condition)
    decode.check_output(params.decode)
    conversion = None
    if checkpoint_dir is not None:
        conversion = convert.Params(
            checkpoint_dir=checkpoint_dir,
            **convert.without_short_form({name: asked[name] for name in CONVERSION}),
        )
        if not session.dry_run:
            check_writable(params.decode.output or Path("video.mp4"))
    elif any(asked[name] for name in QUANTIZATION):
        raise UsageError(
            "a model is quantized when it is converted; give --checkpoint-dir, or quantize it with "
            "`convert --from-model`"
        )
    found = plan_model(model, conversion, session)
    if found is None:
        return
    planned = plan(found, params, session.store)
    if record is not None:
        record.compare(planned.frames[0], given)
    session.make(*planned.plans)
    session.print_paths(planned.videos, [frames.path for frames in planned.frames])


def read(asked: dict[str, Any]) -> Params:
    """Sort the options of the command by stage."""

    def some(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    image, video = read_image(asked), read_video(asked)
    if image is not None and video is not None:
        raise UsageError("a video is made from an image or from a video; give one of the two")
    images = asked["references"] or asked["keyframes"]
    for option, useless in (
        ("--fit", asked["fit"] is not None and image is None),
        ("--exif", asked["exif"] and image is None and not images),
    ):
        if useless:
            raise UsageError(f"{option} tells how to take an image; give --image, or leave it out")
    negative = options.read_negative(asked["negative_prompt"], asked["no_negative_prompt"])
    sampling = some("num_frames", "trim_first_frames", "steps", "guide_scale", "shift")
    sampling |= some("scheduler", "timesteps", "step_cache", "seeds", "noise")
    sampling |= some("lora", "lora_high", "lora_low", "memory", "devices")
    sampling |= some("strength", "context_scale", "nag", "nag_tau", "nag_alpha")
    # else the canvas of the image or video
    sides = some("width", "height") if image is None and video is None else {}
    return Params(
        text=encode_text.Params(
            prompts=asked["prompts"],
            negative_prompt=negative,
            **some("memory"),
        ),
        image=image,
        video=video,
        denoise=denoise.Params(**sampling, **sides),
        decode=decode.Params(
            **some("output", "fps", "tiling", "memory", "after"),
            vae_tiny=options.read_tiny(asked["tiny"], asked["vae_tiny"]),
        ),
    )


def read_image(asked: dict[str, Any]) -> encode_image.Params | None:
    """Return the options of encode-image; None without an image."""
    if asked["image"] is None and asked["last_image"] is None:
        return None
    names = ("image", "last_image", "fit", "exif", "width", "height", "memory")
    return encode_image.Params(**{name: asked[name] for name in names})


def read_video(asked: dict[str, Any]) -> encode_video.Params | None:
    """Return the options of encode-video; None if none of them is given."""
    own = ("video", "mask", "references", "keyframes", "outpaint", "extend")
    if not any(asked[name] for name in own) and asked["video_fit"] == "first":
        return None
    names = (*own, "video_fit", "exif", "width", "height", "memory")
    return encode_video.Params(**{name: asked[name] for name in names})
