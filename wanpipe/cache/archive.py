"""Puts entries with what they were made from, and their runs, into one file, and imports such a
file.

What comes in is data: every name, document and digest is checked before anything is published, and
nothing of it is run. Converted models do not travel.
"""

import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs

from wanpipe.cache.admit import AdmitError, admit
from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import NO_SPACE, READ_ONLY, settle, translated
from wanpipe.runtime.documents import encode
from wanpipe.runtime.output import placing, try_out
from wanpipe.store.entry import Entry
from wanpipe.store.runs import RUNS, Run, Runs
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.store.store import Store

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same entries make the same file
PIECE = 1 << 20  # bytes copied at a time
TRAVELING = "|".join(stage.name for stage in STAGES.values() if stage.travels)
MEMBER = re.compile(
    rf"(?P<stage>{TRAVELING})/(?P<key>[0-9a-f]{{32}})/"
    r"(?P<file>(?:[a-z0-9_]{1,32}/){0,2}(?:zarr\.json|c(?:\.\d{1,6}){1,5}))"
)
RUN = re.compile(r"\.runs/(?P<key>[0-9a-f]{32})\.json")
BROKEN = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, LookupError, EOFError)


def closure(entries: Sequence[Entry], store: Store) -> list[Entry]:
    """The entries and all that they were made from, each once. Raises StoreError for what is
    gone or damaged, UsageError for a converted model.
    """
    found: dict[str, Entry] = {}
    waiting = list(entries)
    while waiting:
        entry = waiting.pop()
        if not STAGES[entry.stage].travels:
            raise UsageError(
                f"{entry.key[:8]} is a converted model, which does not travel; convert the "
                "checkpoint where it is needed"
            )
        if entry.key in found:
            continue
        found[entry.key] = entry
        home = Store(entry.root, store.report)
        for role, key in entry.inputs.items():
            stage = ROLES[role]
            source = home.peek(stage, key)
            if source is None:
                raise StoreError(
                    f"{entry.key[:8]} was made from {stage}/{key[:8]}, which is gone; make it again"
                )
            waiting.append(source)
    return sorted(found.values(), key=lambda entry: (entry.stage, entry.key))


def runs_of(entries: Sequence[Entry], store: Store) -> list[Run]:
    """The runs of steps among `entries`: the latest of each."""
    found: dict[str, Run] = {}
    for entry in entries:
        home = Store(entry.root, store.report)
        run = home.runs.latest(entry.key) if entry.stage == "denoise" else None
        if run is not None:  # paths of videos mean nothing elsewhere
            found[run.key] = structs.replace(run, videos=[])
    return sorted(found.values(), key=lambda run: run.key)


def export(entries: Sequence[Entry], target: Path, store: Store) -> list[Entry]:
    """Write entries and what they were made from to a .zip file; return all that went in."""
    if target.suffix.lower() != ".zip":
        raise UsageError(f"an export must end in .zip, got {target.name}")
    together = closure(entries, store)
    try:
        try_out(target)
        with (
            placing(target) as draft,
            zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
        ):
            for entry in together:
                for file in sorted(path for path in entry.path.rglob("*") if path.is_file()):
                    name = f"{entry.stage}/{entry.key}/{file.relative_to(entry.path).as_posix()}"
                    member = member_of(name, file.stat().st_size)
                    interrupt.check()
                    with file.open("rb") as source, archive.open(member, "w") as sink:
                        shutil.copyfileobj(source, sink, PIECE)
            for run in runs_of(together, store):
                data = encode(run)
                archive.writestr(member_of(f"{RUNS}/{run.key}.json", len(data)), data)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    return together


def member_of(name: str, size: int) -> zipfile.ZipInfo:
    """A member of an export, read-only and without a date."""
    member = zipfile.ZipInfo(name, EPOCH)
    member.external_attr = 0o444 << 16
    member.file_size = size
    return member


def import_(file: Path, store: Store) -> list[Path]:
    """Publish every entry of an export that is not there yet; return the paths of all.

    Raises StoreError for a file that is not sound throughout; the cache is then as it was.
    """
    if not file.is_file():
        raise UsageError(f"no file {file} to import")
    with translated(store.root), store.scratch() as scratch:
        with refused(file):
            places = unpack(file, scratch)
            entries = [admit(scratch / place) for place in places]
            runs = Runs(scratch)
            records = [runs.get(key) for key in runs.names()]
            check_numbers(entries, records)
        # what others are made from first: whatever stops this, no entry lacks its inputs
        for entry in sorted(entries, key=order):
            target = store.path(entry.stage, entry.key)
            if not target.is_dir():
                settle(entry.path)
                store.place(entry.path, target)
                store.index.add(target, entry.record)
        for run in records:
            if not store.runs.path(run.key).exists():
                store.runs.keep(run)
    return [store.root / place for place in places]


def check_numbers(entries: Sequence[Entry], runs: Sequence[Run]) -> None:
    """Raise AdmitError for a step that does not have the number that its run gives it."""
    steps = {entry.key: entry.step for entry in entries if entry.stage == "denoise"}
    for run in runs:
        for number, key in enumerate(run.steps, run.first):
            if steps.get(key, number) != number:
                raise AdmitError(f"step {key[:8]} is not number {number + 1} of its run")


def order(entry: Entry) -> tuple[int, int]:
    """When an entry is published: after what it is made from."""
    return -STAGES[entry.stage].rank, entry.record.step or 0


@contextmanager
def refused(file: Path) -> Iterator[None]:
    """Turn whatever a malformed file causes into one line."""
    try:
        yield
    except (StoreError, *BROKEN) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE | READ_ONLY:
            raise  # the disk of the cache, not the file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(
            f"{file} is not a sound export, nothing was taken from it ({reason}); export it again"
        ) from error


def unpack(file: Path, folder: Path) -> list[str]:
    """Copy the members of an export below `folder`, each name and size checked; return stage/key of
    every entry.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_members(members, file.stat().st_size)
        found: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
        for member in members:
            form = MEMBER.fullmatch(member.filename)
            if form is not None:
                found[f"{form['stage']}/{form['key']}"].append(member)
            interrupt.check()
            target = folder / member.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("xb") as sink:
                shutil.copyfileobj(source, sink, PIECE)
    return sorted(found)


def check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise AdmitError unless names are those of entries, each once, stored as they are, and all
    together no larger than the file.
    """
    if not members:
        raise AdmitError("it is empty")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise AdmitError("it has a name twice")
    for member in members:
        known = MEMBER.fullmatch(member.filename) or RUN.fullmatch(member.filename)
        if member.orig_filename != member.filename or not known:
            raise AdmitError(f"{member.orig_filename[:80]!r} is no name of an entry's file")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise AdmitError(f"{member.filename} is compressed or encrypted")
    # members that overlap, or lie about their size, would be larger than the file that holds them
    if sum(member.file_size for member in members) > size:
        raise AdmitError("its parts are larger than the whole")
