"""Ctrl-C, SIGTERM and SIGHUP: the first ends work between two pieces of it, the second at once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak import Campaign, whole_run
from tests.workshop import inside

ROOT = Path(__file__).parent.parent
SOON = 20.0  # seconds: far less than what is interrupted would take, far more than it needs
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGQUIT: 131}
# what the programs below begin with: `hit` sends a signal to the process itself
START = """
import os, signal, sys, threading, time
from wanpipe.runtime import interrupt
from wanpipe.runtime.interrupt import Interrupted

def hit(number=signal.SIGINT, after=0.0):
    if after:
        threading.Timer(after, os.kill, (os.getpid(), number)).start()
    else:
        signal.raise_signal(number)

def outcome():
    try:
        interrupt.check()
        return "goes on"
    except Interrupted as error:
        return error.code
"""


def python(
    code: str, *ignored: str, cwd: Path = ROOT, session: bool = False
) -> "subprocess.CompletedProcess[str]":
    """Run a program in a process of its own, whose parent ignores some signals."""
    trap = f"trap '' {' '.join(ignored)}; " if ignored else ""
    command = ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", START + code]
    pipe = subprocess.PIPE
    return subprocess.run(
        command,
        cwd=cwd,
        stdout=pipe,
        stderr=pipe,
        text=True,
        timeout=120,
        start_new_session=session,
    )


@pytest.mark.parametrize("number", CODES)
def test_a_signal_only_sets_a_flag_that_is_raised_once(number: signal.Signals) -> None:
    done = python(f"""
interrupt.install()
print(outcome())
hit({int(number)})
print(outcome(), outcome())
""")
    assert done.stdout.split("\n") == ["goes on", f"{CODES[number]} goes on", ""], done.stderr
    assert done.returncode == 0


def test_an_interruption_is_a_keyboard_interrupt() -> None:
    done = python("""
interrupt.install()
hit(signal.SIGTERM)
try:
    interrupt.check()
except KeyboardInterrupt as error:
    print(type(error).__name__, error, error.code)
""")
    assert done.stdout.split() == ["Interrupted", "SIGTERM", "143"]


def test_only_the_main_thread_is_interrupted() -> None:
    done = python("""
interrupt.install()
hit()
thread = threading.Thread(target=lambda: print(outcome()))
thread.start()
thread.join()
print(outcome())
""")
    assert done.stdout.splitlines() == ["goes on", "130"]


def test_two_signals_together_are_one() -> None:
    done = python("""
interrupt.DEBOUNCE_SECONDS *= 4  # a busy machine may let this program wait between the two
interrupt.install()
hit(signal.SIGTERM)
print(outcome(), flush=True)
time.sleep(0.05)
hit(signal.SIGINT)
time.sleep(2 * interrupt.DEBOUNCE_SECONDS)
print("put away")
sys.exit(143)
""")
    assert done.returncode == 143
    assert done.stdout.splitlines() == ["143", "put away"]
    assert done.stderr == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_a_second_signal_ends_a_process_at_once_that_is_busy_elsewhere(as_json: bool) -> None:
    started = time.monotonic()
    done = python(f"""
import mlx.core as mx
interrupt.install(as_json={as_json})
hit(after=0.1)
hit(after=0.1 + 3 * interrupt.DEBOUNCE_SECONDS)
try:
    x = mx.full((6144, 6144), 0.5, stream=mx.cpu)
    mx.eval(mx.matmul(x, x, stream=mx.cpu))  # takes a minute, and Python hears nothing meanwhile
    time.sleep(120)
finally:
    print("not this", flush=True)
""")
    assert done.returncode == 130
    assert time.monotonic() - started < SOON
    assert done.stdout == ""
    line = done.stderr.removesuffix("\n")
    text = json.loads(line)["text"] if as_json else line.removeprefix("wanpipe: error: ")
    assert text.startswith("interrupted twice; ")
    assert "\n" not in line


def test_what_the_parent_ignores_stays_ignored() -> None:
    code = """
interrupt.install()
hit(signal.SIGINT)
hit(signal.SIGHUP)
print(outcome())
hit(signal.SIGTERM)
print(outcome())
"""
    assert python(code, "INT", "HUP").stdout.splitlines() == ["goes on", "143"]
    assert python(code).stdout.splitlines() == ["130", "goes on"]


def test_a_library_user_keeps_their_handlers(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in CODES]
    assert inside("--help", cwd=tmp_path).code == 0
    assert [signal.getsignal(number) for number in CODES] == before
    done = python("""
