"""Words that stand for entries: names that users give, and pins.

Each is a small file that holds `stage/key`, so that entries themselves never change.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wanpipe.errors import UsageError
from wanpipe.runtime.disk import put
from wanpipe.store.keys import is_prefix

LONGEST = 200  # bytes; file systems allow 255, and the numbers of several results follow
TARGET = re.compile(r"[a-z-]+/[0-9a-f]{32}")


@dataclass(frozen=True)
class Labels:
    """Labels kept in one folder."""

    folder: Path

    def get(self, label: str) -> str | None:
        """The `stage/key` that a label stands for; None where it is none or not sound."""
        if "/" in label:
            return None
        try:
            target = (self.folder / label).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return target if TARGET.fullmatch(target) else None

    def all(self) -> dict[str, str]:
        """Every label with the `stage/key` it stands for."""
        if not self.folder.is_dir():
            return {}
        labels = sorted(file.name for file in self.folder.iterdir() if file.name[0] != ".")
        return {label: target for label in labels if (target := self.get(label))}

    def of(self, target: str) -> list[str]:
        """The labels of one `stage/key`."""
        return [label for label, there in self.all().items() if there == target]

    def set(self, label: str, target: str) -> None:
        """Let a label stand for `target` from now on."""
        put(self.folder / label, f"{target}\n".encode())

    def remove(self, label: str) -> None:
        """Forget a label; one that is not there is forgotten already."""
        (self.folder / label).unlink(missing_ok=True)


def check_name(name: str) -> None:
    """Raise UsageError for a name that could be taken for a path or a key."""
    if len(os.fsencode(name)) > LONGEST:
        raise UsageError(f"a name may have at most {LONGEST} bytes, got {name[:24]}…; use cat-1")
    fine = name and all(letter.isalnum() or letter in "-_." for letter in name)
    if not fine or name[0] in "-." or is_prefix(name):
        raise UsageError(
            "a name must be letters, digits, - _ . and neither start with - or . nor look like a "
            f"key, got {name!r}; use one like cat-1"
        )
