"""The index file: a SQLite file beside the entries, with summaries of entries and content hashes of
files.

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

from wanpipe.runtime import interrupt
from wanpipe.runtime.text import storable
from wanpipe.store.keys import hash_file

FILE = ".index"
ENTRIES, HASHES, TRIED = "entry", "hash", "tried"  # kinds of rows
VERSION = 1  # raised when the table changes; a file of another version is rebuilt
MAX_BYTES = 1 << 28  # a larger file is rebuilt
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
POLL_SECONDS = 0.1  # between two checks for a signal, while another thread hashes
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
        query = "SELECT name, value, checksum FROM notes WHERE kind = ? AND name = ?"
        return self.read(query, kind, name).get(name)

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
        except (sqlite3.Error, UnicodeError):
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
            except UnicodeError:  # a file name that SQLite cannot store
                return
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY_OR_REFUSED:
                    return
                with suppress(OSError):  # damaged, or not ours
                    self.file.unlink(missing_ok=True)

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

    def is_plausible(self) -> bool:
        """Return whether the file is a regular one of a plausible size."""
        return self.file.is_file() and self.file.stat().st_size <= MAX_BYTES

    def create_table(self, database: sqlite3.Connection) -> None:
        """Create the table in an empty file."""
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            create = f"CREATE TABLE IF NOT EXISTS {TABLE}; PRAGMA user_version={VERSION};"
            database.executescript(f"BEGIN IMMEDIATE; {create} COMMIT;")


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


def file_stamp(file: Path) -> str:
    """Return size, inode and modification time, which change with the content of a file."""
    status = file.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}"
