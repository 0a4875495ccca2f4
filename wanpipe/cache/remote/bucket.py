"""Objects under one URL: reads, conditional writes and listings, with errors of one line.

Every object store that obstore knows behaves the same here. Credentials are those that obstore
finds: environment, files, roles of the machine. Nothing here reads or repeats them.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from wanpipe.cache.validate import InvalidEntryError
from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import MAX_LINE
from wanpipe.runtime.text import printable

SCHEMES = ("s3", "gs", "az", "https", "http", "file")
READ_ONLY = ("https", "http")
PARALLEL = 16  # requests at once
RETRIES = 4  # of a request that fails on the way, with growing pauses
RETRY_SECONDS = 30  # after which a request is given up
PART_BYTES = 1 << 24  # of a large file, read or sent in one request
PROBE = ".conditional"  # an object that no write may replace
# what obstore says of a server that sends no ranges, on the web and in the cloud
NO_RANGES = re.compile("Range request not supported|non-partial response")
QUERY = re.compile(r"\?\S*")  # may hold a signature
TIMING = re.compile(r" in [\d.]+(ns|µs|ms|s)\b(, after [^-]*)?\s*- ")
ANSWER = re.compile(r"<Error>.*?<Code>([^<]*)</Code>\s*<Message>([^<]*)", re.DOTALL)
METADATA_ADDRESS = "169.254.169.254"  # asked for the role of a machine, if there are no credentials
One = TypeVar("One")
Other = TypeVar("Other")


class RemoteError(StoreError):
    """A remote that cannot be reached, or refuses."""


class ReadOnlyError(RemoteError):
    """A store that nothing can be pushed to."""


class WithoutRangesError(RemoteError):
    """A server that sends an object only as a whole."""


class Bucket:
    """The objects under a URL. Paths are relative to it."""

    def __init__(self, url: str) -> None:
        self.url, self.store = url, open_url(url)
        self.read_only = urlsplit(url).scheme in READ_ONLY
        self.conditional, self.probing = False, threading.Lock()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the errors of obstore into RemoteError."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            kind = WithoutRangesError if NO_RANGES.search(str(error)) else RemoteError
            raise kind(
                f"{self.url} cannot be used ({reason(error)}); check it and try again"
            ) from error

    def size(self, path: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        import obstore

        with self.errors():
            try:
                return int(obstore.head(self.store, path)["size"])
            except FileNotFoundError:
                return None

    def read(self, path: str, limit: int) -> bytes | None:
        """Return an object of at most `limit` bytes, None if there is none.

        Raises InvalidEntryError for a larger one.
        """
        import obstore

        with self.errors():
            try:
                found = obstore.get(self.store, path)
            except FileNotFoundError:
                return None
            if found.meta["size"] > limit:
                raise InvalidEntryError(
                    f"{path} must have at most {limit} bytes, got {found.meta['size']}"
                )
            return found.bytes().to_bytes()

    def download(self, path: str, file: Path, size: int) -> None:
        """Read an object of `size` bytes into a file, several parts at once, from where the file
        ends. Raises InvalidEntryError if it is missing or shorter.
        """

        def part(start: int) -> bytes:
            return self.read_range(path, start, min(PART_BYTES, size - start))

        have = file.stat().st_size if file.exists() else 0
        starts = list(range(min(have, size), size, PART_BYTES))
        try:
            with file.open("ab") as target:
                for first in range(0, len(starts), PARALLEL):
                    target.writelines(each(part, starts[first : first + PARALLEL]))
        except WithoutRangesError:
            self.download_whole(path, file, size)

    def download_whole(self, path: str, file: Path, size: int) -> None:
        """Read an object of `size` bytes into a file in one request, from its start. Raises
        InvalidEntryError if it has another size.
        """
        have = 0
        with file.open("wb") as target:
            for chunk in self.chunks(path):
                interrupt.check()
                have += len(chunk)
                if have <= size:  # no more than was announced
                    target.write(chunk)
        if have != size:
            raise InvalidEntryError(f"{path} must have {size} bytes, got {have}")

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of an object as they come."""
        import obstore

        with self.errors():
            yield from obstore.get(self.store, path).stream(min_chunk_size=PART_BYTES)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object. Raises InvalidEntryError if it has fewer."""
        import obstore

        with self.errors():
            try:
                data = obstore.get_range(self.store, path, start=start, length=length).to_bytes()
            except FileNotFoundError as error:
                raise InvalidEntryError(f"{path} is missing") from error
        if len(data) != length:
            raise InvalidEntryError(f"{path} must have {start + length} bytes")
        return data

    def put(self, path: str, data: "bytes | Path", *, replace: bool = False) -> bool:
        """Write an object. Without `replace` one that exists stays, and False is returned."""
        if not replace:
            self.check_conditions()
        return self.write(path, data, replace=replace)

    def check_conditions(self) -> None:
        """Raise ReadOnlyError for a store that writes over what exists although it must not: two
        machines could mix their objects in one entry. Asks once.
        """
        with self.probing:
            # the first write may make the object, so only the second one must be refused
            if not self.conditional and self.write(PROBE, b"") and self.write(PROBE, b""):
                self.read_only = True
                raise ReadOnlyError(
                    f"{self.url} cannot be pushed to, its server writes over objects that must "
                    "stay (it ignores If-None-Match); use a server with conditional writes"
                )
            self.conditional = True

    def write(self, path: str, data: "bytes | Path", *, replace: bool = False) -> bool:
        """Write an object, as `put` does, to a store of which nothing is known."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        mode: Literal["overwrite", "create"] = "overwrite" if replace else "create"
        with self.errors():
            try:
                obstore.put(self.store, path, data, use_multipart=False, mode=mode)
            except AlreadyExistsError:
                return False
        return True

    def upload(self, path: str, file: Path) -> None:
        """Write a large file in parts. It replaces what exists: obstore has no condition here."""
        import obstore

        with self.errors():
            obstore.put(self.store, path, file, use_multipart=True, chunk_size=PART_BYTES)

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names right below a prefix that have objects below them."""
        import obstore

        with self.errors():
            found = obstore.list_with_delimiter(self.store, prefix or None)
        return [name.rpartition("/")[2] for name in found["common_prefixes"]]

    def objects(self, prefix: str) -> list[tuple[str, int, datetime]]:
        """Return path, bytes and time of every object below a prefix."""
        import obstore

        with self.errors():
            rows = [row for rows in obstore.list(self.store, prefix) for row in rows]
        return [(row["path"], row["size"], row["last_modified"]) for row in rows]

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects. One that is gone already is no error."""
        for start in range(0, len(paths), 1000):
            some = paths[start : start + 1000]
            if not self.delete_all(some):  # the store may have left out others with the missing one
                each(lambda path: self.delete_all([path]), some)

    def delete_all(self, paths: Sequence[str]) -> bool:
        """Delete objects in one request, if the store can. Return False if one was missing."""
        import obstore

        with self.errors():
            try:
                obstore.delete(self.store, list(paths))
            except FileNotFoundError:
                return False
        return True


