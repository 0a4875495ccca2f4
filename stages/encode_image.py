"""encode-image: encode the first or last image of a video to the latents that condition it.

Reads: one or two image files; a model's vae_encoder, and clip if it has one.
Writes: I2V `condition` (4+16, F, H, W), mask channels first, and for Wan2.1 `clip` (257, D), with a
last image (514, D); TI2V `latent` (48, 1, H, W).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE, MemoryPlan
from wanpipe.pipeline.inputs import check_images, check_takes_image
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.pictures import Canvas, Picture, Pictures, Reader
from wanpipe.pipeline.plan import Plan, encoder_work, plan_entries
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.store.keys import hash_array
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    from wanpipe.media.image import Fit, Mode


@dataclass(frozen=True, kw_only=True)
class Params:
    """One or two images and their canvas. None means the default for the model and the image.

    `fit` is "stretch", "cover", "pad" or "official"; None means cover on an explicit canvas and for
    a last image of another size than the first, else the official fit. `exif` turns images as
    their EXIF orientation says. `memory` is a limit in bytes.
    """

    image: Path | None = None
    last_image: Path | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fit: "Fit | None" = None
    exif: bool = False
    memory: int | None = None


def plan(model: Model, params: Params, store: Store) -> Plan[Entry]:
    """Plan the encoding of one or two images for this model's task.

    Raises UsageError for a model that takes no such image, an invalid canvas or an unreadable file.
    """
    from wanpipe.backend.device import compute_dtype

    check_task(model, params)
    pictures = reader(model, params, store).read(params.image, params.last_image)
    canvas = pictures.canvas
    # without a last image its fields are absent, so that keys of 0.1.0 stay the same
    absent = {"pixels": None, "clip_pixels": None}
    named = material(
        "encode-image",
        **(absent | hashes(pictures.first) | hashes(pictures.last, "last_")),
        vae=model.hash("vae_encoder"),
        clip=model.hash("clip") if model.takes_clip else None,
        width=canvas.width,
        height=canvas.height,
        num_frames=canvas.num_frames,
        mode=model.config.task,
        dtype=compute_dtype(model.config.dtype),
    )
    files = {"image": params.image, "last_image": params.last_image}
    made = {name: file.name for name, file in files.items() if file is not None}
    made |= {"fit": params.fit or canvas.fit, "model": str(model.directory.resolve())}
    recipe = Recipe(material=named, made=made)
    memory_plan, work = needed(model, canvas, len(pictures.given)), []
    if store.must_compute(recipe):
        work = [encoder_work(model, "encode-image", memory_plan, params.memory, store.report)]

    def make() -> Entry:
        entry = store.get_or_create(recipe, filler(model, pictures, recipe, memory_plan, store))
        store.save_model(reference(model))
        return entry

    return plan_entries([recipe], make, work, store)


def check_task(model: Model, params: Params) -> None:
    """Raise UsageError if the model takes no image, or not those that are given."""
    if params.image is None and params.last_image is None:
        raise UsageError("no image is given; use --image FILE")
    check_takes_image(model.config)
    check_images(model.config, params.image is not None, params.last_image is not None)


def reader(model: Model, params: Params, store: Store) -> Reader:
    """Return how to read the images for this model."""
    return Reader(
        choose=partial(choose_canvas, model, params),
        fit=params.fit,
        resample="lanczos" if model.config.task == "ti2v" else "bicubic",
        exif=params.exif,
        clip=model.takes_clip,
        report=store.report,
    )


def hashes(picture: Picture | None, prefix: str = "") -> dict[str, str]:
    """Return the fields that an image has in the material, none without an image."""
    if picture is None:
        return {}
    arrays = {"pixels": picture.pixels, "clip_pixels": picture.clip}
    return {prefix + name: hash_array(one) for name, one in arrays.items() if one is not None}


def run(model: Model, params: Params, store: Store) -> Entry:
    """Encode the images unless the cache has its entry, as planned by `plan`."""
    return plan(model, params, store).make()


def needed(model: Model, canvas: Canvas, images: int) -> MemoryPlan:
    """Return the memory plan of encoding a video of this size."""
    from wanpipe.backend.device import compute_dtype, is_cuda

    config = model.config
    size = (canvas.width, canvas.height, canvas.num_frames)
    latent = geometry.latent_shape(*size, config.vae.stride)
    clip = model.component("clip").bytes if model.takes_clip else 0
    computed = ITEMSIZE[compute_dtype(config.dtype)]
    return budget.image_plan(config.vae, latent, computed, is_cuda(), clip, images)


def choose_canvas(model: Model, params: Params, width: int, height: int) -> Canvas:
    """Return the canvas that was asked for, or the model's area at the aspect ratio of an image.

    The area is rounded as in the official code.
    """
    defaults, ti2v = model.config.defaults, model.config.task == "ti2v"
    frames = defaults.num_frames if params.num_frames is None else params.num_frames
    geometry.check_frames(frames)
    if frames == 1 and params.last_image is not None:
        raise UsageError("num-frames must be at least 5 with a last image, got 1; use 5 or more")
    frames = 1 if ti2v else frames  # TI2V encodes the image alone, whatever the length of the video
    multiple = model.config.side_multiple
    official: Mode = "cover" if ti2v else "stretch"
    fit: Mode | None = official if params.fit == "official" else params.fit
    if params.width is not None or params.height is not None:
        width = defaults.width if params.width is None else params.width
        height = defaults.height if params.height is None else params.height
        geometry.check_size(width, height, multiple)
        return Canvas(width=width, height=height, num_frames=frames, fit=fit or "cover")
    canvas = geometry.covered_canvas if ti2v else geometry.stretched_canvas
    width, height = canvas(width, height, defaults.width * defaults.height, multiple)
    return Canvas(width=width, height=height, num_frames=frames, fit=fit or official)


def filler(
    model: Model, pictures: Pictures, recipe: Recipe, memory_plan: MemoryPlan, store: Store
) -> Callable[[Draft], dict[str, Any]]:
    """Return the function that encodes prepared images with the VAE, and with CLIP if it has it."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.backend.device import memory_limit, provenance
        from wanpipe.pipeline.encoders.image import clip_features, condition, first_latent

        dtype, frames = recipe.material.dtype, recipe.material.num_frames
        both = pictures.first, pictures.last
        ends = [None if one is None else one.pixels[None] for one in both]
        with memory_limit(memory_plan.limit):
            if model.config.task == "ti2v":
                assert pictures.first is not None
                latent = first_latent(model, pictures.first.pixels[None], dtype, store)
                draft.write("latent", np.array(latent))
            else:
                draft.write("condition", np.array(condition(model, ends, frames, dtype, store)))
            clips = [one.clip for one in pictures.given if one.clip is not None]
            if clips:
                draft.write("clip", np.array(clip_features(model, clips, dtype, store)))
        return provenance() | {"flops": memory_plan.flops}

    return fill


@click.command("encode-image")
@options.model
@options.image
@options.exif
@options.canvas
@options.memory
@stage_options
def command(session: Session, model: str | None, **asked: Any) -> None:
    """Encode one or two images to latents for image-to-video.

    An image becomes the first frame of the video, and a last image its last frame. Wan2.1 also
    encodes them with CLIP.
    """
    found = find_model(model, [], session.store)
    session.carry_out(plan(found, Params(**asked), session.store))
