"""Writes a gallery: a page of all runs, and a page for each.

Files that exist and do not change stay, the page of all runs is written last, and what belongs to
it no more is removed after that. So an interruption leaves the earlier gallery whole.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.cache.branches import View
from wanpipe.cache.gallery.cards import Card, describe, seconds_of
from wanpipe.cache.gallery.folder import RUNS, Folder, opened
from wanpipe.cache.gallery.pictures import Colors, PictureWriter
from wanpipe.errors import StoreError
from wanpipe.runtime import interrupt
from wanpipe.runtime.units import parse_timestamp
from wanpipe.store import Run, Store
from wanpipe.store.index import Summary

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX = "index.html"
PAGES = "pages"  # of this package: templates, style sheet and script
SQUARE = (0.8, 1.25)  # width over height


def build(output: Path, runs: Sequence[Run], store: Store) -> Path:
    """Write the gallery of some runs to a folder, and return the path of its first page.

    Changes nothing in the cache. Raises UsageError for a folder that no gallery wrote, and
    WanpipeError if it cannot be written.
    """
    view = View.of(store)
    cards = describe(store, runs, view)
    with opened(output) as folder:
        illustrate(cards, view, folder, store)
        write_pages(cards, folder, store)
        folder.remove_others()
    return output / INDEX


def illustrate(cards: Sequence[Card], view: View, folder: Folder, store: Store) -> None:
    """Write the pictures and videos of all runs, and note what is damaged or missing."""
    writer = PictureWriter(store.root, folder)
    # those of the VAE, if there are any, rather than those of a tiny one
    frames = {
        step: min(rows, key=lambda row: row.what != "") for step, rows in view.trees.frames.items()
    }
    models: dict[str, list[Run]] = {}
    for run in store.runs.all():
        models.setdefault(model_of(run), []).append(run)
    colors = {name: Colors(store.root, runs, frames) for name, runs in models.items()}
    with store.report.task("gallery", len(cards)) as task:
        for card in cards:
            add_film(card, frames, writer)
            add_strips(card, colors[model_of(card.run)], writer)
            task.advance()


def model_of(run: Run) -> str:
    """Return what identifies the model of a run."""
    return run.model.key or run.model.directory


def add_film(card: Card, frames: Mapping[str, Summary], writer: PictureWriter) -> None:
    """Add the latest video that can be played, and its first frame."""
    notes = []
    for video in reversed(card.run.videos):
        card.film, note = writer.film(video)
        if card.film is not None:
            break
        notes.append(note or "")
    else:
        card.notes += notes
    row = frames.get(card.run.last)
    if row is None:
        return
    try:
        card.poster = writer.poster(row)
    except StoreError:
        card.notes.append(f"The frames {row.key[:8]} are damaged")


def add_strips(card: Card, colors: Colors, writer: PictureWriter) -> None:
    """Add the pictures of all steps, and for a run without frames that of its latest one."""
    for row in card.rows:
        interrupt.check()
        number = card.run.number(row.key) + 1
        try:
            name = writer.strip(row.key, card.run, colors)
            if name is None:
                card.notes.append("Its latents have no map to colors, so no step has a picture")
                return
            card.strips[number] = name
        except StoreError:
            card.notes.append(f"Step {number} is damaged")
    if card.poster is None and card.strips:
        latest = card.run.steps[max(card.strips) - 1 - card.run.first]
        card.still = writer.still(latest, card.strips[max(card.strips)], card.frames)


def write_pages(cards: Sequence[Card], folder: Folder, store: Store) -> None:
    """Write the style sheet, the script, the page of each run, and the page of all runs."""
    environment = templates()
    common: dict[str, Any] = {"cache": str(store.root.absolute())}
    for kind, name in (("css", "style"), ("js", "script")):
        text = files(__package__).joinpath(PAGES, f"gallery.{kind}").read_text("utf-8")
        # a page of an earlier version keeps the files that it was written for
        common[name] = f"gallery-{xxhash.xxh3_128_hexdigest(text.encode())[:8]}.{kind}"
        folder.write_text(common[name], text)
    page = environment.get_template("run.html")
    for index, card in enumerate(cards):
        interrupt.check()
        strips = [{"step": step, "picture": name} for step, name in sorted(card.strips.items())]
        text = page.render(
            **common,
            up="../",
            card=card,
            strips=strips,
            details=details(card),
            newer=cards[index - 1] if index else None,
            older=cards[index + 1] if index + 1 < len(cards) else None,
        )
        folder.write_text(f"{RUNS}/{card.key}.html", text)
    models = sorted({card.model for card in cards})
    index_page = environment.get_template("index.html")
    text = index_page.render(**common, up="", cards=cards, models=models, shape=shape(cards))
    folder.write_text(INDEX, text)


def templates() -> "Environment":
    """Return the templates. Every value is escaped: a prompt is text, never markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["minute"] = minute
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def details(card: Card) -> list[tuple[str, str]]:
    """Return all that is known of a run: label and text."""
    run = card.run
    return [
        *card.settings.items(),
        ("size on disk", card.size),
        ("computed in", seconds_of(card)),
        ("model folder", run.model.directory),
        *((f"video {index + 1}", video.path) for index, video in enumerate(run.videos)),
        ("last step", f"denoise/{card.rows[-1].key}" if card.rows else "none"),
        ("run", run.key),
    ]


def minute(moment: str) -> str:
    """Format the time of a record without its seconds, in UTC."""
    from datetime import UTC, datetime

    seconds = parse_timestamp(moment)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else "?"


def shape(cards: Sequence[Card]) -> str:
    """Return the shape of most videos: tall, square or wide."""
    shapes: Counter[str] = Counter()
    for card in cards:
        ratio = card.run.settings.width / card.run.settings.height
        shapes["tall" if ratio < SQUARE[0] else "square" if ratio <= SQUARE[1] else "wide"] += 1
    return shapes.most_common(1)[0][0]
