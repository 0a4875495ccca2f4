"""Exports entries with their inputs and runs to one file, and imports such a file.

An import is untrusted data: every name, document and digest is checked before anything is
published, and nothing is executed. Converted models are not exported.
"""

import io
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs

from wanpipe.cache.validate import InvalidEntryError, files_of, validate
from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import LITTER, NO_SPACE, READ_ONLY, fsync_tree, store_errors
from wanpipe.runtime.documents import encode
from wanpipe.runtime.output import check_writable, replace_output
from wanpipe.store.entry import Entry
from wanpipe.store.runs import RUNS, Run, Runs
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.store.store import Store

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same entries make the same file
COPY_BYTES = 1 << 20  # copied at a time
MAX_DIRECTORY_BYTES = 1 << 24  # of an export, for about 140,000 files
EXPORTABLE = "|".join(stage.name for stage in STAGES.values() if stage.exportable)
MEMBER = re.compile(
    rf"(?P<stage>{EXPORTABLE})/(?P<key>[0-9a-f]{{32}})/"
    r"(?P<file>(?:[a-z0-9_]{1,32}/){0,2}(?:zarr\.json|c(?:\.\d{1,6}){1,5}))"
)
RUN = re.compile(r"\.runs/(?P<key>[0-9a-f]{32})\.json")
ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, LookupError, EOFError)


def closure(entries: Sequence[Entry], store: Store) -> list[Entry]:
    """Return the entries, all their inputs and those of their runs, each once.

    Raises StoreError for a missing or damaged input, UsageError for a converted model.
    """
    found: dict[str, Entry] = {}
    waiting = list(entries)
    while waiting:
        entry = waiting.pop()
        if not STAGES[entry.stage].exportable:
            raise UsageError(
                f"{entry.key[:8]} is a converted model, which does not travel; convert the "
                "checkpoint where it is needed"
            )
        if entry.key in found:
            continue
        found[entry.key] = entry
        cache = Store(entry.root, store.report)
        for role, key in entry.inputs.items():
            stage = ROLES[role]
            source = cache.peek(stage, key)
            if source is None:
                raise StoreError(
                    f"{entry.key[:8]} was made from {stage}/{key[:8]}, which is gone; make it again"
                )
            waiting.append(source)
        # a run may have inputs that not every step uses, but that it is resumed with
        run = run_of(entry, cache)
        others = (cache.peek(ROLES[role], key) for role, key in (run.inputs if run else {}).items())
        waiting += [other for other in others if other is not None]
    return sorted(found.values(), key=lambda entry: (entry.stage, entry.key))


def run_of(entry: Entry, store: Store) -> Run | None:
    """Return the latest run of a step; None if there is none, and for other entries."""
    return store.runs.latest(entry.key) if entry.stage == "denoise" else None


def runs_of(entries: Sequence[Entry], store: Store) -> list[Run]:
    """Return the latest run of each step among `entries`."""
    found: dict[str, Run] = {}
    for entry in entries:
        run = run_of(entry, Store(entry.root, store.report))
        if run is not None:  # paths of videos mean nothing elsewhere
            found[run.key] = structs.replace(run, videos=[])
    return sorted(found.values(), key=lambda run: run.key)


def export(entries: Sequence[Entry], target: Path, store: Store) -> list[Entry]:
    """Write entries and their inputs to a .zip file; return all of them."""
    if target.suffix.lower() != ".zip":
        raise UsageError(f"an export must end in .zip, got {target.name}")
    closed = closure(entries, store)
    try:
        check_writable(target)
        with (
            replace_output(target) as draft,
            zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive,
        ):
            for entry in closed:
                for file in files_of(entry):
                    check_link(file, entry)
                    name = f"{entry.stage}/{entry.key}/{file.relative_to(entry.path).as_posix()}"
                    member = zip_member(name, file.stat().st_size)
                    interrupt.check()
                    with file.open("rb") as source, archive.open(member, "w") as sink:
                        shutil.copyfileobj(source, sink, COPY_BYTES)
            for run in runs_of(closed, store):
                data = encode(run)
                archive.writestr(zip_member(f"{RUNS}/{run.key}.json", len(data)), data)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    return closed


