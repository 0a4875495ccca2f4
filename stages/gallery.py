"""gallery: write the runs of a cache as a static web site.

Reads: records of runs, `x0` of their steps, their frames and videos.
Writes: a folder of web pages; prints the path of the first page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from wanpipe.cli import options
from wanpipe.cli.printing import print_path
from wanpipe.cli.progress import make_report
from wanpipe.cli.session import cache_option, output_options
from wanpipe.cli.values import REFERENCE
from wanpipe.errors import StoreError, UsageError
from wanpipe.store import Run, Store


@dataclass(frozen=True, kw_only=True)
class Params:
    """The folder to write, and what it shows.

    `runs` are runs, entries of runs or paths of their videos; without them every run is shown.
    `limit` is the largest number of runs, the latest first.
    """

    output: Path
    runs: tuple[str, ...] = ()
    limit: int | None = None


def run(params: Params, store: Store) -> Path:
    """Write the gallery, and return the path of its first page. Only new files are written.

    Raises UsageError for a folder that no gallery wrote, StoreError if there is no run.
    """
    from wanpipe.cache.gallery.folder import check_folder
    from wanpipe.cache.gallery.site import build

    if params.limit is not None and params.limit < 1:
        raise UsageError(f"limit must be 1 or more, got {params.limit}; leave it out for every run")
    check_folder(params.output)
    if store.root.is_dir() and is_inside(params.output, store.root):
        raise UsageError(
            f"a gallery must not be in the cache, got {params.output}; give another folder"
        )
    store = Store(store.root, store.report, read_only=True)
    return build(params.output, choose(params, store), store)


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or something in it."""
    return path.resolve().is_relative_to(folder.resolve())


def choose(params: Params, store: Store) -> list[Run]:
    """Return the runs to show, the latest used first. Raises StoreError if there is none."""
    runs = store.runs.all()
    if not runs:
        raise StoreError(f"no run in {store.root}; make one with `wanpipe run`")
    damaged = len(store.runs.list_keys()) - len(store.runs.recorded())
    if damaged > 0:
        store.report.remark(
            f"{damaged} record{'s' if damaged > 1 else ''} of runs cannot be read and "
            f"{'are' if damaged > 1 else 'is'} left out; see `wanpipe cache verify`"
        )
    if params.runs:
        wanted = {key for reference in params.runs for key in keys_of(reference, runs, store)}
        runs = [run for run in runs if run.key in wanted]
    return runs[: params.limit]


def keys_of(reference: str, runs: Sequence[Run], store: Store) -> list[str]:
    """Return the keys of the runs that a reference means. Raises UsageError or StoreError."""
    path = Path(reference)
    if path.exists() and not path.is_dir():
        place = str(path.resolve())
        found = [run.key for run in runs if any(video.path == place for video in run.videos)]
        if not found:
            raise UsageError(f"no run in {store.root} made the video {reference}")
        return found
    if meant := store.find_run(reference):
        return [meant.key]
    entry = store.locate(reference)
    key = entry.name
    if entry.parent.name == "decode":
        row = store.index.read().get(f"decode/{key}")
        key = row.inputs.get("step", "") if row else ""
    found = [run.key for run in runs if key in (*run.steps, *run.inputs.values())]
    if not found:
        raise UsageError(f"no run in {store.root} has {reference}; give a run, a step or a video")
    return found


@click.command("gallery")
@click.option(
    "--output",
    type=options.PATH,
    required=True,
    metavar="FOLDER",
    help="Write the pages to FOLDER, which must be new, empty or a gallery.",
)
@click.option(
    "--run",
    "runs",
    type=REFERENCE,
    multiple=True,
    metavar="RUN",
    help="Show only this run: a run, one of its entries, or its video. Repeatable.",
)
@click.option("--limit", type=int, metavar="N", help="Show only the latest N runs.")
@cache_option
@output_options
def command(
    output: Path,
    runs: tuple[str, ...],
    limit: int | None,
    cache: Path,
    events: str | None,
    quiet: bool,
) -> None:
    """Write the runs of the cache as a web site.

    FOLDER/index.html shows a card for each run, and opens from the disk without a server. Each run
    has a page with its video, its steps, its branches, its settings, and the command that makes it
    again. Run the command again to add new runs and remove those that are gone.
    """
    store = Store(cache, make_report(events, quiet))
    print_path(run(Params(output=output, runs=runs, limit=limit), store))
