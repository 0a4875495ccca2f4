"""download: download a checkpoint, a converted model or a LoRA from the Hugging Face Hub.

Reads: the files of a repository that a conversion or a run needs, or those that are asked for.
Writes: them into the Hub's cache, or a folder.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wanpipe.checkpoints.hub.cache import is_revision, parse_repository
from wanpipe.checkpoints.hub.listing import (
    AGAIN,
    HubError,
    HubFile,
    list_repository,
    open_hub,
)
from wanpipe.checkpoints.hub.target import Target
from wanpipe.cli import options
from wanpipe.cli.printing import print_path
from wanpipe.cli.progress import make_report
from wanpipe.cli.session import output_options
from wanpipe.errors import UsageError
from wanpipe.runtime.disk import check_free_space
from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from wanpipe.checkpoints.hub.cache import Repository


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
    from wanpipe.checkpoints.hub.selection import select

    repository = read_repository(params)
    api = open_hub()
    listing = list_repository(api, repository)
    names = select(listing, params.include)
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


def carry_out(download: Download, report: Report) -> Path:
    """Download the missing files of a plan, and return their folder."""
    from wanpipe.checkpoints.hub.transfer import get_files

    event, started, target = download.event(), time.monotonic(), download.target
    check_free_space(download.path, sum(map(target.needed_bytes, download.files)))
    with file_errors(download.path):
        get_files(download.api, target, download.files, report)
        target.finish()
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
    """Download a model or a LoRA from the Hugging Face Hub.

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