def check_link(file: Path, entry: Entry) -> None:
    """Raise StoreError for a file behind a link, which could be any file of the user."""
    inside = [file, *(parent for parent in file.parents if entry.path in parent.parents)]
    if any(path.is_symlink() for path in inside):
        raise StoreError(f"{file} is a link, which is not exported; make the entry again")


def zip_member(name: str, size: int) -> zipfile.ZipInfo:
    """Return a member of an export, read-only and without a date."""
    member = zipfile.ZipInfo(name, EPOCH)
    member.external_attr = 0o444 << 16
    member.file_size = size
    return member


def import_(file: Path, store: Store) -> list[Path]:
    """Publish every entry of an export that does not exist yet; return the paths of all.

    Raises StoreError for an invalid file, and publishes nothing of it.
    """
    if not file.is_file():
        raise UsageError(f"no file {file} to import")
    with store_errors(store.root), store.scratch.open(store.scratch.folder()) as scratch:
        with archive_errors(file):
            entry_ids = unpack(file, scratch)
            entries = [validate(scratch / entry_id) for entry_id in entry_ids]
            runs = Runs(scratch)
            records = [runs.get(key) for key in runs.list_keys()]
            check_numbers(entries, records)
        # inputs first: if this is interrupted, every published entry has its inputs
        for entry in sorted(entries, key=publish_order):
            target = store.path(entry.stage, entry.key)
            if not target.is_dir():
                fsync_tree(entry.path)
                store.install(entry.path, target)
                store.index.add(target, entry.record)
        for run in records:
            if not store.runs.path(run.key).exists():
                store.runs.save(run)
    return [store.root / entry_id for entry_id in entry_ids]


def check_numbers(entries: Sequence[Entry], runs: Sequence[Run]) -> None:
    """Raise InvalidEntryError for a step whose number differs from that in its run."""
    steps = {entry.key: entry.step for entry in entries if entry.stage == "denoise"}
    for run in runs:
        for number, key in enumerate(run.steps, run.first):
            if steps.get(key, number) != number:
                raise InvalidEntryError(f"step {key[:8]} is not number {number + 1} of its run")


def publish_order(entry: Entry) -> tuple[int, int]:
    """Return a sort key that puts an entry after its inputs."""
    return -STAGES[entry.stage].gc_rank, entry.record.step or 0


@contextmanager
def archive_errors(file: Path) -> Iterator[None]:
    """Turn errors of a malformed file into one line."""
    try:
        yield
    except (StoreError, *ZIP_ERRORS) as error:
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
    with BoundedReader(file) as bounded, zipfile.ZipFile(bounded) as archive:
        members = [member for member in archive.infolist() if not is_litter(member.filename)]
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
                shutil.copyfileobj(source, sink, COPY_BYTES)
    return sorted(found)


class BoundedReader(io.FileIO):
    """A file whose pieces are limited, since zipfile reads a directory of any size at once."""

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes. Raises InvalidEntryError for too many."""
        data = super().read(MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else size)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise InvalidEntryError("it has too many files")
        return data


def is_litter(name: str) -> bool:
    """Return whether a file was added by a file manager, as to every folder that it shows."""
    *folders, last = name.split("/")
    return LITTER.fullmatch(last) is not None or "__MACOSX" in folders


def check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise InvalidEntryError unless every name is a file of an entry, once and not compressed,
    and all files together are no larger than the export.
    """
    if not members:
        raise InvalidEntryError("it is empty")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise InvalidEntryError("it has a name twice")
    for member in members:
        known = MEMBER.fullmatch(member.filename) or RUN.fullmatch(member.filename)
        if member.orig_filename != member.filename or not known:
            raise InvalidEntryError(f"{member.orig_filename[:80]!r} is no name of an entry's file")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise InvalidEntryError(f"{member.filename} is compressed or encrypted")
    # members that overlap, or lie about their size, would be larger than the file that holds them
    if sum(member.file_size for member in members) > size:
        raise InvalidEntryError("its parts are larger than the whole")
