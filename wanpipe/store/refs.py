"""Refs: names that stand for entries, as git's refs stand for commits. Names that users give, and
pins.

Each is a small file that holds `stage/key`, so that entries themselves never change.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wanpipe.errors import UsageError
from wanpipe.runtime.disk import atomic_write
from wanpipe.runtime.documents import read_regular
from wanpipe.store.keys import is_prefix

MAX_REF_BYTES = 100
MAX_BYTES = 200  # of a name; file systems allow 255, and numbers may follow
TARGET = re.compile(r"[a-z-]+/[0-9a-f]{32}")


@dataclass(frozen=True)
class Refs:
    """The refs in one folder."""

    folder: Path

    def get(self, name: str) -> str | None:
        """Return the `stage/key` of a name; None if it does not exist or is invalid."""
        if "/" in name:
            return None
        try:
            target = read_regular(self.folder / name, MAX_REF_BYTES).decode().strip()
        except (OSError, ValueError):
            return None
        return target if TARGET.fullmatch(target) else None

    def all(self) -> dict[str, str]:
        """Return every name with the `stage/key` it stands for."""
        if not self.folder.is_dir():
            return {}
        names = sorted(file.name for file in self.folder.iterdir() if file.name[0] != ".")
        return {name: target for name in names if (target := self.get(name))}

    def of(self, target: str) -> list[str]:
        """Return the names of one `stage/key`."""
        return [name for name, found in self.all().items() if found == target]

    def set(self, name: str, target: str) -> None:
        """Let a name stand for `target`."""
        atomic_write(self.folder / name, f"{target}\n".encode())

    def remove(self, name: str) -> None:
        """Remove a name if it exists."""
        (self.folder / name).unlink(missing_ok=True)


def check_name(name: str) -> None:
    """Raise UsageError for a name that could be taken for a path or a key."""
    if len(os.fsencode(name)) > MAX_BYTES:
        raise UsageError(f"a name may have at most {MAX_BYTES} bytes, got {name[:24]}…; use cat-1")
    fine = name and all(letter.isalnum() or letter in "-_." for letter in name)
    if not fine or name[0] in "-." or is_prefix(name):
        raise UsageError(
            "a name must be letters, digits, - _ . and neither start with - or . nor look like a "
            f"key, got {name!r}; use one like cat-1"
        )
