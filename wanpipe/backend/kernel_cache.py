"""Keeps compiled CUDA kernels on disk: compiling one takes at least 0.04 s in every process.

They lie in `~/.cache/wanpipe/kernels`, or under `XDG_CACHE_HOME`. A file that is missing, damaged
or not writable costs one compilation.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xxhash

from wanpipe.runtime.disk import atomic_write

DIGEST_BYTES = 16
MAX_BYTES = 1 << 24  # a kernel has 10 to 50 kB


def folder() -> Path:
    """Return where kernels are kept. Raises RuntimeError if there is no home directory."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "wanpipe" / "kernels"


def compiled(name: str, compile: Callable[[], bytes]) -> bytes:
    """Return the kernel that is kept under `name`, or compile and keep it.

    `name` must tell all that the result depends on.
    """
    try:
        path = folder() / name
    except RuntimeError:
        return compile()
    with suppress(OSError):
        if path.stat().st_size <= MAX_BYTES:
            whole = path.read_bytes()
            if whole[:DIGEST_BYTES] == digest(name, whole[DIGEST_BYTES:]):
                return whole[DIGEST_BYTES:]
    kernel = compile()
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, digest(name, kernel) + kernel)
    return kernel


def digest(name: str, kernel: bytes) -> bytes:
    """Hash a kernel and its name, to detect damage."""
    return xxhash.xxh3_128_digest(name.encode() + b"\0" + kernel)
