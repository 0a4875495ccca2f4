"""decode: decode a latent to frames, and write the frames as a video.

Reads: a denoise entry and a model's vae, or a tiny VAE; or a decode entry, for another video of the
same frames.
Writes: `frames` (T, Y, X, 3) uint8; with --output a video, a GIF or a folder of PNGs.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.media.names import Named, fields_of, name_video
from wanpipe.media.video import check_keeps, check_rate, check_writable, video_format
from wanpipe.pipeline.budget import choose_plan
from wanpipe.pipeline.frames import Decoding
from wanpipe.pipeline.inputs import Inputs, resolve_inputs
from wanpipe.pipeline.lineage import Source, reference
from wanpipe.pipeline.plan import Plan, Work, plan_entries
from wanpipe.pipeline.video_writer import Before, VideoWriter
from wanpipe.store import Entry, Store
from wanpipe.weights.model import Model, find_model
from wanpipe.weights.tiny_vae import open_tiny_vae


@dataclass(frozen=True, kw_only=True)
class Params:
    """Where and how to write the video. Without `output`, only the entry is made.

    `after` is the video that it continues; the output has both, with one fade between them. `fps`
    None means the model's. `memory` is a limit in bytes; None means what the device recommends.
    `vae_tiny` is the file of a tiny VAE to decode with.
    """

    output: Path | None = None
    fps: float | None = None
    tiling: str = "auto"
    memory: int | None = None
    after: Path | None = None
    vae_tiny: Path | None = None


def plan(model: Model | None, inputs: Inputs, params: Params, store: Store) -> Plan[Entry]:
    """Plan the frames of a step, with the first memory plan whose frames exist, or that fits.

    `model` may be None if frames are given. Raises UsageError for invalid parameters, for a latent
    that the VAE cannot decode, and if --memory is less than any memory plan needs, CheckpointError
    for a file that is no tiny VAE.
    """
    check_output(params)
    if inputs.frames is None and inputs.step is None:
        raise UsageError("no step is given; make one with `wanpipe denoise`, name it with --from")
    source = Source.of(model, inputs, store)
    if params.output is not None:
        params = replace(params, output=name_video(params.output, named(source)))
        check_rate(check_output(params), source.rate(params.fps))
    before = Before.of(source, params.after)
    if params.output is not None and params.after is not None:
        check_keeps(params.output, [params.after])
    if inputs.frames is not None:
        if params.vae_tiny is not None:
            raise UsageError("a tiny VAE decodes a step, but frames are given; leave it out")
        return plan_video(source, inputs.frames, params, before, store)
    assert model is not None, "only frames can do without a model"
    assert inputs.step is not None
    channels, tiny = model.config.vae.z_dim, params.vae_tiny
    decoding = Decoding(
        model=model,
        step=inputs.step,
        run=source.run,
        trim=source.trim,
        reference_frames=source.reference_frames,
        tiny=None if tiny is None else open_tiny_vae(tiny, channels, store),
    )
    plans = decoding.plans(params.tiling)
    existing = [one for one in plans if not store.must_compute(decoding.recipe(one))]
    memory_plan = (
        existing[0]
        if existing
        else choose_plan(decoding.component, plans, params.memory, store.report)
    )
    if params.output is not None and not existing and not store.read_only:
        check_writable(params.output)  # before the work, not after the last step
    recipe = decoding.recipe(memory_plan)

    def make() -> Entry:
        with VideoWriter(source, params.output, params.fps, store, before) as video:
            entry = store.get_or_create(recipe, decoding.filler(recipe, memory_plan, store, video))
            store.save_model(reference(model))
            video.finish(entry)
        return entry

    work = Work(
        component=decoding.component,
        stage="decode",
        plan=memory_plan,
        model=model,
        memory=params.memory,
        whole=tiny is None,
    )
    return plan_entries([recipe], make, [] if existing else [work], store)


def plan_video(
    source: Source, frames: Entry, params: Params, before: Before | None, store: Store
) -> Plan[Entry]:
    """Plan a video of frames that exist."""

    def make() -> Entry:
        with VideoWriter(source, params.output, params.fps, store, before) as video:
            video.finish(frames)
        return frames

    return Plan(make=make, targets=(), entries=(frames,))


def run(model: Model | None, inputs: Inputs, params: Params, store: Store) -> Entry:
    """Decode a step unless its frames exist, and write the video if requested."""
    return plan(model, inputs, params, store).make()


def named(source: Source) -> Named:
    """Return what the name of a video may have: its step, and the prompt and seed of its run."""
    run = source.run
    if run is None:
        return Named(key=source.key)
    return Named(key=source.key, prompt=run.prompt, seed=run.seed)


def check_output(params: Params) -> str:
    """Return the format of the video. Raises UsageError for an unknown one, for a place where no
    video can be, or for an invalid frame rate.
    """
    if params.output is not None:
        fields_of(params.output.name)
    kind = "mp4" if params.output is None else video_format(params.output)
    if params.fps is not None:
        check_rate(kind, params.fps)
    if params.after is not None and params.output is None:
        raise UsageError("--after joins two videos in a file, but there is none; give --output")
    return kind


@click.command("decode")
@options.model
@options.sources
@options.video
@options.tiny
@options.memory
@stage_options
def command(
    session: Session, model: str | None, references: tuple[str, ...], tiny: bool, **asked: Any
) -> None:
    """Decode a latent to frames, and write them as a video.

    Pass a step, or frames that are already decoded. Without --output, only saves the frames in the
    cache.
    """
    asked["vae_tiny"] = options.read_tiny(tiny, asked["vae_tiny"])
    inputs = resolve_inputs(references, ("step", "frames"), session.store)
    needed = inputs.frames is None and inputs.step is not None
    found = find_model(model, inputs.entries, session.store, inputs.run) if needed else None
    session.carry_out(plan(found, inputs, Params(**asked), session.store))
