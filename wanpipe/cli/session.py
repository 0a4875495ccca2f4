"""The options of every command, and the `Session` that a command gets instead of them."""

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cli.options import Command, group
from wanpipe.cli.printing import print_path
from wanpipe.cli.progress import make_report
from wanpipe.errors import UsageError
from wanpipe.runtime.report import Report
from wanpipe.store import Store
from wanpipe.store.refs import check_name

if TYPE_CHECKING:
    from wanpipe.pipeline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Session:
    """The cache that a command works on, and the value of --name."""

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

            DryRun(self.store).report(plans)
        else:
            from wanpipe.pipeline.schedule import make

            make(plans, self.store)

    def print_paths(self, paths: Sequence[Path], entries: Sequence[Path] | None = None) -> None:
        """Print the paths of the results, one per line, and name them if --name is given.

        Several results are named NAME-1, NAME-2 and so on. Pass `entries` if the paths are not
        entries themselves: a name belongs to an entry.
        """
        for index, (path, entry) in enumerate(zip(paths, entries or paths, strict=True)):
            if self.name is not None and not self.dry_run:
                self.give(self.name if len(paths) == 1 else f"{self.name}-{index + 1}", entry)
            print_path(path)

    def give(self, name: str, entry: Path) -> None:
        """Name an entry, and tell if the name was another one's: gc may delete that now."""
        before = self.store.names.get(name)
        self.store.name(name, entry)
        if before not in (None, self.store.names.get(name)):
            stage, _, key = before.partition("/")
            self.store.report.remark(f"{name} was the name of {stage} {key[:8]} before")


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path("cache"),
    envvar="WANPIPE_CACHE",
    show_envvar=True,
    show_default=True,
    help="Use the cache in DIR.",
)
REMOTE = "WANPIPE_REMOTE"
remote_option = click.option(
    "--remote",
    metavar="URL",
    envvar=REMOTE,
    show_envvar=True,
    help="Also look up entries at URL, and push new ones: s3://, gs://, az://, https:// (read "
    "only) or file://.",
)
push_option = click.option(
    "--push",
    type=click.Choice(["all", "steps", "none"]),
    help="Push every entry and model, or all but models, or none to --remote. By default, steps "
    "within a run and models are not pushed.",
)
# each command has its own: click would name the one of `cli` by the context that comes first
help_option = click.help_option("-h", "--help")
output_options = group(
    click.option(
        "--events", type=click.Choice(["json"]), help="Print events to stderr as JSON lines."
    ),
    click.option("--quiet", is_flag=True, help="Print warnings and errors only."),
    help_option,
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would be computed, and compute nothing."
)
common_options = group(
    cache_option,
    remote_option,
    push_option,
    dry_run_option,
    click.option("--force", is_flag=True, help="Recompute entries that are already in the cache."),
    click.option("--name", metavar="NAME", help="Name the entry, so you can refer to it later."),
    output_options,
)


def report_of(events: str | None, quiet: bool) -> Report:
    """Return the report of the program that calls a command, or that of the command line."""
    return click.get_current_context().find_object(Report) or make_report(events, quiet)


def stage_options(function: Command) -> Command:
    """Add the options of every stage. The command gets a `session` instead of them."""

    @functools.wraps(function)
    def wrapper(
        cache: Path,
        remote: str | None,
        push: str | None,
        dry_run: bool,
        force: bool,
        name: str | None,
        events: str | None,
        quiet: bool,
        **rest: Any,
    ) -> None:
        if name is not None:
            check_name(name)
        report = report_of(events, quiet)
        store = Store(cache, report, force=force, read_only=dry_run)
        with with_remote(store, remote, "none" if dry_run else push):
            function(session=Session(store=store, name=name, dry_run=dry_run), **rest)

    return common_options(wrapper)


def sweep_options(function: Command) -> Command:
    """Add the options of a command whose workers compute. The command gets a `session` that only
    looks entries up, and `remote` and `push` for the workers.
    """

    @functools.wraps(function)
    def wrapper(
        cache: Path, dry_run: bool, remote: str | None, events: str | None, quiet: bool, **rest: Any
    ) -> None:
        store = Store(cache, report_of(events, quiet))
        with with_remote(store, remote, "none"):
            session = Session(store=store, dry_run=dry_run)
            function(session=session, remote=remote, **rest)

    options = (cache_option, remote_option, push_option, dry_run_option, output_options)
    return group(*options)(wrapper)


def read_only_options(function: Command) -> Command:
    """Add the options of commands that compute no entry. The command gets a `session` instead."""

    @functools.wraps(function)
    def wrapper(
        cache: Path, remote: str | None, events: str | None, quiet: bool, **rest: Any
    ) -> None:
        store = Store(cache, report_of(events, quiet))
        with with_remote(store, remote, "none"):
            function(session=Session(store=store), **rest)

    return group(cache_option, remote_option, output_options)(wrapper)


def whole_options(function: Command) -> Command:
    """Add the options of commands that work on the cache, or on the remote instead. The command
    gets a `session`, and the `remote` as a URL or None.
    """

    @functools.wraps(function)
    def wrapper(
        cache: Path, remote: str | None, events: str | None, quiet: bool, **rest: Any
    ) -> None:
        url = os.environ.get(REMOTE) if remote == "" else remote
        if remote == "" and not url:
            raise UsageError(f"--remote without a URL needs {REMOTE}; give a URL")
        session = Session(store=Store(cache, report_of(events, quiet)))
        function(session=session, remote=url, **rest)

    instead = click.option(
        "--remote",
        metavar="[URL]",
        is_flag=False,
        flag_value="",
        help="Work on the remote at URL instead, by default the one in WANPIPE_REMOTE.",
    )
    return group(cache_option, instead, output_options)(wrapper)


def with_remote(store: Store, url: str | None, push: str | None) -> AbstractContextManager[None]:
    """Give a store the remote at a URL for the time of a command."""
    if url is None:
        return nullcontext()
    from wanpipe.cache.remote.tier import opened

    return opened(url, push, store)
