"""decode: a latent to frames, and frames to a film.

Reads: a denoise entry and a model's vae; or a decode entry, for another film of the same frames.
Writes: `frames` (T, Y, X, 3) uint8; with --output a film, a GIF or a folder of PNGs.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

import click
from msgspec import UNSET, UnsetType

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.models import geometry
from wanpipe.pipeline import budget, forecast, sources
from wanpipe.pipeline.budget import ITEMSIZE, FilmNeed
from wanpipe.pipeline.lineage import lineage_of, reference
from wanpipe.pipeline.settings import latent_shape
from wanpipe.pipeline.sources import Sources
from wanpipe.store import Draft, Entry, Recipe, Run, Store, material
from wanpipe.store.later import POLL, Later
from wanpipe.store.runs import Video
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import numpy as np

LARGEST_FPS = 240
# the tiles that change pixels, as named in the material
TILES = {"tile": geometry.TILE, "overlap": geometry.OVERLAP, "margin": geometry.OVERLAP // 8}
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
    from wanpipe.media import video

    if params.output is not None:
        video.film_format(params.output)
    if params.fps is not None and not 0 < params.fps <= LARGEST_FPS:
        raise UsageError(
            f"fps must be above 0 and at most {LARGEST_FPS}, got {params.fps:g}; use 16 or 24"
        )
    if given.frames is None and given.step is None:
        raise UsageError("no step is given; make one with `wanpipe denoise`, name it with --from")
    source = Source.of(model, given, store)
    with Filming(source, params, store) as film:
        entry = given.frames
        if entry is None:
            assert model is not None, "only given frames go without a model"
            entry = frames_of(model, source, params, store, film)
        film.finish(entry)
    return entry


@dataclass(frozen=True)
class Source:
    """The step to decode by its key, its entry where it is there, the run it is decoded for, and
    the model where one is given.
    """

    key: str
    home: Store
    step: Entry | None
    run: Run | None
    model: Model | None

    @staticmethod
    def of(model: Model | None, given: Sources, store: Store) -> "Source":
        """Find the run of what is given: the latest that the model made, where it made one."""
        entry = given.frames or given.step
        assert entry is not None
        home, run, step = Store(entry.root, store.report), given.run, given.step
        key = entry.key if given.frames is None else entry.inputs["step"]
        if run is None:
            runs = home.runs.of(key)
            fitting = [one for one in runs if model and one.model.key == model.config.key]
            run = next(iter([*fitting, *runs]), None)
        return Source(key, home, step, run, model)

    @property
    def fps(self) -> float:
        """Frames per second. Raises UsageError where neither run nor model tells."""
        fps = self.run.fps if self.run else None
        if fps is None and self.model is not None:
            fps = self.model.config.defaults.fps
        if fps is None:
            raise UsageError("no run knows the frames per second of these frames; use --fps")
        return fps

    @property
    def trim(self) -> int:
        """Latent frames to trim. A step of no known run is known by its noise alone."""
        if self.run is not None:
            return self.run.settings.trim_first_frames
        noise = self.step.material.noise if self.step else UNSET
        trim = UNSET if isinstance(noise, UnsetType) else noise.trim_first_frames
        return 0 if isinstance(trim, UnsetType) else trim

    def lineage(self) -> dict[str, Any]:
        """How the step came to be."""
        return lineage_of(self.key, self.run, self.model, self.home)


def frames_of(model: Model, source: Source, params: Params, store: Store, film: "Filming") -> Entry:
    """Return the entry of the step's frames, in the first way that is there already or else keeps
    within the memory.

    Raises UsageError for a latent that the VAE cannot decode, and where --memory is less than any
    way takes.
    """
    ways = ways_of(model, source, params.tiling, store)
    there = [way for way in ways if not store.wants(recipe_of(model, source, way))]
    way = there[0] if there else budget.choose("vae", ways, params.memory, store.report)
    recipe = recipe_of(model, source, way)
    entry = store.obtain(recipe, filler(model, source, recipe, way, store, film))
    store.keep_model(reference(model))
    if not there:
        forecast.tell("vae", "decode", way, 1, store)
    return entry


def ways_of(model: Model, source: Source, tiling: str, store: Store) -> list[FilmNeed]:
    """List the ways of decoding that --tiling allows, the best first."""
    from wanpipe.backend.device import compute_dtype, is_cuda

    config, step = model.config, source.step
    assert step is not None
    if store.has("denoise", step.key) or not store.dry:
        channels, *latent = step.shape("latent")
        if channels != config.vae.z_dim:
            raise UsageError(
                f"step {step.key[:8]} was made for another VAE: it has {channels} channels, "
                f"that of {model.directory} decodes {config.vae.z_dim}; use the model that made it"
            )
    else:  # a step that is only planned
        assert source.run is not None
        latent = list(latent_shape(source.run.settings, config.vae.stride))
    computed = ITEMSIZE[compute_dtype(config.dtype)]
    size = (latent[0], latent[1], latent[2])
    ways = budget.film(config.vae, size, computed, is_cuda())
    large = max(size[1:]) * config.vae.stride[1] > geometry.TILE
    whole = [way for way in ways if not way.tiled]
    tiled = [way for way in ways if way.tiled and large]
    return {"auto": whole + tiled, "none": whole, "spatial": tiled or whole}[tiling]


def recipe_of(model: Model, source: Source, way: FilmNeed) -> Recipe:
    """Say what the frames of a step will be, decoded in one way."""
    from wanpipe.backend.device import compute_dtype

    assert source.step is not None
    named = material(
        "decode",
        vae=model.hash("vae"),
        step=source.step.key,
        tiling=TILES if way.tiled else None,
        trim_first_frames=source.trim,
        dtype=compute_dtype(model.config.dtype),
    )
    made = {"model": str(model.directory.resolve())}
    return Recipe(material=named, inputs={"step": source.step.key}, made=made)


def filler(
    model: Model, source: Source, recipe: Recipe, way: FilmNeed, store: Store, film: "Filming"
) -> Callable[[Draft], dict[str, Any]]:
    """Return what decodes the latent into entry and film, slice by slice, in the memory of one."""

    def fill(draft: Draft) -> dict[str, Any]:
        import mlx.core as mx
        import numpy as np

        from wanpipe.backend.device import memory_limit, mlx_dtype, provenance
        from wanpipe.models import tiling, vae
        from wanpipe.weights.load import load_network

        assert source.step is not None
        latent = source.step.read("latent")
        trim = 4 * source.trim
        network = vae.Decoder(model.config.vae)
        load_network(network, model.checked("vae", store), mlx_dtype(recipe.material.dtype))
        store.report.event("loaded", component="vae")
        stride = model.config.vae.stride
        if way.tiled:
            pieces = tiling.decode(network, mx.array(latent), stride[1])
        else:
            whole = network.frames(mx.array(latent), way.at_once)
            pieces = (np.array(vae.to_uint8(piece)) for piece in whole)
        frames = 4 * (latent.shape[1] - 1) + 1 - trim
        shape = (frames, latent.shape[2] * stride[1], latent.shape[3] * stride[2], 3)
        film.begin(recipe.key)
        with (
            draft.stream("frames", shape) as sink,
            store.report.task("decode", latent.shape[1]) as task,
            memory_limit(way.limit),
        ):

            def take(frames: "np.ndarray") -> None:
                sink.append(frames)
                film.take(frames)

            keep(pieces, trim, take, task.advance)
        return {**provenance(), "flops": way.flops}

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

    def __init__(self, source: Source, params: Params, store: Store) -> None:
        super().__init__("film")
        self.source, self.params, self.store = source, params, store
        self.waiting: Queue[np.ndarray | None] = Queue(budget.WAITING_SLICES)
        self.left = False

    def __exit__(self, *_: object) -> None:
        self.left = True
        with suppress(Empty):  # so that there is room for the end
            while True:
                self.waiting.get_nowait()
        self.put(None)
        super().__exit__()

    def begin(self, key: str) -> None:
        """Start the film of what will be the entry `key`; `take` gets its frames."""
        if self.params.output is not None:
            self.add(partial(self.write, self.params.output, key, self.slices()))

    def take(self, frames: "np.ndarray") -> None:
        """Have frames written; without effect where no film is under way, or not any more."""
        self.put(frames)

    def put(self, frames: "np.ndarray | None") -> None:
        """Wait for room among what is to be written, as long as a film is under way."""
        while any(not job.done() for job in self.jobs):
            with suppress(Full):
                self.waiting.put(frames, timeout=POLL)
                return

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
        self.put(None)
        done = list(self.results(0)) or [self.write(output, entry.key, entry.blocks("frames"))]
        fields = {"kind": "written"} if done[0] else {"kind": "reused", "stage": "film"}
        self.store.report.event(**fields, path=str(output))
        run = self.source.run
        if run is not None:
            fps = float(self.params.fps or self.source.fps)
            video = Video(path=str(output.resolve()), frames=entry.key, fps=fps)
            self.store.keep_video(run, video)

    def write(self, output: Path, key: str, slices: Iterable["np.ndarray"]) -> bool:
        """Write the frames of the entry `key` as a film that tells its lineage; False where it is
        there already and was left alone.
        """
        from wanpipe.media import video
        from wanpipe.store.keys import canonical

        rate = self.params.fps or self.source.fps
        rate = int(rate) if rate == int(rate) else rate
        lineage = {**self.source.lineage(), "decode": key, "fps": rate}
        comment = canonical({"wanpipe": lineage}).decode()
        if output.exists() and not self.store.force and says(output, comment):
            return False
        metadata = {"title": lineage.get("prompt") or "", "comment": comment}
        video.write_film(output, slices, rate, metadata)
        return True


def says(film: Path, comment: str) -> bool:
    """Whether a file is a film with this very lineage."""
    from wanpipe.media import video

    try:
        return video.read_metadata(film).get("comment") == comment
    except WanpipeError:
        return False  # not a film: it is replaced by one


@click.command("decode", short_help="a latent to frames and a film")
@stage_options
@options.model
@options.sources
@options.film
@options.memory
def command(session: Session, model: str | None, references: tuple[str, ...], **asked: Any) -> None:
    """Decode a denoised latent with the VAE, and write a film: .mp4, .webm, .gif, or a folder of
    .png frames.
    """
    given = sources.collect(references, ("step", "frames"), session.store)
    needed = given.frames is None and given.step is not None
    found = find_model(model, given.entries, session.store, given.run) if needed else None
    session.deliver([run(found, given, Params(**asked), session.store).path])
