"""A run that was cut, killed or damaged goes on from its last sound step, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.workshop import SMALL, Place
from wanpipe.store import Entry
from wanpipe.store.entry import read_entry

SOLVERS = ("unipc", "dpm++", "euler", "lcm")
GRIDS = {
    "steps": ("--steps", 5),
    "timesteps": ("--steps", 4, "--timesteps", "1000,750.5,500,250"),
}
LONG = ("--width", 32, "--height", 32, "--num-frames", 5, "--steps", 60)


def same(ours: list[Entry], theirs: list[Entry]) -> bool:
    """Whether two chains have the same keys and the same bytes in every array."""
    digests = [[(step.key, step.record.digest) for step in chain] for chain in (ours, theirs)]
    return digests[0] == digests[1]


def cut_everywhere(place: Place, text: Path, *options: object) -> Path:
    """Denoise one step a command: each goes on from what the one before left on the disk."""
    step = place.made("denoise", "--from", text, *options, "--stop-at", 1)
    while place.entry(step).step + 1 < place.run(step).settings.steps:
        step = place.made("denoise", "--from", step, "--stop-at", place.entry(step).step + 2)
    return step


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_cut_at_every_step_is_the_straight_one(
    solver: str, grid: str, place: Place, tmp_path: Path
) -> None:
    options = (*SMALL, *GRIDS[grid], "--scheduler", solver)
    text = place.text()
    shutil.copytree(place.cache, tmp_path / "other" / "cache")
    other = Place(tmp_path / "other", place.model)
    straight = place.chain(place.made("denoise", "--from", text, *options))
    cut = other.chain(cut_everywhere(other, other.text(), *options))
    assert same(cut, straight)


def test_a_step_alone_finishes_its_run(place: Place) -> None:
    options = ("--guide-scale", 4, "--shift", 3, "--scheduler", "dpm++", "--seed", 5)
    text = place.text()
    early = place.made("denoise", "--from", text, *SMALL, *options, "--stop-at", 2, "--name", "cat")
    finished = place.do("denoise", "--from", "cat")
    assert [event["step"] for event in finished.computed()] == [2, 3]
    chain = place.chain(finished.paths[-1])
    assert chain[1].key == early.name
    whole = place.do("denoise", "--from", text, *SMALL, *options)
    assert not whole.computed()
    assert whole.paths == [str(chain[-1].path.relative_to(place.root))]


@pytest.mark.parametrize("change", ["guidance", "prompt"])
def test_a_branch_shares_the_steps_before_it(change: str, place: Place) -> None:
    straight = place.chain(place.made("denoise", "--from", place.text(), *SMALL))
    dog = place.text("a dog")
    changes = {"guidance": ("--guide-scale", 2), "prompt": ("--from", dog)}
    branch = place.do("denoise", "--from", straight[1].key, *changes[change])
    assert [event["step"] for event in branch.computed()] == [2, 3]
    steps = place.chain(branch.paths[-1])
    assert [step.key for step in steps[:2]] == [step.key for step in straight[:2]]
    assert not np.array_equal(steps[-1].read("latent"), straight[-1].read("latent"))


def test_a_later_stop_computes_only_the_steps_between(place: Place) -> None:
    text = place.text()
    place.do("denoise", "--from", text, *SMALL, "--stop-at", 1)
    more = place.do("denoise", "--from", text, *SMALL, "--stop-at", 3)
    assert [event["step"] for event in more.computed()] == [1, 2]
    assert not place.do("denoise", "--from", text, *SMALL, "--stop-at", 2).computed()


def start(place: Place, *arguments: object) -> "subprocess.Popen[str]":
    """Start a command as a process of its own, with its events in a pipe."""
    words = [sys.executable, "-m", "wanpipe", *map(str, arguments), "--events", "json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=place.root, stdout=pipe, stderr=pipe, text=True)


def after(process: "subprocess.Popen[str]", steps: int, seconds: float) -> list[str]:
    """Wait until the process has taken `steps` steps, then `seconds` more; what it said so far."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        event = json.loads(line)
        steps -= event["event"] == "computed" and event["stage"] == "denoise"
        if steps <= 0:
            break
    time.sleep(seconds)
    return said


def published(place: Place, first: int = 0) -> list[Entry]:
    """Every step from the `first` on that can be seen, whole, in order."""
    seen = [read_entry(path) for path in place.cache.glob("denoise/*")]
    steps = sorted(seen, key=lambda step: step.step)[first:]
    for step in steps:
        step.verify()
    return steps


