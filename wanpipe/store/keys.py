"""Names results by their content: canonical JSON of the material, xxh3_128 of bytes.

A change here changes every key of every user; the pinned values in tests/store/test_keys.py notice
it.
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

SCHEMA = 1  # raised when the form of entries or of materials changes for all stages at once
KEY = re.compile("[0-9a-f]{32}")
CHUNK = 1 << 22  # bytes of a file at once; more falls out of the cache of a core
PREFIX = re.compile("[0-9a-f]{4,32}")  # what is shorter is a name


def canonical(material: Any) -> bytes:
    """Encode as JSON in one way only: sorted keys, no spaces, UTF-8, finite numbers."""
    text = json.dumps(
        material, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def key_of(material: Any) -> str:
    """Hash a material to its key, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(canonical(material))


def is_key(text: str) -> bool:
    """Whether a text has the form of a key."""
    return KEY.fullmatch(text) is not None


def is_prefix(text: str) -> bool:
    """Whether a reference can be the beginning of a key."""
    return PREFIX.fullmatch(text) is not None


def hash_array(array: "np.ndarray") -> str:
    """Hash an array's bytes in C order, little endian; shape and dtype are not part of it."""
    import numpy as np

    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return xxhash.xxh3_128_hexdigest(little.reshape(-1).view(np.uint8).data)


def hash_file(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Hash a file's bytes without reading it whole; `progress` is told bytes done and in all."""
    state, done, total = xxhash.xxh3_128(), 0, path.stat().st_size
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            interrupt.check()
            state.update(buffer[:count])
            done += count
            if progress is not None:
                progress(done, total)
    return state.hexdigest()
