"""Lets SIGINT, SIGTERM, SIGHUP and SIGQUIT end a command between two pieces of its work.

The first signal only sets a flag, and `check` raises. A handler that raises can leave a lock held,
and C code that calls Python can drop what it raised. The second signal ends the process at once.
Without `install`, as in library use, nothing here has an effect. Imports nothing heavy.
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from wanpipe.runtime.text import error_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DEBOUNCE_SECONDS = 0.25  # terminals and wrappers may send one Ctrl-C as two signals
SECOND_SIGNAL = "interrupted twice; ended at once, what was not on the disk yet is lost"
INTERRUPTED = "interrupted; run the same command again to resume, finished steps are kept"
STDOUT, STDERR = 1, 2
PIPE_BYTES = 1 << 16  # capacity of a pipe
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


# prints its second argument unless its stdin is closed within the seconds of its first
WATCHER = """
import os, select, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    os.write(2, sys.argv[2].encode())
"""


class Interrupted(KeyboardInterrupt):
    """Raise where a signal asked the command to end; `code` is its exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class _Flag:
    """The first signal since `install`, 0 before it, and whether `check` raised for it."""

    number = 0
    raised = False
    error: Exception | None = None  # of another thread: see `abort`
    leaves_at_once = False
    as_json = False
    wakeup = -1  # the end of a pipe that the running handlers write to
    terminals: tuple[int, ...] = ()  # those of stdout and stderr that were terminals


def install(as_json: bool = False) -> None:
    """Have signals set the flag, which starts unset; one that the parent ignores stays ignored.

    Call it on the main thread. `as_json` is the form of the line that a second signal prints.
    """
    _Flag.number, _Flag.raised, _Flag.error, _Flag.as_json = 0, False, None, as_json
    _Flag.terminals = tuple(filter(os.isatty, (STDOUT, STDERR)))
    # Python's own handlers wait for the main thread, which may be in C code for minutes: a second
    # signal reaches the thread at the other end of this pipe
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _set_flag)
    signal.set_wakeup_fd(writer)
    if _Flag.wakeup >= 0:
        os.close(_Flag.wakeup)
    else:
        atexit.register(_ignore)
    _Flag.wakeup = writer
    threading.Thread(target=_watch, args=(reader, as_json), name="signals", daemon=True).start()


def check() -> None:
    """Raise Interrupted if a signal came, once, and only on the main thread.

    Call it where work can stop: outside of thread locks, between pieces of a second or less.
    """
    if not (_Flag.number or _Flag.error) or _Flag.raised:
        return
    if threading.current_thread() is threading.main_thread():
        _Flag.raised = True  # cleanup must not be interrupted
        if _Flag.error is not None:
            raise _Flag.error
        raise Interrupted(_Flag.number)


def abort(error: Exception, seconds: float, busy: Callable[[], bool]) -> None:
    """Have `check` raise an error that another thread found, as if a signal came.

    If the main thread is in C code that does not return within `seconds`, the process prints the
    error and ends, once nothing is `busy` any more or after as long again. Call it on any thread,
    which it holds up. What came first is told: mlx.launch sends a signal when a rank is lost.
    """
    _Flag.leaves_at_once = True
    if not _Flag.number:
        _Flag.error = error
    deadline = time.monotonic() + seconds
    while not _Flag.raised:
        now = time.monotonic()
        if now > deadline + seconds or (now > deadline and not busy()):
            line = INTERRUPTED if _Flag.error is None else str(error)
            try:
                _print_error(error_line(line, _Flag.as_json))
            finally:
                os._exit(128 + _Flag.number if _Flag.error is None else 1)
        time.sleep(0.05)


@contextmanager
def time_limit(seconds: float, message: str = "") -> Iterator[None]:
    """Print a message and end the process with 1 if the block takes longer, even in C code that
    lets no other thread run.
    """
    import faulthandler  # its thread needs no Python, but it can print only a traceback
    import subprocess

    watcher = None
    if message:
        line = f"{error_line(message, _Flag.as_json)}\n"
        words = [sys.executable, "-I", "-c", WATCHER, str(seconds), line]
        watcher = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        faulthandler.dump_traceback_later(seconds + 1, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if watcher is not None:
                watcher.communicate()  # closes its stdin


def leave_at_once() -> None:
    """Have `finish` skip the interpreter's own end: a GPU may wait for another one for ever."""
    _Flag.leaves_at_once = True


def finish(code: object) -> None:
    """End the process at once if something asked for it."""
    if _Flag.leaves_at_once:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _set_flag(number: int, frame: FrameType | None) -> None:
    """Set the flag; the signals after the first are `_watch`'s."""
    _Flag.number = _Flag.number or number
    gone = [one for one in _Flag.terminals if number == signal.SIGHUP and not os.isatty(one)]
    for descriptor in gone:  # a closed terminal: what is printed from here must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _watch(reader: int, as_json: bool) -> None:
    """End the process at the second signal, whatever the other threads do."""
    if _next_signal(reader):
        time.sleep(DEBOUNCE_SECONDS)
        if select.select([reader], [], [], 0)[0]:
            os.read(reader, PIPE_BYTES)  # sent together with the first
        if number := _next_signal(reader):
            try:
                _print_error(error_line(SECOND_SIGNAL, as_json))
            finally:
                os._exit(128 + number)
    os.close(reader)


def _next_signal(reader: int) -> int:
    """Wait for a signal; 0 where the other end of the pipe is closed."""
    while read := os.read(reader, 1):
        if read[0] in SIGNALS:
            return read[0]
    return 0


def _print_error(line: str) -> None:
    """Print a line on stderr, past Python's own buffers and their locks."""
    if select.select([], [STDERR], [], 0)[1]:  # a pipe that nobody reads would hold up the end
        cursor = SHOW_CURSOR if os.isatty(STDERR) else ""
        os.write(STDERR, f"{cursor}{line}\n".encode())


def _ignore() -> None:
    """Ignore signals while the interpreter ends, when they could only spoil the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
