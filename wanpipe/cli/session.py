"""What every command is given: the options that all of them have, as a `Session`.

The only place that reads the environment.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli.options import Command, group
from wanpipe.cli.progress import make_report
from wanpipe.store import Store
from wanpipe.store.labels import check_name

if TYPE_CHECKING:
    from wanpipe.pipeline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every command gets from the options that all have."""

    store: Store
    name: str | None = None
    dry_run: bool = False

    def carry_out(self, plan: "Plan[Any]") -> None:
        """Make a plan, or with --dry-run report it; then print the paths of its results."""
        self.make(plan)
        self.print_paths(plan.paths)

    def make(self, *plans: "Plan[Any]") -> None:
        """Make plans in order, or with --dry-run report them."""
        if self.dry_run:
            from wanpipe.pipeline.dry_run import DryRun

            dry_run = DryRun(self.store)
            for plan in plans:
                dry_run.report(plan)
        else:
            for plan in plans:
                plan.make()

    def print_paths(self, paths: Sequence[Path], entries: Sequence[Path] | None = None) -> None:
        """Print the paths of results, one a line, after naming them if --name is given.

        Several get NAME-1, NAME-2. `entries` are named in place of paths that are no entries.
        """
        for index, (path, entry) in enumerate(zip(paths, entries or paths, strict=True)):
            if self.name is not None and not self.dry_run:
                self.store.name(self.name if len(paths) == 1 else f"{self.name}-{index + 1}", entry)
            click.echo(str(path))


def stage_options(function: Command) -> Command:
    """Add the options that every stage has, and give the command a `session` in their place."""

    @functools.wraps(function)
    def wrapper(
        cache: Path,
        dry_run: bool,
        force: bool,
        name: str | None,
        events: str | None,
        quiet: bool,
        **rest: Any,
    ) -> None:
        if name is not None:
            check_name(name)
        report = make_report(events, quiet)
        store = Store(cache, report, force=force, read_only=dry_run)
        function(session=Session(store=store, name=name, dry_run=dry_run), **rest)

    return everywhere(wrapper)


def read_only_options(function: Command) -> Command:
    """Add the options of commands that make no entry, and give the command a `session`."""

    @functools.wraps(function)
    def wrapper(cache: Path, events: str | None, quiet: bool, **rest: Any) -> None:
        session = Session(store=Store(cache, make_report(events, quiet)))
        function(session=session, **rest)

    return group(root, speech)(wrapper)


root = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cache"),
    envvar="WANPIPE_CACHE",
    show_envvar=True,
    show_default=True,
    help="Root of the cache.",
)
speech = group(
    click.option("--events", type=click.Choice(["json"]), help="One JSON object a line on stderr."),
    click.option("--quiet", is_flag=True, help="No progress on stderr."),
)
everywhere = group(
    root,
    click.option("--dry-run", is_flag=True, help="Tell what is there and what would be computed."),
    click.option("--force", is_flag=True, help="Compute again what is there already."),
    click.option("--name", help="A name for the entry, to use wherever an entry is asked for."),
    speech,
)
