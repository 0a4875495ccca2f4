"""cache: look at the cache, trust it, keep it small, share it.

Reads: all entries, or those that are named.
Writes: names and pins, exports; removes what gc is told to; imports entries.
"""

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wanpipe.cache.listing import Filter, Listed, listed, usage
from wanpipe.cli import options
from wanpipe.cli.session import Session, read_only_options
from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime import units
from wanpipe.store import Store
from wanpipe.store.index import Summary
from wanpipe.store.schema import STAGES


class Size(click.ParamType[int]):
    """Bytes, such as 50GB."""

    name = "size"

    def convert(self, value: Any, parameter: Any, context: Any) -> int:
        """Read a size."""
        return units.read_size(value) if isinstance(value, str) else int(value)


class Age(click.ParamType[float]):
    """Seconds, such as 30d."""

    name = "age"

    def convert(self, value: Any, parameter: Any, context: Any) -> float:
        """Read an age."""
        return units.read_age(value) if isinstance(value, str) else float(value)


@click.group("cache", short_help="look at the cache, trust it, share it, keep it small")
def command() -> None:
    """Look at the cache, trust it, share it, keep it small.

    All of these take --cache DIR, --events json and --quiet.
    """


@command.command("ls")
@read_only_options
@click.option("--stage", type=click.Choice(list(STAGES)), help="Entries of one stage.")
@click.option("--model", metavar="TEXT", help="Made with a model of this path or variant.")
@click.option("--prompt", metavar="TEXT", help="With this in the prompt.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Made longer ago, as 30d or 12h.")
@click.option("--newer-than", type=Age(), metavar="AGE", help="Made since.")
@click.option("--steps", is_flag=True, help="A row for every step. Default: a row for every run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ls(session: Session, as_json: bool, **conditions: Any) -> None:
    """List runs and other entries, the latest last: key, stage, what, size, age, names.

    The key of a run is that of its last step; with `--stage denoise` or `--steps` every step has a
    row of its own.
    """
    gc.disable()  # 100,000 small objects without a cycle: looking for one takes a third of the time
    click.get_current_context().call_on_close(gc.enable)
    rows = listed(session.store, Filter(**conditions))
    if as_json:
        text = "\n".join(json.dumps(row.to_json(), ensure_ascii=False) for row in rows)
    else:
        now = time.time()
        text = units.table([line_of(row, now) for row in rows], frozenset({3, 4})) if rows else ""
    if text:
        print(text)  # click.echo would search 10 MB for colours


def line_of(one: Listed, now: float) -> tuple[str, ...]:
    """The columns of one entry or run."""
    row, run, what = one.row, one.run, units.plain(one.what)
    if row.step is not None:
        seed = "noise given" if run is None or run.seed is None else f"seed {run.seed}"
        of = f"/{run.settings.steps}" if run else ""
        what = f"{seed}, step {row.step + 1}{of}, {what}"
    if one.prompt is not None:
        what = f"{units.quoted(one.prompt)}, {what}" if what else units.quoted(one.prompt)
    labels = ", ".join([*one.names, "pinned"] if one.pinned else one.names)
    age = units.age(now - units.seconds_of(row.time)) if row.time else "?"
    return row.key[:12], row.stage, what, units.amount(one.bytes, "B"), age, labels


@command.command("du")
@read_only_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def du(session: Session, as_json: bool) -> None:
    """Tell how much each stage takes on disk."""
    sizes = usage(session.store)
    if as_json:
        click.echo(json.dumps(sizes))
        return
    rows = [
        (units.amount(size["bytes"], "B"), f"{size['entries']}", name)
        for name, size in sizes.items()
    ]
    click.echo(units.table(rows, frozenset({0, 1})))


@command.command("verify")
@read_only_options
@click.option("--repair", is_flag=True, help="Set damaged entries aside; then nothing is wrong.")
@click.pass_context
def verify(context: click.Context, session: Session, repair: bool) -> None:
    """Read every byte and check every digest. Prints what is damaged; exit code 1 if anything is
    and stays.
    """
    from wanpipe.cache.verify import damaged

    store, count = session.store, 0
    for path, error in damaged(store):
        count += 1
        click.echo(path)
        if repair and path.is_file():
            path.unlink()  # the record of a run; its steps stay
        elif repair:
            store.set_aside(path, error)
        else:
            store.report.event("damaged", path=str(path))
            store.report.remark(str(error))
    if count and not repair:
        raise StoreError(f"{count} entries are damaged; `wanpipe cache verify --repair` helps")


@command.command("gc")
@read_only_options
@click.option("--max-size", type=Size(), metavar="SIZE", help="Until no more is left, as 50GB.")
@click.option("--older-than", type=Age(), metavar="AGE", help="What was not used for so long.")
@click.option("--keep-steps", metavar="last|every:N", help="Of every run these steps alone.")
@click.option("--models", is_flag=True, help="Converted models too, last of all.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed.")
def collect(
    session: Session,
    max_size: int | None,
    older_than: float | None,
    keep_steps: str | None,
    models: bool,
    dry_run: bool,
) -> None:
    """Remove entries, the least useful first; prints their paths. Without a limit only rubbish
    goes.

    First decoded frames, then steps inside runs, then their ends, then images and texts that no
    step needs; within each the least recently used. What has a name or a pin stays, and what is in
    use. Every run can be gone on with from what remains.
    """
    from wanpipe.cache import gc as engine

    store = session.store
    limits = engine.Limits(
        max_bytes=max_size,
        older_than=older_than,
        every=None if keep_steps is None else engine.read_keep_steps(keep_steps),
        models=models,
    )
    idle = float("inf") if older_than is None else older_than
    paths = engine.rubbish(store, idle)
    plan = engine.Plan(store, limits)
    gone: Sequence[Summary] = plan.removed
    if not dry_run:
        engine.sweep(store, paths)
        gone = engine.remove(store, plan.removed) if plan.removed else []
    runs = [store.runs.path(key) for key in engine.forgotten(store, plan.left.values())]
    for path in [] if dry_run else runs:
        path.unlink(missing_ok=True)
    lines = [*map(str, [*paths, *runs]), *(f"{store.root}/{row.place}" for row in gone)]
    if lines:
        click.echo("\n".join(lines))
    store.report.event(
        "collected",
        dry_run=dry_run,
        entries=len(gone),
        bytes=sum(row.bytes for row in gone),
        entries_left=len(plan.left),
        bytes_left=plan.bytes_left,
    )
    if max_size is not None and plan.bytes_left > max_size:
        left = units.amount(plan.bytes_left, "B")
        store.report.remark(f"{left} stay: what is named, pinned, in use or a model is kept")


@command.command("pin")
@read_only_options
@click.argument("references", nargs=-1, required=True, metavar="ENTRY...")
def pin(session: Session, references: tuple[str, ...]) -> None:
    """Keep entries from gc. A name does so too."""
    for place in places(session.store, references):
        session.store.pins.set(place.rpartition("/")[2], place)
        click.echo(session.store.root / place)


@command.command("unpin")
@read_only_options
@click.argument("references", nargs=-1, required=True, metavar="ENTRY...")
def unpin(session: Session, references: tuple[str, ...]) -> None:
    """Let gc have entries again: forget their pins and their names."""
    store = session.store
    for place in places(store, references):
        for labels in (store.pins, store.names):
            for label in labels.of(place):
                labels.remove(label)
        click.echo(store.root / place)


def places(store: Store, references: Sequence[str]) -> list[str]:
    """What references mean, as stage/key. Raises UsageError for an entry of another cache."""
    found = [store.locate(reference) for reference in references]
    for path in found:
        if path.parent.parent.resolve() != store.root.resolve():
            raise UsageError(f"{path} is not in the cache at {store.root}; use --cache")
    return [f"{path.parent.name}/{path.name}" for path in found]


@command.command("export")
@read_only_options
@click.argument("references", nargs=-1, required=True, metavar="ENTRY...")
@click.argument("file", type=options.PATH)
def export(session: Session, references: tuple[str, ...], file: Path) -> None:
    """Write entries, with the text and image they were made from, to FILE.zip for another cache."""
    from wanpipe.cache import archive

    store = session.store
    entries = [store.look(reference) for reference in references]
    together = archive.export(entries, file, store)
    store.report.event("written", path=str(file), entries=len(together))
    click.echo(file)


@command.command("import")
@read_only_options
@click.argument("file", type=options.PATH)
def import_(session: Session, file: Path) -> None:
    """Import the entries of an export. A file that is not sound throughout changes nothing."""
    from wanpipe.cache import archive

    for path in archive.import_(file, session.store):
        click.echo(path)


@command.command("explain", context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def explain(words: tuple[str, ...]) -> None:
    """Tell why COMMAND (such as denoise --from cat --seed 2) would compute anything, and what: the
    same as its own --dry-run.
    """
    click.get_current_context().find_root().command.main(
        [*words, "--dry-run"], prog_name="wanpipe", standalone_mode=False
    )
