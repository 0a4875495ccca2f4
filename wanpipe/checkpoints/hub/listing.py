"""Lists the files of a repository on the Hugging Face Hub, and explains the Hub's errors.

huggingface_hub speaks to the Hub. Credentials are those that it finds; nothing here reads or
repeats them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from wanpipe.checkpoints.hub.cache import Repository, is_commit, is_file_name
from wanpipe.checkpoints.tensors import quote_name
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime.documents import first_line
from wanpipe.runtime.version import version

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

MAX_FILES = 100_000  # of a repository; the Hub itself recommends fewer
SHA256 = re.compile(r"[0-9a-f]{64}")
QUERY = re.compile(r"\?\S*")  # may hold a signature
AGAIN = "run the same command again, finished parts are kept"


class HubError(WanpipeError):
    """A repository that cannot be downloaded."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its path, its bytes, the name of its blob, and whether that is the
    sha256 of its content, as for large files (LFS).
    """

    name: str
    size: int
    blob: str
    large: bool


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit, by path."""

    repository: Repository
    commit: str
    files: dict[str, HubFile]


def open_hub() -> "HfApi":
    """Return the client of the Hub. Raises UsageError if huggingface_hub is not installed."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, logging
    except ImportError as error:
        raise UsageError(
            "download needs huggingface_hub, which is not installed; run "
            "`pip install 'wanpipe[hub]'`"
        ) from error
    logging.set_verbosity_error()
    if not are_progress_bars_disabled():
        disable_progress_bars()
    endpoint = os.environ.get("HF_ENDPOINT")
    return HfApi(endpoint=endpoint, library_name="wanpipe", library_version=version())


def list_repository(api: "HfApi", repository: Repository) -> Listing:
    """List the files of a repository. Raises HubError."""
    from huggingface_hub.hf_api import RepoFile

    with hub_errors(api, repository):
        commit = api.model_info(repository.id, revision=repository.revision).sha or ""
        if not is_commit(commit):
            raise HubError(f"{api.endpoint} gives no commit of {repository}; try again later")
        tree = api.list_repo_tree(repository.id, recursive=True, revision=commit)
        found = [one for one in islice(tree, MAX_FILES + 1) if isinstance(one, RepoFile)]
    if len(found) > MAX_FILES:
        raise HubError(f"{repository} has more than {MAX_FILES} files; use another repository")
    return Listing(repository, commit, {one.path: described(one, repository) for one in found})


def described(one: "RepoFile", repository: Repository) -> HubFile:
    """Describe a file. Raises HubError for a name that leads elsewhere, or a hash that is none."""
    large, blob = one.lfs is not None, one.blob_id if one.lfs is None else one.lfs.sha256
    known = SHA256.fullmatch(blob) if large else is_commit(blob)  # git hashes files as commits
    if not is_file_name(one.path) or not known or one.size < 0:
        raise HubError(
            f"{repository} lists a file that cannot be: {quote_name(one.path)} with the hash "
            f"{quote_name(blob)}; use another repository"
        )
    return HubFile(one.path, one.size, blob, large)


@contextmanager
def hub_errors(api: "HfApi", repository: Repository) -> Iterator[None]:
    """Turn errors of the Hub, and of the way there, into HubError."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        raise HubError(explain(cause or error, api.endpoint, repository)) from error


def explain(error: BaseException, endpoint: str, repository: Repository) -> str:
    """Explain an error of the Hub in one line, with its remedy."""
    from huggingface_hub import errors

    name, page = repository.id, f"{endpoint}/{repository.id}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {name} cannot be downloaded; unset it"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated, and you have no access yet; ask for it at {page}, log in with "
            "`hf auth login`, and run the same command again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{endpoint} has no repository {name}, or it is private; check the name, or log in "
            "with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {repository.revision}; see {page}/tree/main"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"{endpoint} refuses your token; log in again with `hf auth login`"
        return f"{endpoint} does not send {name} ({reason(error)}); {AGAIN}"
    return f"{endpoint} cannot be reached ({reason(error)}); check the connection, and {AGAIN}"


def reason(error: BaseException) -> str:
    """Return the reason of a failure in a few words, without a signature."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return QUERY.sub("?…", first_line(error))
