"""Runs one of our programs on untrusted data in a child process with limits on time and memory.

For libraries that may hang, abort or exhaust memory on damaged data. The child starts with this
file too, so it imports only the standard library. macOS does not enforce a memory limit; only time
is limited there.
"""

import os
import resource
import runpy
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

TIMEOUT_SECONDS = 300.0  # wall time, for a child that waits and computes nothing
# every thread of a library reserves address space; a backtrace takes seconds
ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}


class SandboxError(Exception):
    """Raised for a child that failed; the message is one line."""


@lru_cache(maxsize=8)  # a conversion opens its files several times
def run_limited(program: Path, data: bytes, seconds: int, memory: int) -> bytes:
    """Run the Python file `program` with `data` on stdin, and return its stdout.

    It may take `seconds` of processor time and `memory` bytes of address space. Raises
    SandboxError with its last line on stderr, or with the limit that it exceeded.
    """
    words = (str(program), str(seconds), str(memory))
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", __file__, *words],
            input=data,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,  # Ctrl-C must reach only the parent, which then ends the child
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"it took more than {TIMEOUT_SECONDS:.0f} s") from error
    if child.returncode == -signal.SIGXCPU:
        raise SandboxError(f"it took more than {seconds} s of processor time")
    if child.returncode:
        raise SandboxError(_reason(child.returncode, child.stderr.decode("utf-8", "replace")))
    return child.stdout


def _reason(code: int, text: str) -> str:
    """Return in one line why a process ended: Python prints it last, an abort prints it first."""
    lines = [line for line in map(" ".join, map(str.split, text.split("\n"))) if line]
    ended = f"it ended with signal {-code}" if code < 0 else "it ended with an error"
    return (lines or [ended])[0 if code < 0 else -1][:300]


def limit(kind: int, value: int) -> None:
    """Lower a limit of this process."""
    hard = resource.getrlimit(kind)[1]
    lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (lower, hard))


if __name__ == "__main__":
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, int(sys.argv[2]))
    if sys.platform == "linux":
        limit(resource.RLIMIT_AS, int(sys.argv[3]))
    runpy.run_path(sys.argv[1], run_name="__main__")
