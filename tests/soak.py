"""Ends films in the making at random moments, by signals, and checks that nothing is lost or wrong.

Whole processes, or many runs within one, which is faster. bench/kills.py is its command line.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from wanpipe.cache.verify import verify_entry
from wanpipe.demo import T2V
from wanpipe.store import Store
from wanpipe.store.entry import read_entry
from wanpipe.store.keys import hash_file, is_key

STAGES = ("convert", "encode-text", "denoise", "decode")
FILMS = ("film-1.mp4", "film-2.mp4")
SIZE = ("--width", "32", "--height", "32", "--num-frames", "5", "--steps", "6")
SEEDS = ("--seed", "1", "--seed", "2")
PROMPT = "a red circle"
WORDS = ("run", "--checkpoint-dir", str(T2V), "--prompt", PROMPT, *SIZE, *SEEDS)
RUN = (*WORDS, "--output", "film.mp4", "--events", "json")
HANG = 60.0  # seconds that a run may take after a signal


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, stdout, stderr; `code` is None where it hung."""

    code: int | None
    out: str
    err: str

    def reported(self) -> list[str]:
        """The entries, as places in the cache, of which the run says that it computed them."""
        events = [json.loads(line) for line in self.err.splitlines()]
        paths = [Path(event["path"]) for event in events if event["event"] == "computed"]
        return [f"{path.parent.name}/{path.name}" for path in paths]


def entries(cache: Path) -> dict[str, dict[str, str]]:
    """Hash every file of every entry of a cache, but for its record; each is checked first."""
    found = {}
    for stage in STAGES:
        for path in filter(lambda path: is_key(path.name), cache.glob(f"{stage}/*")):
            verify_entry(read_entry(path))
            files = {str(file.relative_to(path)): file for file in path.rglob("*")}
            files.pop("zarr.json")
            whole = {name: hash_file(file) for name, file in files.items() if file.is_file()}
            found[f"{stage}/{path.name}"] = whole
    return found


def is_draft(path: Path) -> bool:
    """Whether a path in .tmp is no conversion, which the next run goes on with."""
    return not path.name.startswith("convert-")


def leftovers(place: Path) -> list[str]:
    """What an ended run must not leave: drafts, but for conversions that go on, parts of films, and
    temporary files.
    """
    drafts = [path for path in place.glob("cache/.tmp/*") if is_draft(path)]
    parts = [*place.glob("cache/.tmp/convert-*/*.part"), *place.glob(".wanpipe-*")]
    found = [*drafts, *parts, *place.glob("tmp/*"), *place.glob("cache/.damaged")]
    return [str(path.relative_to(place)) for path in found]


def hears(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has put its own handler of SIGTERM in place, which Python has not."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def whole_run(place: Path, number: int | None, seconds: float) -> Ended:
    """Run in a process of its own, and give its group, as a terminal does, a signal so many seconds
    after it can hear one.
    """
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "wanpipe", *RUN]
    with (place / "out").open("w+b") as out, (place / "err").open("w+b") as err:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        try:
            if number is not None:
                if Path("/proc").is_dir():
                    while process.poll() is None and not hears(process):
                        time.sleep(0.002)
                else:
                    time.sleep(0.5)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            code: int | None = process.wait(HANG)
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGABRT)  # faulthandler prints all stacks
        finally:
            process.wait()
    return Ended(code, (place / "out").read_text("utf-8"), (place / "err").read_text("utf-8"))


def inner_run(place: Path, number: int | None, seconds: float) -> Ended:
    """Run within this process, as its command line would; a hang ends the process with stacks."""
    from wanpipe import app
    from wanpipe.runtime import interrupt

    (place / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(place / "tmp")
    out, err, code = io.StringIO(), io.StringIO(), 0
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    faulthandler.dump_traceback_later(HANG + seconds, exit=True)
    interrupt.install(as_json=True)
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            if number is not None:
                timer.start()
            app.main(list(RUN))
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            timer.cancel()
            if number is not None:
                timer.join()
            interrupt.install()  # a signal that came too late is for nobody
    faulthandler.cancel_dump_traceback_later()
    return Ended(code, out.getvalue(), err.getvalue())


Run = Callable[[Path, int | None, float], Ended]


@dataclass
class Tally:
    """What a campaign did: runs that were ended, of them those that were finished before it, and
    entries that were made.
    """

    ended: int = 0
    finished: int = 0
    made: int = 0


class Campaign:
    """Ends runs by one signal, each at a random moment, until so many were ended, and until under
    them as many entries were made as the films have, however slow the machine.

    `run` is given the folder, one of `signals` or None, and the seconds until it. After SIGKILL
    drafts stay until the next run.
    """

    def __init__(
        self, folder: Path, run: Run, signals: Sequence[signal.Signals], seed: int = 11
    ) -> None:
        self.run, self.signals, self.generator = run, signals, random.Random(seed)
        self.straight, self.place = folder / "straight", folder / "ended"
        self.straight.mkdir()
        self.place.mkdir()
        started = time.monotonic()
        self.finish(self.straight)
        self.longest = time.monotonic() - started  # seconds until a signal
        self.right = entries(self.straight / "cache")
        self.seen: dict[str, dict[str, str]] = {}
        self.tally = Tally()

    def go(self, count: int) -> Tally:
        """End so many runs, then make the films; what was done."""
        while self.tally.ended < count or self.tally.made < len(self.right):
            self.one()
        self.finish(self.place)
        assert entries(self.place / "cache") == self.right
        for film in FILMS:
            assert (self.place / film).read_bytes() == (self.straight / film).read_bytes()
        Store(self.place / "cache").scratch.remove_stale()
        assert not [path for path in self.place.glob("cache/.tmp/*") if is_draft(path)]
        return self.tally

    def finish(self, place: Path) -> None:
        """Let a run come to its end."""
        ended = self.run(place, None, 0)
        assert ended.code == 0, ended.err

    def one(self) -> None:
        """End one run and check what it left."""
        number = self.generator.choice(self.signals)
        ended = self.run(self.place, number, self.generator.uniform(0, self.longest))
        there = entries(self.place / "cache")
        assert set(self.seen) <= set(there), "an entry was lost"
        assert all(self.right[name] == digests for name, digests in there.items())
        if number != signal.SIGKILL:
            self.listen(ended, 128 + number, there)
        fresh = len(set(there) - set(self.seen))
        self.tally.ended += 1
        self.tally.made += fresh
        self.seen = there
        if ended.code == 0:
            self.tally.finished += 1
            self.longest *= 0.9
            self.forget()
        elif not fresh:  # a busy machine gets no further in this time
            self.longest *= 1.1

    def listen(self, ended: Ended, code: int, there: Collection[str]) -> None:
        """Check what a run that heard the signal says, and that it put its things away."""
        assert ended.code is not None, f"the run hung:\n{ended.err}"
        assert ended.code in (0, code), (ended.code, ended.err)
        assert set(ended.reported()) <= set(there), "an entry that was reported is not there"
        assert leftovers(self.place) == []
        if ended.code == 0:
            assert ended.out.split() == list(FILMS)
        else:
            assert ended.out == ""
            last = json.loads(ended.err.splitlines()[-1])
            assert last["event"] == "error"
            assert last["text"].startswith("interrupted; ")

    def forget(self) -> None:
        """Remove the films and part of what was finished, so that every stage is hit."""
        gone = self.generator.choice((*STAGES, ""))
        shutil.rmtree(self.place / "cache" / gone)
        for film in FILMS:
            (self.place / film).unlink()
        self.seen = entries(self.place / "cache")
