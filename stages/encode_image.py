"""encode-image: encode an image to the latents that condition image-to-video.

Reads: an image file; a model's vae_encoder, and clip if it has one.
Writes: I2V `condition` (4+16, F, H, W), mask channels first, and for Wan2.1 `clip` (257, D); TI2V
`latent` (48, 1, H, W).
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
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.plan import Plan, Work, plan_entries
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.store.keys import hash_array
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import numpy as np

    from wanpipe.media.image import Mode, Resample


@dataclass(frozen=True, kw_only=True)
class Params:
    """An image and its canvas. None means the default for the model and the image.

    `fit` is "stretch", "cover" or "pad"; None means cover on an explicit canvas, else the official
    fit. `exif` turns the image as its EXIF orientation says. `memory` is a limit in bytes.
    """

    image: Path
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fit: "Mode | None" = None
    exif: bool = False
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The size of the video in pixels and frames, and how the image is fitted to it."""

    width: int
    height: int
    num_frames: int
    fit: "Mode"


def plan(model: Model, params: Params, store: Store) -> Plan[Entry]:
    """Plan the encoding of an image for this model's task.

    Raises UsageError for a text-to-video model, an invalid canvas or an unreadable file.
    """
    from wanpipe.backend.device import compute_dtype
    from wanpipe.media.image import clip_pixels, fit, open_image

    if model.config.task == "t2v":
        raise UsageError(
            f"{model.config.variant} makes videos from text alone, so it takes no image; use an "
            "I2V or TI2V model"
        )
    check = partial(choose_canvas, model, params)
    image = open_image(params.image, params.exif, check, store.report)
    canvas = check(*image.size)
    resample: Resample = "lanczos" if model.config.task == "ti2v" else "bicubic"
    pixels = fit(image, canvas.width, canvas.height, canvas.fit, resample)
    clip = clip_pixels(image) if model.takes_clip else None
    named = material(
        "encode-image",
        vae=model.hash("vae_encoder"),
        clip=model.hash("clip") if model.takes_clip else None,
        pixels=hash_array(pixels),
        clip_pixels=None if clip is None else hash_array(clip),
        width=canvas.width,
        height=canvas.height,
        num_frames=canvas.num_frames,
        mode=model.config.task,
        dtype=compute_dtype(model.config.dtype),
    )
    made = {"image": params.image.name, "fit": canvas.fit, "model": str(model.directory.resolve())}
    recipe = Recipe(material=named, made=made)
    memory_plan, work = needed(model, canvas), []
    if store.must_compute(recipe):
        budget.choose_plan("vae_encoder", [memory_plan], params.memory, store.report)
        work.append(Work(component="vae_encoder", stage="encode-image", plan=memory_plan))

    def make() -> Entry:
        entry = store.get_or_create(recipe, filler(model, pixels, clip, recipe, memory_plan, store))
        store.save_model(reference(model))
        return entry

    return plan_entries([recipe], make, work, store)


def run(model: Model, params: Params, store: Store) -> Entry:
    """Encode an image unless the cache has its entry, as planned by `plan`."""
    return plan(model, params, store).make()


def needed(model: Model, canvas: Canvas) -> MemoryPlan:
    """Return the memory plan of encoding a video of this size."""
    from wanpipe.backend.device import compute_dtype, is_cuda

    config = model.config
    size = (canvas.width, canvas.height, canvas.num_frames)
    latent = geometry.latent_shape(*size, config.vae.stride)
    clip = model.component("clip").bytes if model.takes_clip else 0
    computed = ITEMSIZE[compute_dtype(config.dtype)]
    return budget.image_plan(config.vae, latent, computed, is_cuda(), clip)


def choose_canvas(model: Model, params: Params, width: int, height: int) -> Canvas:
    """Return the canvas that was asked for, or the model's area at the aspect ratio of an image.

    The area is rounded as in the official code.
    """
    defaults, ti2v = model.config.defaults, model.config.task == "ti2v"
    frames = defaults.num_frames if params.num_frames is None else params.num_frames
    geometry.check_frames(frames)
    frames = 1 if ti2v else frames  # TI2V encodes the image alone, whatever the length of the video
    multiple = model.config.side_multiple
    if params.width is not None or params.height is not None:
        width = defaults.width if params.width is None else params.width
        height = defaults.height if params.height is None else params.height
        geometry.check_size(width, height, multiple)
        return Canvas(width=width, height=height, num_frames=frames, fit=params.fit or "cover")
    canvas = geometry.covered_canvas if ti2v else geometry.stretched_canvas
    width, height = canvas(width, height, defaults.width * defaults.height, multiple)
    official: Mode = "cover" if ti2v else "stretch"
    return Canvas(width=width, height=height, num_frames=frames, fit=params.fit or official)


def filler(
    model: Model,
    pixels: "np.ndarray",
    clip: "np.ndarray | None",
    recipe: Recipe,
    memory_plan: MemoryPlan,
    store: Store,
) -> Callable[[Draft], dict[str, Any]]:
    """Return the function that encodes prepared pixels with the VAE, and with CLIP if given."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.backend.device import memory_limit, provenance
        from wanpipe.pipeline.image_encoder import clip_features, condition, first_frame

        dtype = recipe.material.dtype
        with memory_limit(memory_plan.limit):
            if model.config.task == "ti2v":
                draft.write("latent", np.array(first_frame(model, pixels, dtype, store)))
            else:
                frames = recipe.material.num_frames
                array = np.array(condition(model, pixels, frames, dtype, store))
                draft.write("condition", array)
            if clip is not None:
                draft.write("clip", np.array(clip_features(model, clip, dtype, store)))
        return provenance() | {"flops": memory_plan.flops}

    return fill


@click.command("encode-image")
@options.model
@options.image
@options.canvas
@options.memory
@stage_options
def command(session: Session, model: str | None, image: Path | None, **canvas: Any) -> None:
    """Encode an image to latents for image-to-video.

    The image becomes the first frame of the video. Wan2.1 also encodes it with CLIP.
    """
    if image is None:
        raise UsageError("no image is given; use --image FILE")
    found = find_model(model, [], session.store)
    session.carry_out(plan(found, Params(image=image, **canvas), session.store))
