"""demo: films from the tiny model that ships, in seconds on a CPU.

Reads: the checkpoint in wanpipe/demo, trained on coloured shapes that move.
Writes: what `run` writes for every seed, and a contact sheet of the films.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import click

from stages import convert, decode, denoise, encode_text
from stages import run as composed
from wanpipe import cli, demo, options
from wanpipe.errors import UsageError
from wanpipe.model import open_model
from wanpipe.store import Store

PROMPT = "a red circle moves right on a white background"
SHOWN = 6  # frames of a film on the sheet


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
    converted = convert.run(convert.Params(checkpoint_dir=demo.T2V), store)
    if store.dry and not converted.is_dir():
        return []
    stem = "-".join(re.findall(r"\w+", params.prompt.lower()))[: composed.LONGEST_STEM]
    if not store.dry:
        params.output_dir.mkdir(parents=True, exist_ok=True)
    asked = composed.Params(
        text=encode_text.Params(prompts=(params.prompt,)),
        image=None,
        denoise=denoise.Params(seeds=params.seeds),
        decode=decode.Params(output=params.output_dir / f"{stem}.mp4"),
    )
    films = [film.path for film in composed.run(open_model(converted), asked, store)]
    return films if store.dry else [*films, write_sheet(params, films, stem)]


def write_sheet(params: Params, films: list[Path], stem: str) -> Path:
    """Write a contact sheet: one row of frames per film."""
    from wanpipe import media

    rows = [
        (f"{params.prompt}, seed {seed}", media.read_film(film)[0])
        for seed, film in zip(params.seeds, films, strict=True)
    ]
    path = params.output_dir / f"{stem}.png"
    media.contact_sheet(rows, columns=SHOWN, width=96).save(path)
    return path


@click.command("demo", short_help="a film from the tiny model that ships")
@cli.common
@click.argument("prompt", default=PROMPT)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), help="Repeatable.")
@click.option(
    "--output-dir",
    type=options.PATH,
    default=Path("demo"),
    show_default=True,
    help="Where films and contact sheet go.",
)
def command(session: cli.Session, prompt: str, seeds: tuple[int, ...], output_dir: Path) -> None:
    """Make a film of PROMPT, such as "a red circle moves right on a white background".

    The model that ships knows shapes (circle, square, triangle, star), colours, backgrounds and
    motions, nothing else; it shows what the stages do in seconds.
    """
    if session.name is not None:
        raise UsageError("--name is for one entry, a demo makes many; leave it out")
    session.deliver(run(Params(prompt=prompt, seeds=seeds, output_dir=output_dir), session.store))
