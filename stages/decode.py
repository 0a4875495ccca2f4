"""decode: a latent to frames, and frames to a film.

Reads: a denoise entry and a model's vae; or a decode entry, for another film of the same frames.
Writes: `frames` (T, Y, X, 3) uint8; with --output a film, a GIF or a folder of PNGs.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
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
from wanpipe.store.later import Later
from wanpipe.store.recipe import record_of

if TYPE_CHECKING:
    import numpy as np

ALGORITHM = 1
LARGEST_FPS = 240
# the tiles that change pixels, as named in the material
TILES = {"tile": geometry.TILE, "overlap": geometry.OVERLAP, "margin": geometry.OVERLAP // 8}
SLICE = 4  # frames in a chunk on disk: as many as one latent frame decodes to
Take = Callable[["np.ndarray"], None]


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
    with Filming(params, store) as film:
        entry = given.frames
        if entry is None:
            if given.step is None:
                raise UsageError(
                    "no step is given; make one with `wanpipe denoise`, name it with --from"
                )
            assert model is not None, "only given frames go without a model"
            entry = frames_of(model, given.step, params, store, film)
        film.finish(entry)
    return entry


def frames_of(model: Model, step: Entry, params: Params, store: Store, film: "Filming") -> Entry:
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
    entry = store.obtain(recipe, filler(model, step, recipe, way, store, film))
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
    model: Model, step: Entry, recipe: Recipe, way: FilmNeed, store: Store, film: "Filming"
) -> Callable[[Draft], dict[str, Any]]:
    """Return what decodes the latent into entry and film, slice by slice, in the memory of one."""

    def fill(draft: Draft) -> dict[str, Any]:
        import mlx.core as mx
        import numpy as np

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
            whole = network.frames(mx.array(latent), way.at_once)
            pieces = (np.array(vae.as_bytes(piece)) for piece in whole)
        frames = 4 * (latent.shape[1] - 1) + 1 - trim
        shape = (frames, latent.shape[2] * stride[1], latent.shape[3] * stride[2], 3)
        lineage = lineage_of(step, model, Store(step.path.parent.parent, store.report))
        film.begin(Entry(draft.path, record_of(recipe, {"lineage": lineage})))
        with (
            draft.stream("frames", shape, "uint8", ("T", "Y", "X", "C"), SLICE) as sink,
            store.report.task("decode", latent.shape[1]) as task,
            within(way.limit),
        ):

            def take(frames: "np.ndarray") -> None:
                sink.append(frames)
                film.take(frames)

            keep(pieces, trim, take, task.advance)
        return {**made(), "flops": way.flops, "lineage": lineage}

    return fill


def keep(
    pieces: "Iterable[np.ndarray]", trim: int, take: Take, advance: Callable[[], object]
) -> None:
    """Have pieces (T, Y, X, 3) of bytes taken, without the first `trim` frames: each in another
    thread, behind the computation of the next one.
    """
    with Later[None]("frames") as later:
        for pixels in pieces:
            dropped = min(trim, len(pixels))
            trim -= dropped
            if len(pixels) > dropped:
                later.add(partial(take, pixels[dropped:]))
            later.wait(1)
            advance()
        later.wait(0)


class Filming(Later[bool]):
    """The film that is asked for, if any: written in another thread while its frames are computed,
    or else from the cache. Leaving the context before `finish` leaves no film.
    """

    def __init__(self, params: Params, store: Store) -> None:
        super().__init__("film")
        self.params, self.store = params, store
        self.waiting: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self.left = False

    def __exit__(self, *_: object) -> None:
        self.left = True
        self.waiting.put(None)
        super().__exit__()

    def begin(self, entry: Entry) -> None:
        """Start the film of what will be this entry; `take` gets its frames."""
        if self.params.output is not None:
            self.add(partial(self.write, self.params.output, entry, self.slices()))

    def take(self, frames: "np.ndarray") -> None:
        """Have frames written; without effect where no film is under way, or not any more."""
        if any(not job.done() for job in self.jobs):
            self.waiting.put(frames)

    def slices(self) -> Iterator["np.ndarray"]:
        """Give what was taken, in order, until the film is finished."""
        while (frames := self.waiting.get()) is not None and not self.left:
            yield frames
        if self.left:
            raise CancelledError

    def finish(self, entry: Entry) -> None:
        """Let the film of an entry appear, now that it is published; raises what went wrong."""
        output = self.params.output
        if output is None or self.store.dry:
            return
        self.waiting.put(None)
        done = list(self.results(0)) or [self.write(output, entry, entry.blocks("frames"))]
        fields = {"kind": "written"} if done[0] else {"kind": "reused", "stage": "film"}
        self.store.report.event(**fields, path=str(output))

    def write(self, output: Path, entry: Entry, slices: Iterable["np.ndarray"]) -> bool:
        """Write an entry's frames as a film that tells its lineage; False where it is there already
        and was left alone.
        """
        from wanpipe import media
        from wanpipe.store.keys import canonical

        rate = self.params.fps or entry.made["fps"]
        rate = int(rate) if rate == int(rate) else rate
        lineage = {**entry.made["lineage"], "decode": entry.key, "fps": rate}
        comment = canonical({"wanpipe": lineage}).decode()
        if output.exists() and not self.store.force and says(output, comment):
            return False
        metadata = {"title": lineage.get("prompt", ""), "comment": comment}
        media.write_film(output, slices, rate, metadata)
        return True


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
