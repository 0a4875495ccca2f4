"""A SQLite file beside the entries that saves reading them: summaries of entries, and content
hashes of files.

A shortcut only: it decides nothing, and whatever is wrong with it costs one reading of what it
summed up. So it is not synced to the disk, and is made anew where it is damaged.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from wanpipe.store.keys import hash_file

FILE = ".index"
VERSION = 1  # raised when the tables change; a file of another version is made anew
TABLES = """
    CREATE TABLE IF NOT EXISTS entries (place TEXT PRIMARY KEY, summary BLOB);
    CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, stamp TEXT, digest TEXT);
"""
PATIENCE = 5.0  # seconds to wait for another process that writes
FRESH = 2.0  # seconds: a file changed more recently could change again within its time stamp


class Shortcuts:
    """The file of one cache. Without `writes` nothing is remembered."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        self.file, self.writes = root / FILE, writes

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of a query; none where the file is missing or cannot be read."""
        if not self.file.is_file():
            return []
        try:
            with self.opened("ro") as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error:
            return []

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Carry out a statement for each of `rows`, all or none; where that cannot be, nothing is
        remembered.
        """
        rows = list(rows)
        if not self.writes or not rows or not self.file.parent.is_dir():
            return
        for _ in range(2):
            try:
                with self.opened("rwc") as database, database:
                    database.executemany(statement, rows)
                return
            except sqlite3.OperationalError:  # read-only, full, or busy for long
                return
            except sqlite3.DatabaseError:  # damaged, or another program's
                with suppress(OSError):
                    self.file.unlink(missing_ok=True)

    @contextmanager
    def opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        """Open the file, with its tables where it may be written. Raises sqlite3.Error."""
        name = f"{self.file.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(name, uri=True, timeout=PATIENCE)) as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                if version or mode == "ro":
                    raise sqlite3.DatabaseError("made by another version")
                script = f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version={VERSION}; COMMIT;"
                database.executescript(script)
            if mode != "ro":
                database.execute("PRAGMA synchronous=OFF")
            yield database


class HashCache:
    """Content hashes by real path, size, inode and modification time, as git's index has them, so
    that an unchanged file is not read again to be recognized.
    """

    def __init__(self, shortcuts: Shortcuts) -> None:
        self.shortcuts = shortcuts

    def hash(self, file: Path, hasher: Any = hash_file) -> str:
        """Return the xxh3_128 of a file's bytes, from memory where it has not changed since."""
        name, stamp = str(file.resolve()), stamp_of(file)
        known = self.shortcuts.read("SELECT stamp, digest FROM hashes WHERE path = ?", (name,))
        if known and known[0][0] == stamp:
            return str(known[0][1])
        digest = str(hasher(file))
        if stamp_of(file) == stamp and time.time() - file.stat().st_mtime > FRESH:
            self.note(name, stamp, digest)
        return digest

    def learn(self, file: Path, digest: str) -> None:
        """Note the hash of a file that this process has just written itself."""
        self.note(str(file.resolve()), stamp_of(file), digest)

    def note(self, name: str, stamp: str, digest: str) -> None:
        """Remember one hash, in a cache that may have no entry yet."""
        if self.shortcuts.writes:
            with suppress(OSError):  # a cache that cannot be written remembers nothing
                self.shortcuts.file.parent.mkdir(parents=True, exist_ok=True)
        statement = "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)"
        self.shortcuts.write(statement, [(name, stamp, digest)])


def stamp_of(file: Path) -> str:
    """What changes when a file does: size, inode and modification time."""
    status = file.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}"