from wanpipe import app
from wanpipe.runtime.report import Report
try:
    with Report().task("work", 2) as task:
        task.advance()
        hit()
except KeyboardInterrupt as error:
    print(type(error).__name__)
""")
    assert done.stdout.splitlines() == ["KeyboardInterrupt"]


def test_a_signal_at_the_very_end_leaves_the_exit_code() -> None:
    code = """
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

late = Late()
"""
    assert python(f"interrupt.install()\n{code}").returncode == 0
    assert python(code).returncode == -signal.SIGTERM  # the signal does come


def test_a_wait_for_another_thread_ends_at_a_signal() -> None:
    done = python(f"""
from wanpipe.runtime.worker import Worker
interrupt.install()
release = threading.Event()
hit(after=0.2)
started = time.monotonic()
try:
    with Worker[bool]("slow") as worker:
        worker.submit(lambda: release.wait(120))
        try:
            worker.wait(0)
        finally:
            release.set()
except Interrupted as error:
    print(error.code, time.monotonic() - started < {SOON})
""")
    assert done.stdout.split() == ["130", "True"], done.stderr


def test_a_signal_is_told_before_the_failure_that_it_caused() -> None:
    done = python("""
from wanpipe.runtime.worker import Worker
interrupt.install()

def fail():
    os.kill(os.getpid(), signal.SIGINT)
    raise OSError("a child was interrupted")

try:
    with Worker[bool]("failing") as worker:
        worker.submit(fail)
        worker.wait(0)
except Interrupted as error:
    print(error.code)
""")
    assert done.stdout.split() == ["130"], done.stderr


def test_what_is_printed_after_the_terminal_was_closed_is_no_failure() -> None:
    done = python("""
import pty
child, terminal = pty.fork()
if child == 0:
    interrupt.install()
    print("ready", flush=True)
    try:
        while True:
            time.sleep(0.01)
            interrupt.check()
    except Interrupted as error:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(error.code)
assert b"ready" in os.read(terminal, 100)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert done.stdout.split() == ["129"], done.stderr


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_ctrl_c_on_a_terminal_does_not_reach_ffmpeg(name: str, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from wanpipe.media.video import read_video, write_video
interrupt.install()

def slices():
    for n in range(8):
        if n == 4:
            os.killpg(0, signal.SIGINT)
            time.sleep(0.2)
        yield np.full((4, 32, 32, 3), 30 * n, np.uint8)

thread = threading.Thread(target=write_video, args=({name!r}, slices(), 16))
thread.start()
thread.join()
print(outcome(), len(read_video({name!r})[0]))
"""
    done = python(code, cwd=tmp_path, session=True)
    assert done.stdout.split() == ["130", "32"], done.stderr


def test_a_film_under_way_on_the_main_thread_ends_and_leaves_nothing(tmp_path: Path) -> None:
    done = python(
        """
import numpy as np
from wanpipe.media.video import write_video
interrupt.install()

def slices():
    yield np.zeros((4, 32, 32, 3), np.uint8)
    os.killpg(0, signal.SIGINT)
    yield np.zeros((4, 32, 32, 3), np.uint8)

try:
    write_video("film.mp4", slices(), 16)
except Interrupted as error:
    print(error.code, os.listdir())
""",
        cwd=tmp_path,
        session=True,
    )
    assert done.stdout == "130 []\n", done.stderr


def test_ctrl_c_before_the_handlers_are_there_prints_no_traceback() -> None:
    done = python("import wanpipe.__main__\nhit()")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert python("import wanpipe.__main__\nhit()\nprint(1)", "INT").stdout == "1\n"


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_modules_are_imported_ends_with_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    for seconds in (0, 0.05, 0.1):
        ended = whole_run(tmp_path, number, seconds)
        assert ended.code == CODES[number]
        assert ended.out == ""
        events = [json.loads(line) for line in ended.err.splitlines()]
        assert events[-1]["text"].startswith("interrupted; ")


@pytest.mark.long
def test_signals_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    Campaign(tmp_path, whole_run, list(CODES)).go(10)


@pytest.mark.long
def test_signals_at_random_moments_within_one_process_lose_nothing() -> None:
    command = [sys.executable, "-m", "bench.kills", "--within", "--count", "20", "--signal", "INT"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "none lost" in done.stdout
