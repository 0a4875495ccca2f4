"""Remembers content hashes of files, as git's index does, so that an unchanged file is not read
again to be recognised.

A shortcut only: it never decides what a key is, and losing it costs one reading.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wanpipe.store.keys import hash_file

FRESH = 2.0  # seconds: a file changed more recently could change again within its time stamp
CAPACITY = 4096


class Memo:
    """Content hashes by real path, size, inode and modification time, kept in one JSON file."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def hash(self, file: Path, hasher: Callable[[Path], str] = hash_file) -> str:
        """Return the xxh3_128 of a file's bytes, from memory where it has not changed since."""
        name, stamp = str(file.resolve()), stamp_of(file)
        known = self.read()
        if known.get(name, [None])[0] == stamp:
            return str(known[name][1])
        digest = hasher(file)
        if stamp_of(file) == stamp and time.time() - file.stat().st_mtime > FRESH:
            self.note(name, stamp, digest)
        return digest

    def learn(self, file: Path, digest: str) -> None:
        """Note the hash of a file that this process has just written itself."""
        self.note(str(file.resolve()), stamp_of(file), digest)

    def read(self) -> dict[str, list[str]]:
        """All that is remembered; nothing where the file is missing or damaged."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def note(self, name: str, stamp: str, digest: str) -> None:
        """Add one hash; where the memo cannot be written it is simply not remembered."""
        if not self.writes:
            return
        known = self.read()
        known.pop(name, None)
        known[name] = [stamp, digest]
        recent = dict(list(known.items())[-CAPACITY:])
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(recent), encoding="utf-8")
            draft.replace(self.path)
        except OSError:  # a read-only cache, a full disk: the next run reads the file again
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def stamp_of(file: Path) -> str:
    """What changes when a file does: size, inode and modification time."""
    status = file.stat()
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns}"
