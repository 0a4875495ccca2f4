"""download: download a checkpoint, a converted model or a LoRA from the Hugging Face Hub.

Reads: the files of a repository that a conversion or a run needs, or those that are asked for.
Writes: them into the Hub's cache, or a folder.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.checkpoints.hub.cache import is_revision, parse_repository
from wanpipe.checkpoints.hub.listing import (
    AGAIN,
    HubError,
    HubFile,
    Listing,
    hub_errors,
    list_repository,
    open_hub,
)
from wanpipe.checkpoints.hub.target import Target
from wanpipe.cli import options
from wanpipe.cli.printing import print_path
from wanpipe.cli.progress import make_report
from wanpipe.cli.session import output_options
from wanpipe.errors import UsageError
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from wanpipe.checkpoints.hub.cache import Repository

PARALLEL = 4  # files at once
POLL_SECONDS = 0.2  # between two looks at what has arrived
UNIT = 10**6  # bytes in a step of the progress bar


@dataclass(frozen=True, kw_only=True)
class Params:
    """What to download: a repository as ORG/NAME or ORG/NAME@REVISION.

    `include` has patterns of files; without one, the files that wanpipe reads are chosen. Without
    `local_dir`, they go into the Hub's cache.
    """

    repository: str
    revision: str | None = None
    include: tuple[str, ...] = ()
    local_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Download:
    """The plan of a download: the files of a repository, and the place they go to."""

    api: "HfApi"
    target: Target
    files: tuple[HubFile, ...]

    @property
    def path(self) -> Path:
        """The folder that has the files when they are downloaded."""
        return self.target.folder

    @property
    def missing(self) -> int:
        """How many bytes are still to download."""
        return sum(map(self.target.missing_bytes, self.files))

    def event(self) -> dict[str, Any]:
        """Describe the download in an event."""
        listing = self.target.listing
        return {
            "repository": listing.repository.id,
            "commit": listing.commit,
            "files": len(self.files),
            "of": len(listing.files),
            "bytes": sum(file.size for file in self.files),
            "missing": self.missing,
            "path": str(self.path),
        }


def plan(params: Params) -> Download:
    """List a repository and choose its files.

    Raises UsageError for what is no repository or revision, and HubError for a repository that
    cannot be read, or that does not tell which of its files belong together.
    """
    repository = read_repository(params)
    api = open_hub()
    listing = list_repository(api, repository)
    names = choose(listing, params.include)
    files = sorted((listing.files[name] for name in names), key=lambda file: file.large)
    return Download(api=api, target=Target(listing, params.local_dir), files=tuple(files))


def run(params: Params, report: Report | None = None) -> Path:
    """Download what is missing, and return the folder with the files.

    Raises StoreError if there is not enough space, HubError if the download fails, and the errors
    of `plan`. What has arrived is kept.
    """
    return carry_out(plan(params), report or Report())


def read_repository(params: Params) -> "Repository":
    """Return the repository to download. Raises UsageError."""
    repository = parse_repository(params.repository)
    if repository is None:
        raise UsageError(
            f"a repository must be ORG/NAME, got {params.repository}; give one such as "
            "Wan-AI/Wan2.1-T2V-1.3B"
        )
    if params.revision is None:
        return repository
    if not is_revision(params.revision):
        raise UsageError(
            f"a revision must be a branch, a tag or a commit, got {params.revision}; leave it out "
            "for the latest files"
        )
    if repository.revision not in (None, params.revision):
        raise UsageError(f"{repository} names a revision already; leave --revision out")
    return replace(repository, revision=params.revision)


def choose(listing: Listing, include: tuple[str, ...]) -> list[str]:
    """Return the files to download: those that match the patterns, else those that wanpipe reads.

    Raises HubError where there are none.
    """
    from wanpipe.checkpoints.hub.selection import choose_files, is_weights, match_files
    from wanpipe.checkpoints.tensors import list_names

    repository = listing.repository
    for pattern in include:
        if not match_files(listing.files, [pattern]):
            raise HubError(
                f"{repository} has no file that matches {pattern}; `{repository.command(['*'])} "
                "--dry-run` lists all"
            )
    if include:
        return match_files(listing.files, include)
    found = choose_files(listing.files)
    if found is None:
        weights = sorted(filter(is_weights, listing.files))
        what = f"files to choose from ({list_names(weights)})" if weights else "no weights"
        raise HubError(
            f"{repository} is no checkpoint in the official or diffusers layout, but holds {what}; "
            "name some with --include"
        )
    return found


def carry_out(download: Download, report: Report) -> Path:
    """Download the missing files of a plan, and return their folder."""
    from wanpipe.runtime.disk import check_free_space

    event, started = download.event(), time.monotonic()
    check_free_space(download.path, sum(map(download.target.needed_bytes, download.files)))
    with file_errors(download.path):
        transfer(download, event["missing"], report)
        download.target.finish()
    seconds = round(time.monotonic() - started, 3)
    report.event("downloaded", **event, seconds=seconds)
    return download.path


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing to a folder into HubError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise HubError(
            f"{error.filename or path} cannot be written: {reason}; mend that, and {AGAIN}"
        ) from error


def transfer(download: Download, total: int, report: Report) -> None:
    """Download files, several at a time, with progress in MB. Raises Interrupted."""
    from wanpipe.checkpoints.hub.transfer import fetch

    target, api = download.target, download.api
    repository = target.listing.repository
    stopped, lock, received = threading.Event(), threading.Lock(), 0

    def advance(count: int) -> None:
        nonlocal received
        with lock:
            received += count

    def get(file: HubFile) -> None:
        if file.large:
            fetch(api, target, file, advance, stopped, partial(tell, file))
        if not stopped.is_set():
            target.place(api, file)

    def tell(file: HubFile, reason: str) -> None:
        report.remark(f"{file.name}: {reason}")

    wanted = [file for file in download.files if target.local_dir or not target.is_there(file)]
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="download")
    with report.task(f"download {repository} (MB)", max(1, total // UNIT)) as task, pool:
        jobs: set[Future[None]] = {pool.submit(get, file) for file in wanted}
        try:
            while jobs:
                done, jobs = wait(jobs, timeout=POLL_SECONDS)
                interrupt.check()
                for job in done:
                    with hub_errors(api, repository):
                        job.result()
                if received // UNIT > task.done:
                    task.advance(received // UNIT - task.done)
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def show(download: Download, report: Report) -> None:
    """Report the files of a plan, for --dry-run."""
    for file in download.files:
        status = "to download" if download.target.missing_bytes(file) else "there"
        report.event("file", name=file.name, bytes=file.size, status=status)
    report.event("download", **download.event())


@click.command("download")
@click.argument("repository", metavar="REPO")
@click.option(
    "--revision",
    metavar="REVISION",
    help="Download this branch, tag or commit.  [default: main]",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Download the files that match PATTERN instead of those that wanpipe chooses. Repeatable.",
)
@click.option(
    "--local-dir",
    type=options.PATH,
    metavar="DIR",
    help="Write the files to DIR.  [default: the cache of the Hugging Face Hub]",
)
@click.option("--dry-run", is_flag=True, help="Print the files and their sizes; download nothing.")
@output_options
def command(dry_run: bool, events: str | None, quiet: bool, **asked: Any) -> None:
    """Download a checkpoint, a converted model or a LoRA from the Hugging Face Hub.

    REPO is a repository such as Wan-AI/Wan2.1-T2V-1.3B. Downloads only the files that wanpipe
    reads, and resumes where it stopped. Prints the folder with the files.
    """
    report = make_report(events, quiet)
    download = plan(Params(**asked))
    if dry_run:
        show(download, report)
    else:
        carry_out(download, report)
    print_path(download.path)
