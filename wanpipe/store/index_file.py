"""The index file: a SQLite file beside the entries, with summaries of entries, content hashes of
files and token ids of texts.

It only caches: it decides nothing, and a damaged one costs one reading of the entries and files. So
it is not synced to the disk, and is rebuilt when damaged.
"""

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash
from msgspec.json import encode

from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import DocumentError, decode
from wanpipe.runtime.text import storable
from wanpipe.runtime.worker import POLL_SECONDS
from wanpipe.store.keys import hash_file
from wanpipe.store.materials import Tokens

FILE = ".index"
ENTRIES, HASHES, TRIED, TOKENS = "entry", "hash", "tried", "tokens"  # kinds of rows
VERSION = 1  # raised when the table changes; a file of another version is rebuilt
MAX_BYTES = 1 << 28  # a larger file is rebuilt
MAX_NAMES = 500  # of one query; SQLite takes 999
MAX_TOKENS = 1 << 15  # bytes of the ids of a text; more are not stored
TABLE = """notes
        (kind TEXT, name TEXT, value BLOB, checksum BLOB, PRIMARY KEY (kind, name)) WITHOUT ROWID"""
BUSY_OR_REFUSED = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}
TIMEOUT_SECONDS = 5.0  # of a wait for another process that writes
# git calls such a file racily clean: it could change again without a new modification time
RACY_SECONDS = 2.0


def checksum(kind: str, name: str, value: bytes) -> bytes:
    """Hash a row, to detect damage."""
    head = f"{kind}\0{name}\0".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_digest(head + value)


class IndexFile:
    """The index file of one cache. Without `writes` it is only read."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        self.file, self.writes = root / FILE, writes

    def get(self, kind: str, name: str) -> bytes | None:
        """Return the value of a name; None if it is missing or damaged."""
        return self.some(kind, [name]).get(name)

    def some(self, kind: str, names: Sequence[str]) -> dict[str, bytes]:
        """Return the values of names, without those that are missing or damaged."""
        found = dict[str, bytes]()
        for start in range(0, len(names), MAX_NAMES):
            asked = names[start : start + MAX_NAMES]
            marks = ", ".join("?" * len(asked))
            query = "SELECT name, value, checksum FROM notes WHERE kind = ? AND name IN"
            found |= self.read(f"{query} ({marks})", kind, *asked)
        return found

    def all(self, kind: str) -> dict[str, bytes]:
        """Return all values of a kind by name."""
        return self.read("SELECT name, value, checksum FROM notes WHERE kind = ?", kind)

    def put(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Store values by name, all or none."""
        rows = [(kind, name, value, checksum(kind, name, value)) for name, value in values.items()]
        self.write("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", rows)

    def drop(self, kind: str, names: Iterable[str]) -> None:
        """Delete names."""
        self.write("DELETE FROM notes WHERE kind = ? AND name = ?", [(kind, one) for one in names])

    def read(self, query: str, kind: str, *values: str) -> dict[str, bytes]:
        """Return the valid rows of a query; none if the file is missing or cannot be read."""
        if not self.file.is_file():
            return {}
        try:
            with self.connect("ro") as database:
                rows = database.execute(query, (kind, *values)).fetchall()
        except (sqlite3.Error, UnicodeError) as error:
            if self.writes and error_code(error) == sqlite3.SQLITE_CORRUPT:
                self.remove()  # writing may not notice
            return {}
        return {
            name: value
            for name, value, known in rows
            if isinstance(value, bytes) and known == checksum(kind, name, value)
        }

    def write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement for each of `rows`, all or none; a file that cannot be written is left
        alone.
        """
        if not self.writes or not rows or not self.file.parent.is_dir():
            return
        for _ in range(2):
            try:
                with self.connect("rwc") as database, database:
                    database.executemany(statement, rows)
                return
            except UnicodeEncodeError:  # a file name that SQLite cannot store
                return
            except (sqlite3.Error, UnicodeDecodeError) as error:
                if error_code(error) in BUSY_OR_REFUSED:
                    return
                self.remove()  # damaged, or not ours

    @contextmanager
    def connect(self, mode: str) -> Iterator[sqlite3.Connection]:
        """Open the file; create its table if it may be written. Raises sqlite3.Error."""
        name = f"{self.file.absolute().as_uri()}?mode={mode}"
        if self.file.is_symlink() or (self.file.exists() and not self.is_plausible()):
            raise sqlite3.DatabaseError("not an index file")
        with closing(sqlite3.connect(name, uri=True, timeout=TIMEOUT_SECONDS)) as database:
            if mode != "ro":
                database.execute("PRAGMA synchronous=OFF")
                self.create_table(database)
            # views, triggers and computed columns could run for ever
            schema = database.execute("SELECT sql FROM sqlite_master").fetchall()
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION or schema != [(f"CREATE TABLE {TABLE}",)]:
                raise sqlite3.DatabaseError("made by another version")
            yield database

    def remove(self) -> None:
        """Remove the file, if that is allowed."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def is_plausible(self) -> bool:
        """Return whether the file is a regular one of a plausible size."""
        return self.file.is_file() and self.file.stat().st_size <= MAX_BYTES

    def create_table(self, database: sqlite3.Connection) -> None:
        """Create the table in an empty file."""
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            create = f"CREATE TABLE IF NOT EXISTS {TABLE}; PRAGMA user_version={VERSION};"
            database.executescript(f"BEGIN IMMEDIATE; {create} COMMIT;")


