"""decode: a latent to frames, and frames to a film.

Reads: a denoise entry and a model's vae; or a decode entry, for another film of the same frames.
Writes: `frames` (T, Y, X, 3) uint8; with --output a film, a GIF or a folder of PNGs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe import budget, cli, forecast, geometry, options, sources
from wanpipe.budget import ITEMSIZE, FilmNeed
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.lineage import lineage_of
from wanpipe.model import Model, find_model
from wanpipe.settings import Settings
from wanpipe.sources import Sources
from wanpipe.store import Draft, Entry, Recipe, Store
from wanpipe.store.draft import Sink
from wanpipe.store.later import Later

if TYPE_CHECKING:
    import mlx.core as mx

ALGORITHM = 1
LARGEST_FPS = 240
# the tiles that change pixels, as named in the material
TILES = {"tile": geometry.TILE, "overlap": geometry.OVERLAP, "margin": geometry.OVERLAP // 8}
SLICE = 4  # frames in a chunk on disk: as many as one latent frame decodes to


@dataclass(frozen=True, kw_only=True)
class Params:
    """Where the film goes and how; `fps` None means the model's, `memory` None (else bytes) what
    the device recommends. Without `output` only the entry is made.
    """

    output: Path | None = None
    fps: float | None = None
    tiling: str = "auto"
    memory: int | None = None


def run(model: Model | None, given: Sources, params: Params, store: Store) -> Entry:
    """Decode the step's latent unless its frames are there; write the film if one is asked for.

    `model` may be None where frames are given. Raises UsageError for params that cannot be right.
    """
    from wanpipe import media

    if params.output is not None:
        media.film_format(params.output)
    if params.fps is not None and not 0 < params.fps <= LARGEST_FPS:
        raise UsageError(
            f"fps must be above 0 and at most {LARGEST_FPS}, got {params.fps:g}; use 16 or 24"
        )
    entry = given.frames
    if entry is None:
        if given.step is None:
            raise UsageError(
                "no step is given; make one with `wanpipe denoise`, name it with --from"
            )
        assert model is not None, "only given frames go without a model"
        entry = frames_of(model, given.step, params, store)
    if params.output is not None and not store.dry:
        write_film(entry, params.output, params.fps, store)
    return entry


def frames_of(model: Model, step: Entry, params: Params, store: Store) -> Entry:
    """Return the entry of the step's frames, in the first way that is there already or else keeps
    within the memory.

    Raises UsageError for a step of another VAE, and where --memory is less than any way takes.
    """
    if step.made["vae"] != model.hash("vae"):
        raise UsageError(
            f"step {step.key[:8]} was made for another VAE than that of {model.directory}; use the "
            "model that made it"
        )
    ways = ways_of(model, step, params.tiling)
    there = [way for way in ways if not store.wants(recipe_of(model, step, way))]
    way = there[0] if there else budget.choose("vae", ways, params.memory, store.report)
    recipe = recipe_of(model, step, way)
    entry = store.obtain(recipe, filler(model, step, recipe, way, store))
    if not there:
        forecast.tell("vae", "decode", way, 1, store)
    return entry


def ways_of(model: Model, step: Entry, tiling: str) -> list[FilmNeed]:
    """List the ways of decoding that --tiling allows, the best first."""
    from wanpipe.device import compute_dtype, is_cuda

    settings, config = Settings.from_json(step.made["settings"], "settings"), model.config
    latent = settings.latent_shape(config.vae.stride)
    computed = ITEMSIZE[compute_dtype(config.dtype)]
    ways = budget.film(config.vae, latent, computed, is_cuda())
    large = max(settings.width, settings.height) > geometry.TILE
    whole = [way for way in ways if not way.tiled]
    tiled = [way for way in ways if way.tiled and large]
    return {"auto": whole + tiled, "none": whole, "spatial": tiled or whole}[tiling]


def recipe_of(model: Model, step: Entry, way: FilmNeed) -> Recipe:
    """Say what the frames of a step will be, decoded in one way."""
    from wanpipe.device import compute_dtype

    material = {
        "vae": model.hash("vae"),
        "step": step.key,
        "tiling": TILES if way.tiled else None,
        "trim_first_frames": step.made["settings"]["trim_first_frames"],
        "dtype": compute_dtype(model.config.dtype),
    }
    made = {"fps": model.config.defaults.fps, "model": str(model.directory.resolve())}
    return Recipe(
        stage="decode",
        algorithm=ALGORITHM,
        material=material,
        inputs={"step": step.key},
        made=made,
    )


def filler(
    model: Model, step: Entry, recipe: Recipe, way: FilmNeed, store: Store
) -> Callable[[Draft], dict[str, Any]]:
    """Return what decodes the latent into the entry, slice by slice, in the memory of one."""

    def fill(draft: Draft) -> dict[str, Any]:
        import mlx.core as mx

        from wanpipe import tiling
        from wanpipe.device import made, mlx_dtype, within
        from wanpipe.models import vae
        from wanpipe.weights.load import load_network

        latent = step.read("latent")
        trim = 4 * recipe.material["trim_first_frames"]
        network = vae.decoder(model.config.vae)
        load_network(network, model.checked("vae", store), mlx_dtype(recipe.material["dtype"]))
        store.report.event("loaded", component="vae")
        stride = model.config.vae.stride
        if way.tiled:
            pieces = tiling.frames(network, mx.array(latent), stride[1])
        else:
            pieces = network.frames(mx.array(latent), way.at_once)
        frames = 4 * (latent.shape[1] - 1) + 1 - trim
        shape = (frames, latent.shape[2] * stride[1], latent.shape[3] * stride[2], 3)
        with (
            draft.stream("frames", shape, "uint8", ("T", "Y", "X", "C"), SLICE) as sink,
            store.report.task("decode", latent.shape[1]) as task,
            within(way.limit),
        ):
            keep(pieces, trim, sink, task.advance)
        home = Store(step.path.parent.parent, store.report)
        return {**made(), "flops": way.flops, "lineage": lineage_of(step, model, home)}

    return fill


def keep(
    pieces: Iterable["mx.array"], trim: int, sink: Sink, advance: Callable[[], object]
) -> None:
    """Append pieces (T, Y, X, 3) in [-1, 1] as bytes, without the first `trim` frames: each in
    another thread, behind the computation of the next one.
    """
    import numpy as np

    from wanpipe.models.vae import as_bytes

    with Later[None]("frames") as later:
        for piece in pieces:
            pixels = np.array(as_bytes(piece))
            dropped = min(trim, len(pixels))
            trim -= dropped
            if len(pixels) > dropped:
                later.add(partial(sink.append, pixels[dropped:]))
            later.wait(1)
            advance()
        later.wait(0)


def write_film(entry: Entry, output: Path, fps: float | None, store: Store) -> None:
    """Write the frames of an entry as a film that tells its lineage; one that is there already is
    left alone.
    """
    from wanpipe import media
    from wanpipe.store.keys import canonical

    rate = fps or entry.made["fps"]
    rate = int(rate) if rate == int(rate) else rate
    lineage = {**entry.made["lineage"], "decode": entry.key, "fps": rate}
    comment = canonical({"wanpipe": lineage}).decode()
    if output.exists() and not store.force and says(output, comment):
        store.report.event("reused", stage="film", path=str(output))
        return
    metadata = {"title": lineage.get("prompt", ""), "comment": comment}
    media.write_film(output, entry.blocks("frames"), rate, metadata)
    store.report.event("written", path=str(output))


def says(film: Path, comment: str) -> bool:
    """Whether a file is a film with this very lineage."""
    from wanpipe import media

    try:
        return media.read_metadata(film).get("comment") == comment
    except WanpipeError:
        return False  # not a film: it is replaced by one


@click.command("decode", short_help="a latent to frames and a film")
@cli.common
@options.model
@options.sources
@options.film
@options.memory
def command(
    session: cli.Session, model: str | None, references: tuple[str, ...], **asked: Any
) -> None:
    """Decode a denoised latent with the VAE, and write a film: .mp4, .webm, .gif, or a folder of
    .png frames.
    """
    given = sources.collect(references, ("step", "frames"), session.store)
    needed = given.frames is None and given.step is not None
    found = find_model(model, given.entries, session.store) if needed else None
    session.deliver([run(found, given, Params(**asked), session.store).path])
