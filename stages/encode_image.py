"""encode-image: an image to what image-to-video is conditioned on.

Reads: an image file; a model's vae_encoder, and clip where it has one.
Writes: I2V `condition` (4+16, F, H, W), mask channels first, and for Wan2.1 `clip` (257, D); TI2V
`latent` (48, 1, H, W).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.pipeline import budget, forecast
from wanpipe.pipeline.budget import ITEMSIZE, Need
from wanpipe.pipeline.lineage import reference
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.store.keys import hash_array
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from wanpipe.media.image import Mode, Resample


@dataclass(frozen=True, kw_only=True)
class Params:
    """An image and the canvas it is fitted to; what is None follows from the model and the image.

    `fit` is "stretch", "cover" or "pad"; None means the official way without an explicit canvas,
    else cover.
    """

    image: Path
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fit: "Mode | None" = None
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Where an image goes: pixels, and the way it is fitted."""

    width: int
    height: int
    num_frames: int
    fit: "Mode"


def run(model: Model, params: Params, store: Store) -> Entry:
    """Encode the image for this model's task. Raises UsageError for a text-to-video model or a bad
    canvas or file.
    """
    from wanpipe.backend.device import compute_dtype
    from wanpipe.media.image import clip_pixels, fit, open_image

    if model.config.task == "t2v":
        raise UsageError(
            f"{model.config.variant} makes videos from text alone, so it takes no image; use an "
            "I2V or TI2V model"
        )
    image = open_image(params.image)
    canvas = choose_canvas(model, params, image)
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
    missing, need = store.wants(recipe), needed(model, canvas)
    if missing:
        budget.choose("vae_encoder", [need], params.memory, store.report)
    entry = store.obtain(recipe, filler(model, pixels, clip, recipe, need, store))
    store.keep_model(reference(model))
    if missing:
        forecast.tell("vae_encoder", "encode-image", need, 1, store)
    return entry


def needed(model: Model, canvas: Canvas) -> Need:
    """What encoding a clip of this canvas takes."""
    from wanpipe.backend.device import compute_dtype, is_cuda

    config = model.config
    size = (canvas.width, canvas.height, canvas.num_frames)
    latent = geometry.latent_shape(*size, config.vae.stride)
    clip = model.component("clip").bytes if model.takes_clip else 0
    computed = ITEMSIZE[compute_dtype(config.dtype)]
    return budget.image(config.vae, latent, computed, is_cuda(), clip)


def choose_canvas(model: Model, params: Params, image: "Image") -> Canvas:
    """Take the canvas that was asked for, exactly; else the model's area at the image's aspect, as
    the official code.
    """
    defaults, ti2v = model.config.defaults, model.config.task == "ti2v"
    frames = params.num_frames or defaults.num_frames
    geometry.check_frames(frames)
    frames = 1 if ti2v else frames  # TI2V encodes the image alone, whatever the length of the film
    multiple = model.config.side_multiple
    if params.width or params.height:
        width, height = params.width or defaults.width, params.height or defaults.height
        geometry.check_size(width, height, multiple)
        return Canvas(width=width, height=height, num_frames=frames, fit=params.fit or "cover")
    canvas = geometry.covered_canvas if ti2v else geometry.stretched_canvas
    width, height = canvas(image.width, image.height, defaults.width * defaults.height, multiple)
    official: Mode = "cover" if ti2v else "stretch"
    return Canvas(width=width, height=height, num_frames=frames, fit=params.fit or official)


def filler(
    model: Model,
    pixels: "np.ndarray",
    clip: "np.ndarray | None",
    recipe: Recipe,
    need: Need,
    store: Store,
) -> Callable[[Draft], dict[str, Any]]:
    """Return what writes the entry: the VAE's and CLIP's encodings of prepared pixels."""

    def fill(draft: Draft) -> dict[str, Any]:
        import numpy as np

        from wanpipe.backend.device import memory_limit, provenance
        from wanpipe.pipeline.image_encoder import clip_features, condition, first_frame

        dtype = recipe.material.dtype
        with memory_limit(need.limit):
            if model.config.task == "ti2v":
                draft.write("latent", np.array(first_frame(model, pixels, dtype, store)))
            else:
                frames = recipe.material.num_frames
                array = np.array(condition(model, pixels, frames, dtype, store))
                draft.write("condition", array)
            if clip is not None:
                draft.write("clip", np.array(clip_features(model, clip, dtype, store)))
        return provenance() | {"flops": need.flops}

    return fill


@click.command("encode-image", short_help="an image to latents for image-to-video")
@stage_options
@options.model
@options.image
@options.canvas
@options.memory
def command(session: Session, model: str | None, image: Path | None, **canvas: Any) -> None:
    """Encode the first frame of a video with the model's VAE (and CLIP, for Wan2.1)."""
    if image is None:
        raise UsageError("no image is given; use --image FILE")
    found = find_model(model, [], session.store)
    session.deliver([run(found, Params(image=image, **canvas), session.store).path])
