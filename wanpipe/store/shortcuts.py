"""A SQLite file beside the entries that saves reading them: summaries of entries, and content
hashes of files.

A shortcut only: it decides nothing, and whatever is wrong with it costs one reading of what it
summed up. So it is not synced to the disk, and is made anew where it is damaged.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from wanpipe.runtime.text import storable
from wanpipe.store.keys import hash_file

FILE = ".index"
ENTRIES, HASHES = "entry", "hash"  # kinds of notes
VERSION = 1  # raised when the tables change; a file of another version is made anew
TABLE = """
    CREATE TABLE IF NOT EXISTS notes
        (kind TEXT, name TEXT, value BLOB, checksum BLOB, PRIMARY KEY (kind, name)) WITHOUT ROWID;
"""
PATIENCE = 5.0  # seconds to wait for another process that writes
FRESH = 2.0  # seconds: a file changed more recently could change again within its time stamp


def checksum(kind: str, name: str, value: bytes) -> bytes:
    """What tells a damaged row."""
    head = f"{kind}\0{name}\0".encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_digest(head + value)


class Shortcuts:
    """The file of one cache. Without `writes` nothing is remembered."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        self.file, self.writes = root / FILE, writes

    def get(self, kind: str, name: str) -> bytes | None:
        """What is remembered under a name; None where nothing is, or it is damaged."""
        query = "SELECT name, value, checksum FROM notes WHERE kind = ? AND name = ?"
        return self.read(query, kind, name).get(name)

    def all(self, kind: str) -> dict[str, bytes]:
        """All that is remembered of a kind, by name."""
        return self.read("SELECT name, value, checksum FROM notes WHERE kind = ?", kind)

    def put(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Remember values by name, all or none."""
        rows = [(kind, name, value, checksum(kind, name, value)) for name, value in values.items()]
        self.write("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", rows)

    def drop(self, kind: str, names: Iterable[str]) -> None:
        """Forget names."""
        self.write("DELETE FROM notes WHERE kind = ? AND name = ?", [(kind, one) for one in names])

    def read(self, query: str, kind: str, *values: str) -> dict[str, bytes]:
        """The sound rows of a query; none where the file is missing or cannot be read."""
        if not self.file.is_file():
            return {}
        try:
            with self.opened("ro") as database:
                rows = database.execute(query, (kind, *values)).fetchall()
        except (sqlite3.Error, UnicodeError):
            return {}
        return {
            name: value
            for name, value, known in rows
            if isinstance(value, bytes) and known == checksum(kind, name, value)
        }

    def write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Carry out a statement for each of `rows`, all or none; where that cannot be, nothing is
        remembered.
        """
        if not self.writes or not rows or not self.file.parent.is_dir():
            return
        for _ in range(2):
            try:
                with self.opened("rwc") as database, database:
                    database.executemany(statement, rows)
                return
            except sqlite3.OperationalError:  # read-only, full, or busy for long
                return
            except (sqlite3.DatabaseError, UnicodeError):  # damaged, or another program's
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
                script = f"BEGIN IMMEDIATE; {TABLE} PRAGMA user_version={VERSION}; COMMIT;"
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
        self.seen: dict[tuple[str, str], str] = {}  # by this process, remembered or not

    def hash(self, file: Path, hasher: Any = hash_file) -> str:
        """Return the xxh3_128 of a file's bytes, from memory where it has not changed since."""
        name, stamp = storable(str(file.resolve())), stamp_of(file)
        if (name, stamp) in self.seen:
            return self.seen[name, stamp]
        known = (self.shortcuts.get(HASHES, name) or b"").decode().rpartition(" ")
        if known[0] == stamp:
            return known[2]
        digest = str(hasher(file))
        if stamp_of(file) == stamp:
            self.seen[name, stamp] = digest
            if time.time() - file.stat().st_mtime > FRESH:
                self.note(name, stamp, digest)
        return digest

    def learn(self, file: Path, digest: str) -> None:
        """Note the hash of a file that this process has just written itself."""
        self.note(storable(str(file.resolve())), stamp_of(file), digest)

    def note(self, name: str, stamp: str, digest: str) -> None:
        """Remember one hash, in a cache that may have no entry yet."""
        if self.shortcuts.writes:
            with suppress(OSError):  # a cache that cannot be written remembers nothing
                self.shortcuts.file.parent.mkdir(parents=True, exist_ok=True)
        self.shortcuts.put(HASHES, {name: f"{stamp} {digest}".encode()})


def stamp_of(file: Path) -> str:
    """What changes when a file does: size, inode and modification time."""
    status = file.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}"
