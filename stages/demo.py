"""demo: films from the tiny model that ships, in seconds on a CPU.

Reads: the checkpoint in wanpipe/demo, trained on coloured shapes that move.
Writes: what `run` writes for every seed, and a contact sheet of the films.
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
from wanpipe.runtime.disk import replacing
from wanpipe.store import Store
from wanpipe.weights.model import open_model

PROMPT = "a red circle moves right on a white background"
SHOWN = 6  # frames of a film on the sheet
LABEL = 80  # letters of the prompt on the sheet


@dataclass(frozen=True, kw_only=True)
class Params:
    """What to show and where the films go."""

    prompt: str = PROMPT
    seeds: tuple[int, ...] = (0,)
    output_dir: Path = Path("demo")


def run(params: Params, store: Store) -> list[Path]:
    """Convert the demo checkpoint once, make one film per seed, and return films and sheet."""
    if not params.prompt.strip():
        raise UsageError(f'a prompt must say something, got none; try "{PROMPT}"')
    remark(params.prompt, store)
    converted = convert.run(convert.Params(checkpoint_dir=demo.T2V), store)
    if store.dry and not converted.is_dir():
        return []
    words = re.findall(r"\w+", params.prompt.lower())
    stem = "-".join(words)[: composed.LONGEST_STEM] or "film"
    if not store.dry:
        params.output_dir.mkdir(parents=True, exist_ok=True)
    asked = composed.Params(
        text=encode_text.Params(prompts=(params.prompt,)),
        image=None,
        denoise=denoise.Params(seeds=params.seeds),
        decode=decode.Params(output=params.output_dir / f"{stem}.mp4"),
    )
    films = composed.run(open_model(converted), asked, store)
    paths = [film.path for film in films]
    return paths if store.dry else [*paths, write_sheet(params, films, stem)]


def remark(prompt: str, store: Store) -> None:
    """Tell which words of the prompt the model never saw, or what the prompt leaves open."""
    from wanpipe.demo import world

    if strange := world.strangers(prompt):
        store.report.remark(
            f"the tiny model never saw {', '.join(strange)}, so the film shows something else; "
            f"it knows {world.vocabulary()}"
        )
    elif missing := world.missing(prompt):
        store.report.remark(
            f"the prompt names no {', no '.join(missing)}, so the model chooses; "
            f"it knows {world.vocabulary()}"
        )


def write_sheet(params: Params, films: Sequence[composed.Film], stem: str) -> Path:
    """Write a contact sheet: one row of frames per film, the prompt above the first."""
    from wanpipe.media import video

    prompt = textwrap.shorten(params.prompt, LABEL, placeholder="…")
    labels = [f"seed {seed}" for seed in params.seeds]
    labels[0] = f"{prompt} ({labels[0]})"
    rows = [(label, film.frames.read("frames")) for label, film in zip(labels, films, strict=True)]
    path = params.output_dir / f"{stem}.png"
    with replacing(path) as draft:
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
    shapes (circle, square, triangle, star), colors, backgrounds and motions, and nothing else.
    """
    if session.name is not None:
        raise UsageError("--name is for one entry, a demo makes many; leave it out")
    session.print_paths(
        run(Params(prompt=prompt, seeds=seeds, output_dir=output_dir), session.store)
    )
