"""Starts commands on several devices, processes with MLX's ring, and watches how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.commands import wanpipe
from tests.conftest import relative_error
from tests.processes import alive
from tests.workshop import PROMPT, SMALL, Place
from wanpipe.backend.group import free_ports
from wanpipe.store import Entry

SOON = 30.0  # seconds in which the end of a rank must be told
LONG = 300  # steps that take longer than what interrupts them


def run_of(place: Place, *more: object) -> list[object]:
    """The command that makes the small film."""
    chosen = ("--model", place.model, "--prompt", PROMPT, *SMALL, *more)
    return ["run", "--output", "film.mp4", *chosen]


def last_step(events: Sequence[dict[str, Any]]) -> str:
    """The path of the last step that a command has made or found."""
    steps = [event for event in events if event.get("stage") == "denoise" and "path" in event]
    return str(steps[-1]["path"])


def together(place: Place, devices: int, *more: object) -> list[Entry]:
    """The steps of the small film, made by several processes."""
    result = wanpipe(*run_of(place, "--devices", devices, *more), cwd=place.root)
    assert result.code == 0, result.stderr
    return place.chain(last_step(result.events))


def alone(place: Place, *more: object) -> list[Entry]:
    """The steps of the small film, made by this process."""
    return place.chain(last_step(place.film(*more).events))


def same(ours: Sequence[Entry], theirs: Sequence[Entry]) -> bool:
    """Whether two runs have the same keys and the same bytes in every array."""
    one, other = ([(step.key, step.record.digest) for step in steps] for steps in (ours, theirs))
    return one == other


def close(ours: Sequence[Entry], theirs: Sequence[Entry]) -> bool:
    """Whether two runs have the same keys, and latents that differ by no more than rounding."""
    assert [step.key for step in ours] == [step.key for step in theirs]
    pairs = zip(ours, theirs, strict=True)
    errors = [relative_error(one.read("latent"), other.read("latent")) for one, other in pairs]
    assert max(errors) <= 1e-6, errors
    return True


def begin(place: Place, *arguments: object, first: str = "") -> "subprocess.Popen[str]":
    """Start a command; `first` is Python that runs before it."""
    code = f"{first}\nfrom wanpipe.__main__ import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments), "--events", "json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=place.root, stdout=pipe, stderr=pipe, text=True)


def after_steps(process: "subprocess.Popen[str]", count: int) -> None:
    """Wait until a command has published so many steps."""
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        count -= event.get("event") == "computed" and event["stage"] == "denoise"
        if not count:
            return
    raise AssertionError(f"it ended with {process.wait()}")


def environment(number: int) -> list[str]:
    """The environment that a process was started with."""
    return Path(f"/proc/{number}/environ").read_bytes().decode(errors="replace").split("\0")


def all_end(numbers: Sequence[int]) -> bool:
    """Whether all of these processes end soon."""
    deadline = time.monotonic() + SOON
    while any(map(alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def told(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """How a command ends, soon: its exit code, and its last line."""
    started = time.monotonic()
    _, err = process.communicate(timeout=2 * SOON)
    assert time.monotonic() - started < SOON
    lines = [line for line in err.splitlines() if line.startswith("{")]
    last = json.loads(lines[-1])
    assert last["event"] == "error", last
    return process.returncode, last["text"]


@contextmanager
def mlx_launch(place: Place, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """The real mlx.launch with two ranks, in a process group of their own as on a terminal."""
    code = "from mlx._distributed_utils.launch import main; main()"
    port = str(free_ports(1)[0])
    program = [sys.executable, "-c", code, "-n", "2", "-p", port, "--backend", "ring", "--"]
    words = [sys.executable, "-m", "wanpipe", *map(str, arguments), "--events", "json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*program, *words],
        cwd=place.root,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def launched(
    place: Place, *arguments: object, first: Sequence[str] = ("", "")
) -> "Iterator[list[subprocess.Popen[str]]]":
    """The ranks of a group with the environment that mlx.launch gives to each.

    `first` is Python that each rank runs before the command.
    """
    hosts = place.root / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(len(first))]))
    words = [*map(str, arguments), "--events", "json"]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}\nfrom wanpipe.__main__ import main; main()", *words],
            cwd=place.root,
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank, code in enumerate(first)
    ]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()
