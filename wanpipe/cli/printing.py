"""Prints results on stdout: paths, text for people, JSON for programs.

The one place that writes there, so that nothing from a file can control the terminal.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wanpipe.errors import WanpipeError
from wanpipe.runtime.text import printable, to_json


def print_path(path: Path | str) -> None:
    """Print a path: exactly as it is for programs, without control characters on a terminal."""
    with writable():
        print(printable(str(path)) if sys.stdout.isatty() else path)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines for people, if there are any."""
    if text := "\n".join(map(printable, lines)):
        with writable():
            print(text)


def print_json(*rows: Any) -> None:
    """Print each row as a line of JSON."""
    if text := "\n".join(map(to_json, rows)):
        with writable():
            print(text)


def flush() -> None:
    """Write what was printed, while a failure can still be reported. Raises WanpipeError."""
    with writable():
        sys.stdout.flush()


@contextmanager
def writable() -> Iterator[None]:
    """Raise WanpipeError if stdout cannot be written; a closed pipe stays BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WanpipeError(
            f"stdout cannot be written: {error.strerror}; make room or print elsewhere"
        ) from error
