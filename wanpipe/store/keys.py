"""Content hashes and keys: xxh3_128 of bytes, and of the canonical JSON of a material.

A change here changes every key of every user; tests/store/test_keys.py pins their values.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.runtime import interrupt

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1  # raised when the format of all entries or materials changes
KEY = re.compile("[0-9a-f]{32}")
READ_BYTES = 1 << 22  # at a time; more does not fit the cache of a core
PREFIX = re.compile("[0-9a-f]{4,32}")  # anything shorter is a name
Progress = Callable[[int, int], None]  # takes the bytes done and in all


def canonical(material: Any) -> bytes:
    """Encode as canonical JSON: sorted keys, no spaces, UTF-8, finite numbers."""
    text = json.dumps(
        material, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def key_of(material: Any) -> str:
    """Hash a material to its key, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(canonical(material))


def is_key(text: str) -> bool:
    """Return whether a text has the form of a key."""
    return KEY.fullmatch(text) is not None


def is_prefix(text: str) -> bool:
    """Return whether a text has the form of a key prefix."""
    return PREFIX.fullmatch(text) is not None


def hash_array(array: "np.ndarray") -> str:
    """Hash an array's bytes in C order, little endian; shape and dtype are not part of it."""
    import numpy as np

    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return xxhash.xxh3_128_hexdigest(little.reshape(-1).view(np.uint8).data)


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Hash a file's bytes in pieces; `progress` receives the bytes done and in all."""
    state, done, total = xxhash.xxh3_128(), 0, path.stat().st_size
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            interrupt.check()
            state.update(buffer[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return state.hexdigest()