def error_code(error: Exception) -> int:
    """Return SQLite's code of an error, 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


class HashCache:
    """Content hashes by real path, size, inode and modification time, as in git's index, so that an
    unchanged file is not read again.
    """

    def __init__(self, index_file: IndexFile) -> None:
        self.index_file = index_file
        self.seen: dict[tuple[str, str], str] = {}  # by this process, stored or not
        self.tried: set[str] = set()  # content hashes, likewise
        self.locks: dict[str, Lock] = {}  # by name: two threads hash a file once

    def hash(self, file: Path, hasher: Any = hash_file) -> str:
        """Return the xxh3_128 of a file's bytes; an unchanged file is not read."""
        name = storable(str(file.resolve()))
        lock = self.locks.setdefault(name, Lock())
        while not lock.acquire(timeout=POLL_SECONDS):
            interrupt.check()
        try:
            return self._hash(file, name, hasher)
        finally:
            lock.release()

    def _hash(self, file: Path, name: str, hasher: Any) -> str:
        """Return the hash of a file that no other thread hashes."""
        stamp = file_stamp(file)
        if (name, stamp) in self.seen:
            return self.seen[name, stamp]
        known = self.index_file.get(HASHES, name) or b""
        if found := re.fullmatch(rb"%s ([0-9a-f]{32})" % stamp.encode(), known):
            return found[1].decode()
        digest = str(hasher(file))
        if file_stamp(file) == stamp:
            self.seen[name, stamp] = digest
            if abs(time.time() - file.stat().st_mtime) > RACY_SECONDS:  # the clock may be wrong
                self.put(HASHES, name, f"{stamp} {digest}".encode())
        return digest

    def is_tried(self, digest: str) -> bool:
        """Return whether a file of this content hash was tried before, and found harmless."""
        return digest in self.tried or self.index_file.get(TRIED, digest) is not None

    def record_tried(self, digest: str) -> None:
        """Remember that a file of this content hash is harmless."""
        self.tried.add(digest)
        self.put(TRIED, digest, b"")

    def record(self, file: Path, digest: str) -> None:
        """Store the hash of a file that this process has just written."""
        name = storable(str(file.resolve()))
        self.put(HASHES, name, f"{file_stamp(file)} {digest}".encode())

    def put(self, kind: str, name: str, value: bytes) -> None:
        """Store one row, in a cache that may not exist yet."""
        if self.index_file.writes:
            with suppress(OSError):  # a read-only cache stores no hashes
                self.index_file.file.parent.mkdir(parents=True, exist_ok=True)
        self.index_file.put(kind, {name: value})


class TokenCache:
    """Token ids of cleaned texts by the content hash of a tokenizer, so that the tokenizer, which
    takes a second to open, is not opened for a text that it has seen.

    `tokenizer` names all else that decides the ids.
    """

    def __init__(self, index_file: IndexFile, tokenizer: str) -> None:
        self.index_file, self.tokenizer = index_file, tokenizer

    def name(self, text: str, text_len: int) -> str:
        """Return the name of a row."""
        digest = xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
        return f"{self.tokenizer} {text_len} {digest}"

    def get(self, texts: Iterable[str], text_len: int) -> dict[str, list[int]]:
        """Return the ids of texts, at most `text_len`, without those that are not known."""
        names = {text: self.name(text, text_len) for text in texts}
        rows = self.index_file.some(TOKENS, list(names.values()))
        found = {text: read_tokens(rows.get(name, b"")) for text, name in names.items()}
        return {text: ids for text, ids in found.items() if 0 < len(ids) <= text_len}

    def put(self, found: Mapping[str, list[int]], text_len: int) -> None:
        """Store the ids of texts."""
        rows = {self.name(text, text_len): encode(ids) for text, ids in found.items()}
        short = {name: value for name, value in rows.items() if len(value) <= MAX_TOKENS}
        self.index_file.put(TOKENS, short)


def read_tokens(value: bytes) -> list[int]:
    """Decode the ids in a row; none if they cannot be."""
    try:
        return decode(value if len(value) <= MAX_TOKENS else b"", Tokens)
    except DocumentError:
        return []


def file_stamp(file: Path) -> str:
    """Return size, inode and modification time, which change with the content of a file."""
    status = file.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}"
