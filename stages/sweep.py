"""sweep: make the videos of all combinations of prompts, seeds and settings.

Reads: a sweep file, models, and what the videos are made from.
Writes: the entries of all stages, a video for each combination; a table and a contact sheet.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.sweep_plan import known_options, plan
from wanpipe.cli import options
from wanpipe.cli.printing import print_json
from wanpipe.cli.session import Session, sweep_options
from wanpipe.errors import WanpipeError
from wanpipe.media.video import check_writable
from wanpipe.sweeps.document import read_sweep
from wanpipe.sweeps.graph import plan_rows, summary
from wanpipe.sweeps.node import Graph
from wanpipe.sweeps.options import take_tls, tls
from wanpipe.sweeps.results import ENDED, check_outputs, rows_of, state_of, write_sheet, write_table

if TYPE_CHECKING:
    from wanpipe.sweeps.node import Outcome


@click.command("sweep")
@click.argument("file", type=options.PATH)
@click.option(
    "--plan", "as_plan", is_flag=True, help="Print the graph as JSON lines, and compute nothing."
)
@click.option(
    "--draft",
    type=int,
    metavar="K",
    help="Take K steps of every video before any takes more.",
)
@click.option(
    "--scheduler",
    metavar="URL",
    help="Compute on the workers of a Dask scheduler.  [default: on this machine]",
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Start N workers on this machine.  [default: one for each device]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    default=2,
    show_default=True,
    help="Try again N times what fails.",
)
@tls
@click.option(
    "--table",
    type=options.PATH,
    metavar="FILE",
    help="Write a table of the videos to this .csv or .json file.",
)
@click.option(
    "--sheet",
    type=options.PATH,
    metavar="FILE",
    help="Draw the videos as one image to this .png file.",
)
@sweep_options
def command(
    session: Session,
    file: Path,
    as_plan: bool,
    draft: int | None,
    table: Path | None,
    sheet: Path | None,
    **asked: Any,
) -> None:
    """Make the videos of many prompts, seeds and settings.

    FILE is a TOML file that lists them; every combination is made. What several videos share is
    computed once. One that fails does not stop the others. Run the same command again to make what
    is missing.
    """
    from wanpipe.sweeps import run as running

    store = session.store
    given = running.Options(tls=take_tls(asked), **asked)
    check_outputs(table, sheet)
    sweep = read_sweep(file, known_options())
    if as_plan or session.dry_run:
        graph = plan(sweep, store, draft)
        if as_plan:
            print_json(*plan_rows(graph, store))
            return
        announce(graph, session)
        session.print_paths([Path(video.path) for video in graph.videos])
        return
    with running.at_work(given, store) as crew:
        graph = plan(sweep, store, draft)
        announce(graph, session)
        make_folders(graph)
        outcomes = running.carry_out(graph, given, store, crew)
    finish(graph, outcomes, session, table, sheet)


def announce(graph: Graph, session: Session) -> None:
    """Report how much there is to do."""
    for event in summary(graph):
        session.store.report.event(**event)


def make_folders(graph: Graph) -> None:
    """Make the folders of the videos, and check that videos can be written there. Raises
    WanpipeError if not.
    """
    paths = [Path(node.output) for node in graph.nodes if node.output and not node.exists]
    for path in {path.parent: path for path in paths}.values():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WanpipeError(f"{path.parent} cannot be made: {error.strerror}") from error
        check_writable(path)


def finish(
    graph: Graph,
    outcomes: "dict[str, Outcome]",
    session: Session,
    table: Path | None,
    sheet: Path | None,
) -> None:
    """Write the table and the sheet, and print the paths of the videos that are there.

    Raises WanpipeError if some are not.
    """
    report = session.store.report
    if table is not None:
        write_table(table, rows_of(graph, outcomes))
        report.event("written", path=str(table))
    if sheet is not None and write_sheet(sheet, graph, outcomes, session.store):
        report.event("written", path=str(sheet))
    states = {video.name: state_of(video, outcomes) for video in graph.videos}
    good = [video for video in graph.videos if states[video.name].state in ENDED]
    session.print_paths(list(dict.fromkeys(Path(video.path) for video in good)))
    bad = [name for name, outcome in states.items() if outcome.state not in ENDED]
    if bad:
        raise WanpipeError(
            f"{len(bad)} of {len(states)} videos could not be made; {bad[0]}: "
            f"{states[bad[0]].error}; run the same command again to try these"
        )
