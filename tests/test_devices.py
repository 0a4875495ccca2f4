"""One video on several devices: processes with MLX's ring on this host, against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.commands import wanpipe
from tests.conftest import relative_error
from tests.workshop import PROMPT, SMALL, Models, Place
from wanpipe.backend.device import is_gpu
from wanpipe.backend.group import free_ports
from wanpipe.denoising.orders import differences
from wanpipe.store import Entry

pytestmark = pytest.mark.skipif(is_gpu(), reason="several processes on one GPU are no test of it")
# OpenBLAS rounds otherwise where a device has a few tokens, which guidance makes larger
EVEN = ("--width", 128, "--height", 96, "--num-frames", 9)
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


def begin(place: Place, *arguments: object) -> "subprocess.Popen[str]":
    """Start a command."""
    words = [sys.executable, "-m", "wanpipe", *map(str, arguments), "--events", "json"]
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


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
def launched(
    place: Place, *arguments: object, ranks: int, first: str = ""
) -> "Iterator[list[subprocess.Popen[str]]]":
    """The ranks of a group with the environment that mlx.launch gives to each."""
    hosts = place.root / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
    code = f"{first}from wanpipe.__main__ import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments), "--events", "json"]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            words,
            cwd=place.root,
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


@pytest.fixture
def another(place: Place, tmp_path: Path) -> Place:
    """A second folder with the same model."""
    root = tmp_path / "another"
    root.mkdir()
    return Place(root, place.model)


@pytest.mark.parametrize("family", ["wan21-t2v", "wan22-t2v-a14b", "wan21-vace"])
def test_two_devices_make_the_steps_of_one(family: str, models: Models, tmp_path: Path) -> None:
    places = [Place(tmp_path / name, models(family)) for name in ("one", "two")]
    for place in places:
        place.root.mkdir()
    ours, theirs = together(places[1], 2), alone(places[0])
    assert same(ours, theirs)
    assert [step.made.devices for step in (ours[-1], theirs[-1])] == [2, 1]


@pytest.mark.parametrize(
    ("devices", "family", "options"),
    [
        (3, "wan21-t2v", EVEN),
        (
            3,
            "wan21-t2v",
            ("--guide-scale", 2),
        ),  # 8 tokens: the last device has two, and one of zeros
        (2, "wan21-t2v", ("--guide-scale", 1)),
        (3, "wan22-t2v-a14b", EVEN),
        (2, "wan22-ti2v-5b", ("--guide-scale", 1)),
        (3, "wan22-ti2v-5b", ("--image", "image.png", "--fit", "cover", "--guide-scale", 2)),
        (3, "wan21-vace", EVEN),
    ],
)
def test_devices_that_share_tokens_make_the_same_steps(
    devices: int, family: str, options: tuple[object, ...], models: Models, tmp_path: Path
) -> None:
    places = [Place(tmp_path / name, models(family)) for name in ("one", "several")]
    for place in places:
        place.root.mkdir()
        Image.new("RGB", (40, 24), (200, 80, 20)).save(place.root / "image.png")
    ours, theirs = together(places[1], devices, *options), alone(places[0], *options)
    assert [step.key for step in ours] == [step.key for step in theirs]
    for one, other in zip(ours, theirs, strict=True):
        error = relative_error(one.read("latent"), other.read("latent"))
        assert error <= 1e-6, (one.step, error)


def test_a_run_goes_on_with_another_number_of_devices(place: Place, another: Place) -> None:
    whole = alone(another)
    text = place.text()
    for stop, devices in ((1, 1), (3, 2), (4, 1)):
        chosen = ("--from", text, *SMALL, "--stop-at", stop, "--devices", devices)
        result = wanpipe("denoise", "--model", place.model, *chosen, cwd=place.root)
        assert result.code == 0, result.stderr
    steps = place.chain(result.paths[-1])
    assert same(steps, whole)
    assert [step.made.devices for step in steps] == [1, 2, 2, 1]


def test_every_rank_of_mlx_launch_runs_the_same_command(place: Place, another: Place) -> None:
    with launched(place, *run_of(place), ranks=2) as ranks:
        out, err = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 0, err
        assert out == "film.mp4\n"
        assert ranks[1].communicate(timeout=60) == ("", "")
        assert ranks[1].returncode == 0
    events = [json.loads(line) for line in err.splitlines()]
    assert same(place.chain(last_step(events)), alone(another))


def test_the_end_of_another_rank_is_told_and_the_same_command_goes_on(
    place: Place, another: Place
) -> None:
    long = run_of(place, "--steps", 40, "--devices", 2)
    process = begin(place, *long)
    after_steps(process, 2)
    (other,) = children(process)
    os.kill(other, signal.SIGKILL)
    code, text = told(process)
    assert code == 1
    assert text == (
        "device 2 of 2 is lost: it ended; finished steps are kept, run the same command again"
    )
    kept = len(list((place.cache / "denoise").iterdir()))
    assert kept >= 2
    result = wanpipe(*long, cwd=place.root)
    assert result.code == 0, result.stderr
    assert len(result.computed("denoise")) == 40 - kept
    assert same(place.chain(last_step(result.events)), alone(another, "--steps", 40))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_ranks_end_with_the_first(number: signal.Signals, place: Place) -> None:
    process = begin(place, *run_of(place, "--steps", LONG, "--devices", 2))
    after_steps(process, 2)
    others = children(process)
    assert len(others) == 1
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate(timeout=SOON)
    else:
        code, text = told(process)
        assert code == 128 + number
        assert text.startswith("interrupted; ")
    assert all_end(others)


def test_a_rank_that_does_not_come_is_named(place: Place) -> None:
    hurry = "from wanpipe.runtime import link; link.START_SECONDS = 1.5; "
    with launched(place, *run_of(place), ranks=2, first=hurry) as ranks:
        ranks[1].kill()
        code, text = told(ranks[0])
    assert code == 1
    assert text == "all ranks must start within 1.5 s, rank 1 did not; start them together"


def test_a_rank_that_cannot_start_is_told(place: Place) -> None:
    broken = "import sys; sys.exit('no such device')"
    code = f"""
import sys
from wanpipe.denoising import team
sys.executable = {str(place.root / "python")!r}
team.start(2)
"""
    script = place.root / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{broken}"\n')
    script.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].endswith(
        "DeviceError: rank 1 ended as it started: no such device; check its device"
    )


def test_ranks_with_another_model_or_version_are_refused(place: Place, models: Models) -> None:
    mine = {"wanpipe": "1", "mlx": "0.32.4", "kind": "CPU", "host": "a"}
    assert differences(mine, {**mine, "host": "b"}) == ""
    other = {**mine, "mlx": "0.31.0", "wanpipe": "2"}
    assert differences(mine, other) == "wanpipe 2 and rank 0 1, MLX 0.31.0 and rank 0 0.32.4"
