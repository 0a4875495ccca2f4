"""demo: make videos with the tiny model in the package, in seconds on a CPU.

Reads: the checkpoint in wanpipe/demo, trained on colored shapes that move.
Writes: the results of `run` for every seed, and a contact sheet of the videos.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from stages import convert, decode, denoise, encode_text
from stages import run as composed
from wanpipe import demo
from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.runtime.output import replace_output
from wanpipe.store import Entry, Store
from wanpipe.weights.model import open_model

PROMPT = "a red circle moves right on a white background"
SHOWN = 6  # frames of a video on the sheet
LABEL = 80  # letters of the prompt on the sheet


@dataclass(frozen=True, kw_only=True)
class Params:
    """The prompt, the seeds, and the folder of the videos."""

    prompt: str = PROMPT
    seeds: tuple[int, ...] = (0,)
    output_dir: Path = Path("demo")


def run(params: Params, store: Store) -> list[Path]:
    """Convert the demo checkpoint once, make one video per seed, and return videos and sheet."""
    return make_videos(params, Session(store=store))


def make_videos(params: Params, session: Session) -> list[Path]:
    """Make the videos as `run` does, or report the plan with --dry-run."""
    if not params.prompt.strip():
        raise UsageError(f'a prompt must say something, got none; try "{PROMPT}"')
    remark(params.prompt, session.store)
    conversion = convert.plan(convert.Params(checkpoint_dir=demo.T2V), session.store)
    session.make(conversion)
    [directory] = conversion.paths
    if session.dry_run and not directory.is_dir():
        return []
    words = re.findall(r"\w+", params.prompt.lower())
    stem = "-".join(words)[: composed.LONGEST_STEM] or "video"
    asked = composed.Params(
        text=encode_text.Params(prompts=(params.prompt,)),
        image=None,
        denoise=denoise.Params(seeds=params.seeds),
        decode=decode.Params(output=params.output_dir / f"{stem}.mp4"),
    )
    if not session.dry_run:
        params.output_dir.mkdir(parents=True, exist_ok=True)
    planned = composed.plan(open_model(directory), asked, session.store)
    session.make(*planned.plans)
    if session.dry_run:
        return list(planned.videos)
    entries = [entry.published() for entry in planned.frames]
    return [*planned.videos, write_sheet(params, entries, stem)]


def remark(prompt: str, store: Store) -> None:
    """Report words that the model does not know, or what the prompt leaves open."""
    from wanpipe.demo import vocabulary

    if strange := vocabulary.unknown_words(prompt):
        store.report.remark(
            f"the tiny model never saw {', '.join(strange)}, so the video shows something else; "
            f"it knows {vocabulary.summary()}"
        )
    elif missing := vocabulary.missing(prompt):
        store.report.remark(
            f"the prompt names no {', no '.join(missing)}, so the model chooses; "
            f"it knows {vocabulary.summary()}"
        )


def write_sheet(params: Params, entries: Sequence[Entry], stem: str) -> Path:
    """Write a contact sheet: one row of frames per video, the prompt above the first."""
    from wanpipe.media import video

    prompt = textwrap.shorten(params.prompt, LABEL, placeholder="…")
    labels = [f"seed {seed}" for seed in params.seeds]
    labels[0] = f"{prompt} ({labels[0]})"
    rows = [(label, entry.read("frames")) for label, entry in zip(labels, entries, strict=True)]
    path = params.output_dir / f"{stem}.png"
    with replace_output(path) as draft:
        video.contact_sheet(rows, columns=SHOWN, width=96).save(draft)
    return path


@click.command("demo")
@click.argument("prompt", default=PROMPT)
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0,),
    metavar="N",
    help="Set the random seed. Repeatable, for one video per seed.  [default: 0]",
)
@click.option(
    "--output-dir",
    type=options.PATH,
    metavar="DIR",
    default=Path("demo"),
    show_default=True,
    help="Write the videos and their contact sheet to DIR.",
)
@stage_options
def command(session: Session, prompt: str, seeds: tuple[int, ...], output_dir: Path) -> None:
    """Make a video with the tiny included model, in seconds.

    PROMPT is a sentence such as "a red circle moves right on a white background". The model knows
    only shapes (circle, square, triangle, star), colors, backgrounds and motions.
    """
    if session.name is not None:
        raise UsageError("--name is for one entry, a demo makes many; leave it out")
    params = Params(prompt=prompt, seeds=seeds, output_dir=output_dir)
    session.print_paths(make_videos(params, session))