def each(work: Callable[[One], Other], items: Sequence[One]) -> list[Other]:
    """Do requests at the same time, and return their results in order. Raises Interrupted."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="remote") as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            results = []
            for job in jobs:
                interrupt.check()
                results.append(job.result())
            return results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def open_url(url: str) -> Any:
    """Open an object store. Raises UsageError for a URL that cannot be one, without repeating it
    where it may hold a secret.
    """
    parts = urlsplit(url)
    schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"--remote must not hold a password or a query ({parts.scheme}://…); give credentials "
            "in the environment"
        )
    if parts.scheme not in SCHEMES:
        raise UsageError(f"--remote must be a URL with one of {schemes}, got {url}")
    try:
        import obstore.store
        from obstore.exceptions import BaseError
    except ImportError as error:
        raise UsageError(
            "--remote needs obstore, which is not installed; run `pip install 'wanpipe[remote]'`"
        ) from error
    retry = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        if parts.scheme == "file":
            return obstore.store.from_url(url, mkdir=True, automatic_cleanup=True)
        options: dict[str, Any] = {"retry_config": retry}
        if parts.scheme != "https":  # a server of one's own is named with http:// or https://
            options["client_options"] = {"allow_http": True}
        return obstore.store.from_url(url, **options)
    except (BaseError, OSError, ValueError) as error:
        raise UsageError(
            f"--remote {url} cannot be opened ({reason(error)}); see “A shared cache”"
        ) from error


def reason(error: Exception) -> str:
    """Return what obstore or the server says, in one line without timings and signatures."""
    text = str(error).partition("\n\nDebug source")[0]
    if METADATA_ADDRESS in text:
        return "no credentials in the environment, and this machine has no role that gives them"
    if answer := ANSWER.search(text):
        text = f"{text.partition('<')[0]}{answer[1]}: {answer[2]}"
    text = (text.splitlines() or [type(error).__name__])[0]
    return printable(TIMING.sub(": ", QUERY.sub("?…", text))[:MAX_LINE]).rstrip(": ")
