"""What every command is given: the options that all of them have, as a `Session`.

The only place that reads the environment.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wanpipe.cache.planning import PlanStore
from wanpipe.cli.options import Command, group
from wanpipe.cli.progress import make_report
from wanpipe.store import Store
from wanpipe.store.labels import check_name


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every command gets from the options that all have."""

    store: Store
    name: str | None

    def deliver(self, paths: Sequence[Path], entries: Sequence[Path] | None = None) -> None:
        """Print the paths of what was made, one a line, after naming it if a name was given.

        Several get NAME-1, NAME-2; `entries` are what is named where the paths are not entries.
        """
        for index, (path, entry) in enumerate(zip(paths, entries or paths, strict=True)):
            if self.name is not None and not self.store.dry:
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
        kind = PlanStore if dry_run else Store
        function(session=Session(store=kind(cache, report, force=force), name=name), **rest)

    return everywhere(wrapper)


def read_only_options(function: Command) -> Command:
    """Add the options of commands that make no entry, and give the command a `session`."""

    @functools.wraps(function)
    def wrapper(cache: Path, events: str | None, quiet: bool, **rest: Any) -> None:
        session = Session(store=Store(cache, make_report(events, quiet)), name=None)
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
