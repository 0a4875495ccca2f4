"""The standard streams, in whatever state a command finds them."""

import os
import sys
from contextlib import suppress

from wanpipe.runtime.text import ENCODING_ERRORS


def open_missing() -> None:
    """Make all three standard streams usable. Call it before any other file is opened.

    One that is closed becomes the null device: else the next file would get its number, and Python
    would print on stdout what is meant for stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors=ENCODING_ERRORS)  # type: ignore[union-attr,unused-ignore]


def discard_output() -> None:
    """Drop what a closed pipe cannot take, so that the end of the process does not fail for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a stream without a number, as in tests
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
