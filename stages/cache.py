"""cache: inspect, verify, clean up and share the cache.

Reads: all entries, or the named ones.
Writes: names and pins, exports, imported entries; gc removes entries.

Python users call the functions of `wanpipe.cache`, one module per subcommand.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.cache.listing import Filter, list_entries, usage
from wanpipe.cache.table import entry_table, usage_table
from wanpipe.cli import options
from wanpipe.cli.printing import print_json, print_lines, print_path
from wanpipe.cli.session import Session, help_option, read_only_options, whole_options
from wanpipe.cli.values import REFERENCE, Age, Size
from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime.disk import store_errors
from wanpipe.store import Store
from wanpipe.store.schema import STAGES

if TYPE_CHECKING:
    from wanpipe.cache.remote.tier import Tier

entries_argument = click.argument(
    "references", type=REFERENCE, nargs=-1, required=True, metavar="ENTRY..."
)


@click.group("cache")
@help_option
def command() -> None:
    """Inspect, verify, clean up and share the cache.

    All subcommands except explain take --cache DIR, --events json and --quiet. An ENTRY is a path,
    a key prefix or a name.
    """


@command.command("ls")
@click.option("--stage", type=click.Choice(list(STAGES)), help="List only entries of this stage.")
@click.option(
    "--model", metavar="TEXT", help="List entries whose model has TEXT in its path or variant."
)
@click.option("--prompt", metavar="TEXT", help="List entries that have TEXT in their prompt.")
@click.option(
    "--older-than", type=Age(), metavar="AGE", help="List entries older than AGE, e.g. 30d or 12h."
)
@click.option("--newer-than", type=Age(), metavar="AGE", help="List entries newer than AGE.")
@click.option("--steps", is_flag=True, help="Print one row per step instead of one per run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@whole_options
def ls(session: Session, remote: str | None, as_json: bool, **conditions: Any) -> None:
    """List runs and other entries, the newest last.

    The columns are key, stage, description, size, age and names. A run has the key of its last
    step. With --remote, prints stage and key of every entry of the remote.
    """
    if remote is not None:
        list_remote_entries(session, remote, as_json, conditions)
        return
    gc.disable()  # collecting 100,000 small objects without cycles takes a third of the time
    click.get_current_context().call_on_close(gc.enable)
    rows = list_entries(session.store, Filter(**conditions))
    if as_json:
        print_json(*(row.to_json() for row in rows))
    else:
        print_lines(entry_table(rows).splitlines())


def list_remote_entries(
    session: Session, remote: str, as_json: bool, conditions: dict[str, Any]
) -> None:
    """Print stage and key of every entry of a remote, and whether the cache has it."""
    from wanpipe.cache.remote.bucket import Bucket
    from wanpipe.cache.remote.whole import list_remote

    stage = conditions.pop("stage")
    if any(conditions.values()):
        raise UsageError("--remote lists stages and keys only; leave out all options but --stage")
    names = list_remote(Bucket(remote), [stage] if stage else list(STAGES))
    if as_json:
        pairs = (name.split("/") for name in names)
        here = session.store.path
        print_json(*({"stage": s, "key": k, "here": here(s, k).is_dir()} for s, k in pairs))
    else:
        print_lines(names)


@command.command("du")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@read_only_options
def du(session: Session, as_json: bool) -> None:
    """Show the disk usage of each stage."""
    sizes = usage(session.store)
    if as_json:
        print_json(sizes)
    else:
        print_lines(usage_table(sizes).splitlines())


@command.command("verify")
@click.option("--repair", is_flag=True, help="Quarantine damaged entries, and exit with 0.")
@whole_options
def verify(session: Session, remote: str | None, repair: bool) -> None:
    """Check every entry against its digests.

    Prints the path of each damaged entry. Without --repair, exits with 1 if an entry is damaged.
    """
    from wanpipe.cache.verify import find_damaged

    store, count = session.store, 0
    if remote is not None:
        verify_remote(store, remote, repair)
        return
    for path, error in find_damaged(store):
        count += 1
        print_path(path)
        if repair and path.is_file():
            path.unlink()  # the record of a run; its steps stay
        elif repair:
            store.quarantine(path, error)
        else:
            store.report.event("damaged", path=str(path))
            store.report.remark(str(error))
    if count and not repair:
        found = "1 entry is" if count == 1 else f"{count} entries are"
        raise StoreError(f"{found} damaged; repair with `wanpipe cache verify --repair`")


def verify_remote(store: Store, remote: str, repair: bool) -> None:
    """Read every entry of a remote; print each that no cache would take."""
    from wanpipe.cache.remote.bucket import Bucket
    from wanpipe.cache.remote.whole import find_unsound

    if repair:
        raise UsageError("--repair is for the cache; delete unsound entries in the bucket itself")
    found = 0
    for name, error in find_unsound(Bucket(remote), store):
        found += 1
        print_lines([name])
        store.report.remark(str(error))
    if found:
        raise StoreError(f"unsound entries in {remote}: {found}; delete them there and push again")


@command.command("gc")
@click.option(
    "--max-size",
    type=Size(),
    metavar="SIZE",
    help="Delete entries until the cache is at most SIZE, e.g. 50GB.",
)
@click.option(
    "--older-than", type=Age(), metavar="AGE", help="Delete entries not used for AGE, e.g. 30d."
)
@click.option(
    "--keep-steps",
    metavar="last|every:N",
    help="Keep only the last step of each run, or also every Nth step.",
)
@click.option(
    "--models", is_flag=True, help="Allow gc to delete converted models, after everything else."
)
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and delete nothing.")
@whole_options
def gc_command(
    session: Session,
    remote: str | None,
    max_size: int | None,
    older_than: float | None,
    keep_steps: str | None,
    models: bool,
    dry_run: bool,
) -> None:
    """Delete the least useful entries, and print their paths.

    Without a limit, deletes only damaged entries and leftovers of interrupted commands. With a
    limit, deletes entries in this order: decoded frames, steps within runs, last steps of runs,
    then images and texts that no remaining step needs. Within each kind, the least recently used go
    first. Keeps entries that are named, pinned or in use. You can resume from any step that
    remains.

    With --remote, deletes entries that were pushed longer than AGE ago, leftovers of pushes that
    never ended, and records of runs without a step. Keeps what a remaining step is resumed with.
    """
    if remote is not None:
        if max_size is not None or keep_steps is not None:
            raise UsageError("--remote takes --older-than and --models only; leave the others out")
        from wanpipe.cache.remote import gc as remote_gc
        from wanpipe.cache.remote.bucket import Bucket

        print_lines(remote_gc.collect(Bucket(remote), session.store, older_than, models, dry_run))
        return
    from wanpipe.cache.collect import collect
    from wanpipe.cache.gc import Limits, parse_keep_steps

    limits = Limits(
        max_bytes=max_size,
        older_than=older_than,
        every=None if keep_steps is None else parse_keep_steps(keep_steps),
        models=models,
    )
    for path in collect(session.store, limits, dry_run):
        print_path(path)


@command.command("pin")
@entries_argument
@read_only_options
def pin(session: Session, references: tuple[str, ...]) -> None:
    """Protect entries from gc. Named entries are protected too."""
    store = session.store
    for entry_id in entry_ids(store, references):
        with store_errors(store.root):
            store.pins.set(entry_id.rpartition("/")[2], entry_id)
        print_path(store.root / entry_id)


@command.command("unpin")
@entries_argument
@read_only_options
def unpin(session: Session, references: tuple[str, ...]) -> None:
    """Let gc delete entries again. Removes their pins and names."""
    store = session.store
    for entry_id in entry_ids(store, references):
        with store_errors(store.root):
            for refs in (store.pins, store.names):
                for name in refs.of(entry_id):
                    refs.remove(name)
        print_path(store.root / entry_id)


def entry_ids(store: Store, references: Sequence[str]) -> list[str]:
    """Return references as stage/key. Raises UsageError for an entry of another cache."""
    found = [store.locate(reference) for reference in references]
    for path in found:
        if path.parent.parent.resolve() != store.root.resolve():
            raise UsageError(f"{path} is not in the cache at {store.root}; use --cache")
    return [f"{path.parent.name}/{path.name}" for path in found]


@command.command("export")
@entries_argument
@click.argument("file", type=options.PATH, metavar="FILE.zip")
@read_only_options
def export(session: Session, references: tuple[str, ...], file: Path) -> None:
    """Export entries to a .zip file for another cache.

    The file includes the texts, images and videos that the entries were made from.
    """
    from wanpipe.cache import archive

    store = session.store
    entries = [store.peek_reference(reference) for reference in references]
    together = archive.export(entries, file, store)
    store.report.event("written", path=str(file), entries=len(together))
    print_path(file)


@command.command("import")
@click.argument("file", type=options.PATH, metavar="FILE.zip")
@read_only_options
def import_(session: Session, file: Path) -> None:
    """Import the entries of an export. If any of them is invalid, none is imported."""
    from wanpipe.cache import archive

    for path in archive.import_(file, session.store):
        print_path(path)


@command.command("push")
@click.argument("references", type=REFERENCE, nargs=-1, metavar="[ENTRY]...")
@click.option(
    "--push",
    "policy",
    type=click.Choice(["all", "steps"]),
    help="Without ENTRY: push steps within runs too, or also models.",
)
@read_only_options
def push(session: Session, references: tuple[str, ...], policy: str | None) -> None:
    """Push entries that the remote lacks, and print their paths.

    Without ENTRY, pushes texts, images, videos, frames and the last step of each run.
    """
    from wanpipe.cache.remote.whole import push_missing

    for path in push_missing(tier_of(session), session.store, references, policy):
        print_path(path)


@command.command("pull")
@entries_argument
@read_only_options
def pull(session: Session, references: tuple[str, ...]) -> None:
    """Pull entries from the remote, with what they were made from."""
    from wanpipe.cache.remote.whole import pull_with_inputs

    for path in pull_with_inputs(tier_of(session), session.store, references):
        print_path(path)


def tier_of(session: Session) -> "Tier":
    """Return the remote of a session. Raises UsageError if it has none."""
    from wanpipe.cache.remote.tier import Tier

    if session.store.remote is None:
        raise UsageError("no remote is given; use --remote URL or set WANPIPE_REMOTE")
    assert isinstance(session.store.remote, Tier)
    return session.store.remote


@command.command("explain", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@help_option
def explain(arguments: tuple[str, ...]) -> None:
    """Explain what a command would compute, and why.

    `wanpipe cache explain denoise --from cat --seed 2` is the same as `wanpipe denoise --from cat
    --seed 2 --dry-run`.
    """
    click.get_current_context().find_root().command.main(
        [*arguments, "--dry-run"], prog_name="wanpipe", standalone_mode=False
    )
