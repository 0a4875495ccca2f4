"""preview: draw drafts as one image, with a row of frames for each.

Reads: `x0` of denoise entries; with --vae also a model's vae, with --vae-tiny a tiny one.
Writes: a PNG; prints its path.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli import options
from wanpipe.cli.printing import print_path
from wanpipe.cli.session import Session, read_only_options
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media.latent_rgb import linear_frames
from wanpipe.runtime.output import check_writable, replace_output
from wanpipe.store import Entry, Run, Store, key_of
from wanpipe.store.entry import read_entry
from wanpipe.weights.model import Model, find_model
from wanpipe.weights.tiny_vae import open_tiny_vae

if TYPE_CHECKING:
    import numpy as np

COLUMNS = 5


@dataclass(frozen=True, kw_only=True)
class Params:
    """Where to write the image, and how many frames to show of each video.

    Without `output` the image is named after its steps. `vae_tiny` is the file of a tiny VAE to
    decode with.
    """

    output: Path | None = None
    columns: int = COLUMNS
    vae_tiny: Path | None = None


def run(steps: Sequence[Entry], params: Params, store: Store, model: Model | None = None) -> Path:
    """Draw the clean video that each step predicts, and return the path of the image.

    With a `model` the frames are decoded by its VAE; without one and without a tiny VAE, a linear
    map approximates them. Raises UsageError for an output that is not .png, CheckpointError for a
    file that is no tiny VAE.
    """
    from wanpipe.media import video

    if params.columns < 1:
        raise UsageError(f"columns must be 1 or more, got {params.columns}; use {COLUMNS}")
    output = params.output or Path(f"drafts-{key_of([step.key for step in steps])[:8]}.png")
    if output.suffix.lower() != ".png":
        raise UsageError(f"a preview must end in .png, got {output.name}; use a .png name")
    with writable(output):
        check_writable(output)
        if output.is_dir():
            raise UsageError(f"a preview is a file, but {output} is a folder; give another name")
    decode = decoder(steps, params, store, model)
    rows = []
    with store.report.task("preview", len(steps)) as task:
        for step in steps:
            run = Store(step.root, store.report).runs.latest(step.key)
            trim = run.settings.trim_first_frames if run else 0
            latent = step.read("x0")[:, (run.settings.reference_frames or 0) if run else 0 :]
            # a linear map gives one frame for each latent frame
            dropped = trim if decode is linear_frames else 4 * trim
            rows.append((label(step, run), decode(latent)[dropped:]))
            task.advance()
    with writable(output), replace_output(output) as draft:
        video.contact_sheet(rows, params.columns).save(draft, compress_level=1)
    return output


def decoder(
    steps: Sequence[Entry], params: Params, store: Store, model: Model | None
) -> "Callable[[np.ndarray], np.ndarray]":
    """Return what turns a normalized latent (C, F, H, W) into frames (T, Y, X, 3) uint8."""
    if model is None and params.vae_tiny is None:
        return linear_frames
    import mlx.core as mx

    from wanpipe.backend.device import compute_dtype, mlx_dtype
    from wanpipe.models.vae import vae
    from wanpipe.weights.load import load_network

    if params.vae_tiny is not None:
        if model is not None:
            raise UsageError("a preview is decoded by one VAE; give either --vae or a tiny VAE")
        [tiny, *_] = [open_tiny_vae(params.vae_tiny, step.shape("x0")[0], store) for step in steps]
        small = tiny.load(mlx_dtype(compute_dtype("bfloat16")), store)
        return lambda latent: vae.video_uint8(small.frames(mx.array(latent)))
    assert model is not None
    network = vae.Decoder(model.config.vae)
    dtype = mlx_dtype(compute_dtype(model.config.dtype))
    load_network(network, model.checked("vae", store), dtype)
    return lambda latent: vae.video_uint8(network.frames(mx.array(latent)))


def label(step: Entry, run: Run | None) -> str:
    """Return the label of a row of frames: seed, step and key."""
    seed = "given noise" if run is None or run.seed is None else f"seed {run.seed}"
    of = f" of {run.step_count}" if run else ""
    return f"{seed}   step {step.step + 1}{of}   {step.key[:8]}"


@contextmanager
def writable(output: Path) -> Iterator[None]:
    """Raise WanpipeError if the preview cannot be written."""
    try:
        yield
    except OSError as error:
        raise WanpipeError(f"{output} cannot be written: {error.strerror or error}") from error


def choose(references: Sequence[str], all_drafts: bool, store: Store) -> list[Entry]:
    """Return the given steps, or the last step of every unfinished run."""
    if bool(references) == all_drafts:
        raise UsageError("give either steps or --all-drafts")
    paths = [store.locate(reference) for reference in references]
    if all_drafts:
        paths = [store.root / place for place in drafts(store)]
        if not paths:
            raise UsageError(f"no draft in {store.root}; make one with `wanpipe denoise --stop-at`")
    for path in paths:
        if path.parent.name != "denoise":
            raise UsageError(f"preview takes steps of denoise, got {path.parent.name}/{path.name}")
    return [read_entry(path) for path in paths]


def drafts(store: Store) -> list[str]:
    """Return the last step of every unfinished run as stage/key, the oldest first."""
    steps = {row.key: row for row in store.index.read().values() if row.stage == "denoise"}
    found = {}
    for run in store.runs.all():
        done = [steps[key] for key in run.steps if key in steps and steps[key].readable]
        if done and done[-1].step is not None and done[-1].step + 1 < run.step_count:
            found[done[-1].key] = (done[-1].time, run.seed or 0, done[-1])
    # the last step of one run may be in the middle of another
    parents = {row.parent for row in steps.values()}
    ends = [one for one in found.values() if one[2].key not in parents]
    return [row.id for _, _, row in sorted(ends, key=lambda one: (*one[:2], one[2].key))]


@click.command("preview")
@click.argument("references", nargs=-1, metavar="[ENTRY]...")
@click.option("--all-drafts", is_flag=True, help="Show every unfinished run in the cache.")
@click.option("--vae", is_flag=True, help="Decode with the VAE: slower, but exact.")
@options.tiny
@options.model
@click.option(
    "--output",
    type=options.PATH,
    metavar="FILE",
    help="Write the image to this .png file.  [default: drafts-KEY.png]",
)
@click.option(
    "--columns",
    type=int,
    metavar="N",
    default=COLUMNS,
    show_default=True,
    help="Show N frames of each video.",
)
@read_only_options
def command(
    session: Session,
    references: tuple[str, ...],
    all_drafts: bool,
    vae: bool,
    tiny: bool,
    model: str | None,
    **asked: Any,
) -> None:
    """Draw drafts as one image, with a row of frames for each.

    Each ENTRY is a step. Its row shows the video that the step predicts. To finish a draft, run
    `wanpipe denoise --from ENTRY`.
    """
    store, asked["vae_tiny"] = session.store, options.read_tiny(tiny, asked["vae_tiny"])
    steps = choose(references, all_drafts, store)
    made_by = Store(steps[0].root, store.report).runs.latest(steps[0].key) if vae else None
    found = find_model(model, steps, store, made_by) if vae else None
    print_path(run(steps, Params(**asked), store, found))
