"""Times the start-up of the command line: whole processes, median of several runs.

    python -m bench.startup [RUNS [CHECKPOINT]]

Goals: 0.3 s for `--help`, 1.5 s for a run whose video is cached. The last rows have the demo model
with as many pieces in its tokenizer as umT5 has.
"""

import json
import random
import shutil
import statistics
import string
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wanpipe.store.index_file import TOKENS, IndexFile

DEMO = Path(__file__).parent.parent / "wanpipe" / "demo" / "checkpoints" / "t2v"
TOKENIZER = Path("google", "umt5-xxl", "tokenizer.json")
PIECES = 256_300  # of umT5
SIZE = ["--width", "64", "--height", "64", "--num-frames", "5", "--steps", "4"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and its goal in seconds."""

    name: str
    words: list[str]
    goal: float
    forget: bool = False  # the token ids of its texts, before each run


def cases(checkpoint: Path, wide: Path) -> list[Case]:
    """Return the timed commands. Only the first run computes; later ones reuse its entries."""
    video = ["--prompt", "a red ball", "--output", "video.mp4", *SIZE]
    run = ["run", "--checkpoint-dir", str(checkpoint), *video]
    other = ["run", "--checkpoint-dir", str(wide), *video]
    return [
        Case(name="wanpipe --help", words=["--help"], goal=0.3),
        Case(name="wanpipe run --help", words=["run", "--help"], goal=0.3),
        Case(name="wanpipe run, everything cached", words=run, goal=1.5),
        Case(name="wanpipe run --dry-run", words=[*run, "--dry-run"], goal=1.5),
        Case(name="wanpipe show video.mp4", words=["show", "video.mp4"], goal=1.5),
        Case(name=f"wanpipe run, everything cached, {PIECES:,} pieces", words=other, goal=1.5),
        Case(name="the same, token ids forgotten", words=other, goal=2.5, forget=True),
    ]


def widen(folder: Path) -> Path:
    """Copy the demo's checkpoint, with random words in its tokenizer that no prompt has."""
    shutil.copytree(DEMO, folder)
    table = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    generator, pieces = random.Random(0), table["model"]["vocab"]
    while len(pieces) < PIECES:
        letters = generator.choices(string.ascii_lowercase, k=12)
        pieces.append(["\u2581" + "".join(letters), -generator.uniform(8, 16)])
    (folder / TOKENIZER).write_text(json.dumps(table, indent=1), encoding="utf-8")
    return folder


def seconds(case: Case, folder: Path) -> float:
    """Run a command and return its wall time."""
    if case.forget:
        index_file = IndexFile(folder / "cache")
        index_file.drop(TOKENS, index_file.all(TOKENS))
    started = time.perf_counter()
    command = [sys.executable, "-m", "wanpipe", *case.words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the median and the slowest time of each command, and its goal."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else DEMO
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| command | median, s | slowest, s | goal, s | |")
        print("|---|---|---|---|---|")
        for case in cases(checkpoint.resolve(), widen(folder / "wide")):
            seconds(case, folder)  # makes the video and fills the page cache
            times = [seconds(case, folder) for _ in range(runs)]
            median = statistics.median(times)
            verdict = "met" if median <= case.goal else "missed"
            row = (case.name, f"{median:.2f}", f"{max(times):.2f}", f"{case.goal:g}", verdict)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
