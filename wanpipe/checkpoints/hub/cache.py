"""Finds repositories in the cache of the Hugging Face Hub on this machine. Uses no network.

The layout is that of huggingface_hub: in `models--ORG--NAME`, `refs/REVISION` holds a commit, and
`snapshots/COMMIT` has the files, which are links to `blobs`. What lies there is trusted as little
as any other file.
"""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wanpipe.errors import CheckpointError

MAIN = "main"  # the revision by default
COMMIT_LENGTH = 40
COMMIT = re.compile(rf"[0-9a-f]{{{COMMIT_LENGTH}}}")
NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
REVISION = re.compile(r"[\w.-]+(?:/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """A repository of models: its id, ORG/NAME, and a branch, tag or commit; None: main."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def folder(self) -> Path:
        """Its folder in the cache."""
        return hub_cache() / f"models--{self.id.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """The file with the commit of its revision."""
        return self.folder / "refs" / (self.revision or MAIN)

    def snapshot(self) -> Path | None:
        """Return the folder with its files in the cache, None if there is none."""
        commit = read_ref(self.ref) or self.revision or MAIN
        path = self.folder / "snapshots" / commit
        return path if is_commit(commit) and path.is_dir() else None

    def command(self, files: Sequence[str] = ()) -> str:
        """Return the command that downloads it, or only some of its files."""
        words = ["wanpipe", "download", self.id]
        words += [] if self.revision is None else ["--revision", self.revision]
        for file in files:
            words += ["--include", glob.escape(file)]
        return shlex.join(words)


def hub_cache() -> Path:
    """Return the folder of the Hub's cache. The environment is read as huggingface_hub reads it."""
    given = os.environ.get
    home = given("HF_HOME", os.path.join(given("XDG_CACHE_HOME", "~/.cache"), "huggingface"))  # noqa: PTH118, an empty one counts
    place = given("HF_HUB_CACHE", given("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))  # noqa: PTH118
    return Path(os.path.expandvars(place)).expanduser()


def parse_repository(text: str) -> Repository | None:
    """Parse ORG/NAME or ORG/NAME@REVISION; return None for any other text."""
    whole, _, revision = text.partition("@")
    names = whole.split("/")
    if len(names) != 2 or not all(map(NAME.fullmatch, names)) or "--" in whole or ".." in whole:
        return None
    if whole == text:
        return Repository(whole)
    return Repository(whole, revision) if is_revision(revision) else None


def is_revision(text: str) -> bool:
    """Return whether a text can be a revision, and so a path inside `refs`."""
    return REVISION.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))


def is_file_name(text: str) -> bool:
    """Return whether a text can be the path of a file in a repository, and stays inside it."""
    parts = text.split("/")
    return text.isprintable() and "\\" not in text and not {"", ".", ".."} & set(parts)


def locate(path: Path, other: str = "a directory") -> Path:
    """Return a path that exists as it is. For a repository, return its snapshot in the cache.

    Raises CheckpointError for a repository that is not there; the message says that it is not
    `other` either. Any other path is returned as it is.
    """
    repository = None if os.path.lexists(path) else parse_repository(str(path))
    if repository is None:
        return path
    snapshot = repository.snapshot()
    if snapshot is None:
        raise CheckpointError(not_there(repository, other))
    return snapshot


def not_there(repository: Repository, other: str) -> str:
    """Return the message for a repository that is neither `other` nor in the cache."""
    return (
        f"{repository} is neither {other} nor in the Hugging Face cache at {hub_cache()}; "
        f"to download it, run `{repository.command()}`"
    )


def locate_file(path: Path, other: str = "a directory") -> Path:
    """Return a path as `locate` does; also take ORG/NAME:FILE, one file of a repository.

    Raises CheckpointError for a file that is not in the cache.
    """
    whole, colon, file = str(path).partition(":")
    repository = None if os.path.lexists(path) or not colon else parse_repository(whole)
    if repository is None or not is_file_name(file):
        return locate(path, other)
    snapshot = repository.snapshot()
    if snapshot is None or not (snapshot / file).is_file():
        raise CheckpointError(
            f"{file} of {repository} is not in the Hugging Face cache at {hub_cache()}; run "
            f"`{repository.command([file])}`"
        )
    return snapshot / file


def repository_of(path: Path) -> Repository | None:
    """Return the repository whose snapshot in a cache has this path; None if it is no snapshot's.

    The revision is the commit, unless that is the latest one of main.
    """
    whole = path.absolute()
    for folder in (whole, *whole.parents):
        kind, *names = folder.parent.parent.name.split("--")
        if (folder.parent.name, kind) != ("snapshots", "models") or not is_commit(folder.name):
            continue
        repository = parse_repository("/".join(names))
        if repository is None:
            return None
        latest = read_ref(folder.parent.parent / "refs" / MAIN)
        return repository if latest == folder.name else Repository(repository.id, folder.name)
    return None


def read_ref(path: Path) -> str:
    """Read a ref, which holds a commit; return an empty text if it does not exist."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(COMMIT_LENGTH + 1).decode("ascii", "replace").strip()


def is_commit(text: str) -> bool:
    """Return whether a text is a commit's full hash."""
    return COMMIT.fullmatch(text) is not None


def how_to_complete(directory: Path) -> str:
    """Tell in an error how to get the missing files of a checkpoint in a directory."""
    repository = repository_of(directory)
    if repository is None:
        return "download it from the model's page"
    return f"run `{repository.command()}`"
