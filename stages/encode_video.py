"""encode-video: encode a video, masks and reference images to the latents that condition a video.

Reads: a video and what else is given; a model's vae_encoder, and clip if it has one.
Writes: VACE `context` (96, R+F, H, W), R references first; of a video to change `latent`
(C, F, H, W), and with a mask `mask` (1, F, H, W); of a video to continue what encode-image writes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.models import geometry
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE, MemoryPlan
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.plan import Plan, encoder_work, plan_entries
from wanpipe.pipeline.video_inputs import Clip, FirstFrames, choose_mode
from wanpipe.pipeline.video_inputs import Params as Params
from wanpipe.store import Draft, Entry, Recipe, Store, material
from wanpipe.store.keys import hash_array
from wanpipe.weights.model import Model, find_model


def plan(model: Model, params: Params, store: Store) -> Plan[Entry]:
    """Plan the encoding of a video and what comes with it, for this model's task.

    Raises UsageError for what the model cannot use, an invalid canvas or an unreadable file.
    """
    from wanpipe.backend.device import compute_dtype

    mode = choose_mode(model.config, params)
    pixels = read(model, mode, params, store)
    named = material(
        "encode-video",
        mode=mode,
        vae=model.hash("vae_encoder"),
        clip=model.hash("clip") if model.takes_clip else None,
        width=pixels.width,
        height=pixels.height,
        num_frames=pixels.num_frames,
        known_frames=pixels.known_frames,
        dtype=compute_dtype(model.config.dtype),
        **hashes(pixels),
    )
    references = len(named.references) if mode == "vace" else None
    recipe = Recipe(material=named, references=references, made=notes(model, params))
    memory_plan, work = needed(model, pixels), []
    if store.must_compute(recipe):
        work = [encoder_work(model, "encode-video", memory_plan, params.memory, store.report)]

    def make() -> Entry:
        entry = store.get_or_create(recipe, filler(model, pixels, recipe, memory_plan, store))
        store.save_model(reference(model))
        return entry

    return plan_entries([recipe], make, work, store)


def read(model: Model, mode: str, params: Params, store: Store) -> Clip | FirstFrames:
    """Read and fit the pixels that the model encodes."""
    from wanpipe.pipeline.clips import read_clip, read_first_frames

    if mode in ("vace", "v2v"):
        return read_clip(model.config, params, store.report)
    first = read_first_frames(model.config, params, model.takes_clip, store.report)
    # TI2V encodes the known frames alone, whatever the length of the video
    return replace(first, num_frames=len(first.frames)) if mode == "ti2v" else first


def hashes(pixels: Clip | FirstFrames) -> dict[str, Any]:
    """Return the fields of the material that the pixels decide."""
    if isinstance(pixels, FirstFrames):
        clip = None if pixels.clip is None else hash_array(pixels.clip)
        own = {"pixels": hash_array(pixels.frames), "clip_pixels": clip}
        return {**own, "mask": None, "references": []}
    arrays = {"pixels": pixels.frames, "mask": pixels.mask}
    found = {name: None if one is None else hash_array(one) for name, one in arrays.items()}
    references = [hash_array(image) for image in pixels.references]
    return {**found, "references": references, "clip_pixels": None}


def notes(model: Model, params: Params) -> dict[str, Any]:
    """Return notes on the files for the record of the entry."""
    files = {"video": params.video, "mask": params.mask}
    made: dict[str, Any] = {name: path.name for name, path in files.items() if path is not None}
    if params.keyframes:
        made["image"] = ", ".join(f"{path.name} at {number}" for number, path in params.keyframes)
    if params.references:
        made["references"] = [path.name for path in params.references]
    return made | {"model": str(model.directory.resolve())}


def run(model: Model, params: Params, store: Store) -> Entry:
    """Encode the video unless the cache has its entry, as planned by `plan`."""
    return plan(model, params, store).make()


def needed(model: Model, pixels: Clip | FirstFrames) -> MemoryPlan:
    """Return the memory plan of encoding a video of this size."""
    from wanpipe.backend.device import compute_dtype, is_cuda

    config = model.config
    size = (pixels.width, pixels.height, pixels.num_frames)
    latent = geometry.latent_shape(*size, config.vae.stride)
    return budget.encode_plan(
        config.vae,
        latent,
        ITEMSIZE[compute_dtype(config.dtype)],
        is_cuda(),
        clip=model.component("clip").bytes if model.takes_clip else 0,
        pixels=pixels.bytes,
        times=2 if config.task == "vace" else 1,
    )


def filler(
    model: Model,
    pixels: Clip | FirstFrames,
    recipe: Recipe,
    memory_plan: MemoryPlan,
    store: Store,
) -> Callable[[Draft], dict[str, Any]]:
    """Return the function that encodes prepared pixels with the VAE, and with CLIP if it has it."""

    def fill(draft: Draft) -> dict[str, Any]:
        from wanpipe.backend.device import memory_limit, provenance

        with memory_limit(memory_plan.limit):
            if isinstance(pixels, FirstFrames):
                write_first_frames(model, pixels, recipe, draft, store)
            else:
                write_clip(model, pixels, recipe, draft, store)
        return provenance() | {"flops": memory_plan.flops}

    return fill


def write_clip(model: Model, clip: Clip, recipe: Recipe, draft: Draft, store: Store) -> None:
    """Encode the context of VACE, or a video to change."""
    import numpy as np

    from wanpipe.pipeline.encoders import video
    from wanpipe.pipeline.encoders.image import encoder

    network, context = encoder(model, recipe.material.dtype, store), recipe.material.mode == "vace"
    pieces = 2 * clip.chunks + len(clip.references) if context else clip.chunks
    with store.report.task("encode-video", pieces) as task:
        if context:
            encoded = video.encode_context(network, clip, task.advance)
        else:
            encoded = video.encode_latent(network, clip, task.advance)
        draft.write("context" if context else "latent", np.array(encoded))
    if not context and clip.mask is not None:
        mask = video.latent_mask(clip, model.config.vae.stride[1])
        if not mask.all():  # else no latent is kept
            draft.write("mask", mask)


def write_first_frames(
    model: Model, first: FirstFrames, recipe: Recipe, draft: Draft, store: Store
) -> None:
    """Encode the first frames of a video, as encode-image encodes one."""
    import numpy as np

    from wanpipe.pipeline.encoders.image import clip_features, condition, first_latent

    dtype, count = recipe.material.dtype, recipe.material.num_frames
    if recipe.material.mode == "ti2v":
        draft.write("latent", np.array(first_latent(model, first.frames, dtype, store)))
        return
    encoded = condition(model, (first.frames, None), count, dtype, store)
    draft.write("condition", np.array(encoded))
    if first.clip is not None:
        draft.write("clip", np.array(clip_features(model, [first.clip], dtype, store)))


@click.command("encode-video")
@options.model
@options.video_inputs
@options.exif
@options.canvas
@options.memory
@stage_options
def command(session: Session, model: str | None, **asked: Any) -> None:
    """Encode a video, a mask and reference images to latents.

    VACE makes a video from any of them, and from none. Text-to-video models change a video, and
    image-to-video models continue one (--extend).
    """
    found = find_model(model, [], session.store)
    session.carry_out(plan(found, Params(**asked), session.store))