@pytest.mark.long
def test_twenty_kills_lose_no_finished_step_and_change_no_bit(place: Place, tmp_path: Path) -> None:
    text = place.text()
    shutil.copytree(place.cache, tmp_path / "other" / "cache")
    straight = place.chain(place.made("denoise", "--from", text, *LONG))
    other = Place(tmp_path / "other", place.model)
    moments, finished = random.Random(7), 0
    for _ in range(20):
        process = start(other, "denoise", "--from", text.name, *LONG)
        after(process, moments.randrange(1, 3), moments.uniform(0, 0.03))
        process.kill()
        process.communicate()
        steps = published(other, finished)
        assert steps
        assert same(steps, straight[finished:][: len(steps)])
        finished += len(steps)
    assert finished < len(straight), "killed after the end"
    last = other.do("denoise", "--from", text.name, *LONG)
    assert [event["step"] for event in last.computed()] == list(range(finished, len(straight)))
    assert same(other.chain(last.paths[-1]), straight)
    assert not list((other.cache / ".tmp").iterdir())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_keeps_computed_steps_and_leaves_no_draft(
    number: int, code: int, times: int, place: Place
) -> None:
    text = place.text()
    process = start(place, "denoise", "--from", text, *LONG)
    said = after(process, 2, 0.01)
    for _ in range(times):  # two at once are one wish
        process.send_signal(number)
    assert process.stdout is not None and process.stderr is not None
    said += process.stderr.readlines()  # not `communicate`, which misses what `after` buffered
    assert process.wait() == code
    assert not process.stdout.read()
    events = [json.loads(line) for line in said]
    computed = [event["done"] for event in events if event["event"] == "progress"]
    steps = published(place)
    assert 2 <= max(computed) <= len(steps) < 60
    assert not list((place.cache / ".tmp").iterdir())
    assert events[-1]["event"] == "error"
    assert events[-1]["text"].startswith("interrupted; ")
    again = place.do("denoise", "--from", text, *LONG, "--stop-at", len(steps) + 1)
    assert [event["step"] for event in again.computed()] == [len(steps)]


def flip(path: Path, position: int = -7) -> None:
    """Change one byte of a read-only file in place."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def chunks(entry: Path, array: str) -> list[Path]:
    """The files that hold the numbers of an array, in order."""
    found = sorted((entry / array).rglob("*"))
    return [path for path in found if path.is_file() and path.name != "zarr.json"]


def damage(place: Place, what: str) -> None:
    """Flip a byte of, or remove, one file of an entry of the finished film."""
    steps = [place.entry(path) for path in place.cache.glob("denoise/*")]
    last = max(steps, key=lambda step: step.step).path
    text, frames = (next(place.cache.glob(f"{stage}/*")) for stage in ("encode-text", "decode"))
    match what:
        case "chunk of the text":
            flip(chunks(text, "prompt")[0])
        case "chunk of the last step":
            flip(chunks(last, "latent")[0])
        case "missing chunk of the last step":
            chunks(last, "latent")[0].unlink()
        case "metadata of the last step":
            flip(last / "zarr.json", 300)
        case "chunk of the frames":
            flip(chunks(frames, "frames")[1])
        case "missing chunk of the frames":
            chunks(frames, "frames")[0].unlink()


@pytest.mark.parametrize(
    "what",
    [
        "chunk of the text",
        "chunk of the last step",
        "missing chunk of the last step",
        "metadata of the last step",
        "chunk of the frames",
        "missing chunk of the frames",
    ],
)
def test_a_damaged_entry_is_quarantined_and_made_again(what: str, studio: Place) -> None:
    before = studio.frames(studio.film())
    damage(studio, what)
    again = studio.film()
    assert np.array_equal(studio.frames(again), before)
    assert len(again.computed()) == 1
    assert [event["stage"] for event in again.events if event["event"] == "damaged"] == [
        again.computed()[0]["stage"]
    ]
    assert len(list((studio.cache / ".damaged").iterdir())) == 1
    assert not studio.film().computed()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "t5_encoder.safetensors", "config.json"])
def test_a_damaged_model_in_the_cache_is_converted_again(
    file: str, checkpoints: Path, place: Place
) -> None:
    words = ("--checkpoint-dir", checkpoints / "wan21-t2v", "--dtype", "float32", *SMALL)
    first = place.do("run", *words, "--prompt", "x", "--output", "film.mp4")
    before = place.frames(first)
    flip(next(place.cache.glob("convert/*")) / file)
    for stage in ("encode-text", "denoise", "decode"):
        shutil.rmtree(place.cache / stage)
    again = place.do("run", *words, "--prompt", "x", "--output", "film.mp4")
    assert len(again.computed("convert")) == 1
    assert np.array_equal(place.frames(again), before)
