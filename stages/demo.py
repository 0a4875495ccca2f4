"""demo: make videos with the tiny models in the package, in seconds on a CPU.

Reads: the checkpoints in wanpipe/demo, trained on colored shapes that move.
Writes: the results of `run` for every seed, what they are made from, and a contact sheet.
"""

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages import convert, decode, denoise, encode_image, encode_text, encode_video
from stages import run as composed
from wanpipe import demo
from wanpipe.cli import options, seeds
from wanpipe.cli.session import Session, stage_options
from wanpipe.demo.examples import EXAMPLES, Inputs
from wanpipe.errors import UsageError
from wanpipe.media.names import LETTERS
from wanpipe.runtime.output import replace_output
from wanpipe.store import Store
from wanpipe.weights.model import open_model

if TYPE_CHECKING:
    import numpy as np

SHOWN = 6  # frames of a video on the sheet
LABEL = 80  # letters of the prompt on the sheet


@dataclass(frozen=True, kw_only=True)
class Params:
    """The prompt, by default that of the example, the seeds, and the folder of the videos.

    `what` is one of `examples.EXAMPLES`.
    """

    prompt: str | None = None
    what: str = "text"
    seeds: tuple[int, ...] = (0,)
    output_dir: Path = Path("demo")


def run(params: Params, store: Store) -> list[Path]:
    """Convert a demo checkpoint once, make one video per seed, and return videos and sheet."""
    return make_videos(params, Session(store=store))


def make_videos(params: Params, session: Session) -> list[Path]:
    """Make the videos as `run` does, or report the plan with --dry-run."""
    example = EXAMPLES[params.what]
    prompt = example.prompt if params.prompt is None else params.prompt
    if not prompt.strip():
        raise UsageError(f'a prompt must say something, got none; try "{example.prompt}"')
    remark(prompt, example.shown, session.store)
    with demo.checkpoint(example.checkpoint) as source:
        conversion = convert.plan(convert.Params(checkpoint_dir=source), session.store)
        session.make(conversion)
    [directory] = conversion.paths
    if session.dry_run and not directory.is_dir():
        return []
    words = re.findall(r"\w+", prompt.lower())
    stem = "-".join(words)[:LETTERS] or "video"
    stem = stem if params.what == "text" else f"{params.what}-{stem}"
    output = params.output_dir / f"{stem}.mp4"
    with inputs_folder(params, session) as folder:
        inputs = example.draw(folder)
        planned = composed.plan(
            open_model(directory), run_params(inputs, prompt, params.seeds, output), session.store
        )
        session.make(*planned.plans)
    if session.dry_run:
        return list(planned.videos)
    entries = [entry.published() for entry in planned.frames]
    labels = [f"seed {seed}" for seed in params.seeds]
    labels[0] = f"{textwrap.shorten(prompt, LABEL, placeholder='…')} ({labels[0]})"
    made = [(label, entry.read("frames")) for label, entry in zip(labels, entries, strict=True)]
    return [*planned.videos, write_sheet(output.with_suffix(".png"), [*inputs.rows, *made])]


@contextmanager
def inputs_folder(params: Params, session: Session) -> Iterator[Path]:
    """Provide the folder for the inputs of an example; with --dry-run it is temporary."""
    if session.dry_run:
        with tempfile.TemporaryDirectory(prefix="wanpipe-demo-") as temporary:
            yield Path(temporary)
        return
    params.output_dir.mkdir(parents=True, exist_ok=True)
    folder = params.output_dir / "inputs" / params.what
    if params.what != "text":
        folder.mkdir(parents=True, exist_ok=True)
    yield folder


def run_params(
    inputs: Inputs, prompt: str, seeds: tuple[int, ...], output: Path
) -> composed.Params:
    """Return the parameters of `run` for the inputs of an example."""
    return composed.Params(
        text=encode_text.Params(prompts=(prompt,)),
        image=encode_image.Params(**inputs.image) if inputs.image else None,
        video=encode_video.Params(**inputs.video) if inputs.video else None,
        denoise=denoise.Params(seeds=seeds, **inputs.denoise),
        decode=decode.Params(output=output, **inputs.decode),
    )


def remark(prompt: str, shown: tuple[str, ...], store: Store) -> None:
    """Report words that the model does not know, or what the prompt leaves open and the inputs do
    not show.
    """
    from wanpipe.demo import vocabulary

    if strange := vocabulary.unknown_words(prompt):
        store.report.remark(
            f"the tiny model never saw {', '.join(strange)}, so the video shows something else; "
            f"it knows {vocabulary.summary()}"
        )
    elif missing := [kind for kind in vocabulary.missing(prompt) if kind not in shown]:
        store.report.remark(
            f"the prompt names no {', no '.join(missing)}, so the model chooses; "
            f"it knows {vocabulary.summary()}"
        )


def write_sheet(path: Path, rows: "Sequence[tuple[str, np.ndarray]]") -> Path:
    """Write a contact sheet: one row of frames per video, with a label."""
    from wanpipe.media import video

    with replace_output(path) as draft:
        video.contact_sheet(rows, columns=SHOWN, width=96).save(draft)
    return path


@click.command("demo")
@click.argument("prompt", required=False)
@click.option(
    "--what",
    type=click.Choice([*EXAMPLES]),
    default="text",
    show_default=True,
    help="Make the video from text alone, or show another way, with inputs that are drawn.",
)
@seeds.option
@seeds.auto_option
@click.option(
    "--output-dir",
    type=options.PATH,
    metavar="DIR",
    default=Path("demo"),
    show_default=True,
    help="Write the videos and their contact sheet to DIR.",
)
@stage_options
def command(session: Session, **asked: Any) -> None:
    """Make a video with a tiny included model, in seconds.

    PROMPT is a sentence such as "a red circle moves right on a white background". The models know
    only shapes (circle, square, triangle, star), colors, backgrounds and motions.
    """
    if session.name is not None:
        raise UsageError("--name is for one entry, a demo makes many; leave it out")
    # before NumPy loads: matrices are so small that a second thread only costs time
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    chosen = seeds.choose_seeds(asked["seeds"], asked.pop("auto_seeds"), session.store.report)
    asked["seeds"] = chosen or (0,)
    session.print_paths(make_videos(Params(**asked), session))
