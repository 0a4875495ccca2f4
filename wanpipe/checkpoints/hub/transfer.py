"""Downloads the files of a repository, and goes on where a download ended.

A large file is written as a part of it first. Own code, because huggingface_hub drops the part of a
file when a download ends early: hours of a slow connection. A file is whole if it has the sha256
that the repository lists.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import TYPE_CHECKING

from wanpipe.checkpoints.hub.listing import AGAIN, HubError, HubFile, hub_errors, reason
from wanpipe.checkpoints.hub.target import Target
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PARALLEL = 4  # files at once
POLL_SECONDS = 0.2  # between two looks at what has arrived
UNIT = 10**6  # bytes in a step of the progress bar
# seconds before each new try, while nothing arrives
PAUSES = (0.2, 1.0, 3.0, 9.0, 27.0)
TIMEOUT = 20.0  # seconds without a byte
BLOCK = 1 << 20  # bytes of a part that are read at once
PASSING = (408, 429)  # errors of a server that may pass, beside those from 500 on
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def get_files(api: "HfApi", target: Target, files: Sequence[HubFile], report: Report) -> None:
    """Download files, several at a time, with progress in MB, and put them in their places.

    Raises HubError and Interrupted; what has arrived is kept.
    """
    repository = target.listing.repository
    stopped, lock, received = Event(), Lock(), 0

    def advance(count: int) -> None:
        nonlocal received
        with lock:
            received += count

    def get(file: HubFile) -> None:
        def tell(text: str) -> None:
            report.remark(f"{file.name}: {text}")

        if file.large:
            fetch(api, target, file, advance, stopped, tell)
        if not stopped.is_set():
            target.place(api, file)

    wanted = [file for file in files if target.local_dir or not target.is_there(file)]
    total = sum(map(target.missing_bytes, wanted))
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


class Part:
    """What is there of a file, with its hash so far; a context manager."""

    def __init__(
        self, path: Path, size: int, advance: Callable[[int], None], stopped: Event
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path, self.size, self.advance = path, size, advance
        self.file = path.open("r+b")
        self.state, self.done = hashlib.sha256(), 0
        while not stopped.is_set() and (block := self.file.read(BLOCK)):
            self.state.update(block)
            self.done += len(block)
        if self.done > self.size:
            self.restart()

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()

    def append(self, data: bytes) -> None:
        """Write more of the file. Raises HubError for more than there is of it."""
        if self.done + len(data) > self.size:
            raise HubError(f"{self.path} gets more than its {self.size} bytes; {AGAIN}")
        self.file.write(data)
        self.state.update(data)
        self.done += len(data)
        self.advance(len(data))

    def restart(self) -> None:
        """Begin again with the first byte."""
        self.advance(-min(self.done, self.size))
        self.file.seek(0)
        self.file.truncate()
        self.state, self.done = hashlib.sha256(), 0


def receive(
    api: "HfApi", url: str, part: Part, stopped: Event, on_failure: Callable[[str], None]
) -> None:
    """Download what a part lacks, again after a failure that may pass, until `stopped`.

    Calls `on_failure` with the first failure of a row. Raises the last one, an HTTPError.
    """
    from huggingface_hub.errors import HTTPError

    tries = 0
    while part.done < part.size and not stopped.is_set():
        before, failure = part.done, None
        try:
            request(api, url, part, stopped)
        except HTTPError as error:
            if not may_pass(error):
                raise
            failure = error
        if part.done > before:
            tries = 0
        if part.done < part.size and not stopped.is_set():
            if tries == len(PAUSES):
                raise failure or HubError(f"{url} ends before its last byte; {AGAIN}")
            if not tries:
                why = "it ended early" if failure is None else reason(failure)
                on_failure(f"trying again ({why})")
            stopped.wait(PAUSES[tries])
            tries += 1


def request(api: "HfApi", url: str, part: Part, stopped: Event) -> None:
    """Make one request for what a part lacks. The file of a URL never changes: it has a commit."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers(
        library_name=api.library_name, library_version=api.library_version, token=api.token
    )
    headers |= {"Accept-Encoding": "identity", "Range": f"bytes={part.done}-"}
    with get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT
    ) as response:
        if response.status_code == RANGE_NOT_SATISFIABLE:
            part.restart()
            return
        hf_raise_for_status(response)
        if response.status_code != PARTIAL_CONTENT and part.done:
            part.restart()  # the server sends the whole file
        for data in response.iter_bytes():
            part.append(data)
            if stopped.is_set():
                return


def may_pass(error: Exception) -> bool:
    """Return whether a new try can help: after failures on the way, or in the server."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return True
    return error.response.status_code >= 500 or error.response.status_code in PASSING


def fetch(
    api: "HfApi",
    target: Target,
    file: HubFile,
    advance: Callable[[int], None],
    stopped: Event,
    on_failure: Callable[[str], None],
) -> None:
    """Download a file unless it is there, and put it in its place; leave a part if `stopped`.

    Calls `advance` with the bytes that arrive, and `on_failure` with what holds it up. Raises
    HubError for a file that does not have its hash, and the errors of `receive`.
    """
    from huggingface_hub import hf_hub_url

    repository, commit = target.listing.repository, target.listing.commit
    url = hf_hub_url(repository.id, file.name, revision=commit, endpoint=api.endpoint)
    waiting = "waiting for another process that downloads it"
    with target.lock(file, stopped, partial(on_failure, waiting)):
        if not target.has_content(file):  # a part may be whole, but not in its place yet
            with Part(target.part(file), file.size, advance, stopped) as part:
                resumed = part.done > 0
                receive(api, url, part, stopped, on_failure)
                if resumed and not stopped.is_set() and part.state.hexdigest() != file.blob:
                    on_failure("what was there of it is damaged; starting again")
                    part.restart()
                    receive(api, url, part, stopped, on_failure)
            if stopped.is_set():
                return
            if part.state.hexdigest() != file.blob:
                part.path.unlink()
                raise HubError(
                    f"{file.name} arrived with other content than {repository} lists; run the "
                    "same command again"
                )
            target.put(file)
