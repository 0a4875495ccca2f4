"""Times what a user waits for before any work is done: whole processes, with the median of several.

    python bench/startup.py [RUNS [CHECKPOINT]]

`--help` has a goal of 0.3 s, a run that finds its film made a goal of 1.5 s.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parent.parent / "wanpipe" / "demo" / "checkpoints" / "t2v"
SIZE = ["--width", "64", "--height", "64", "--num-frames", "5", "--steps", "4"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and the seconds that it should take at most."""

    name: str
    words: list[str]
    goal: float


def cases(checkpoint: Path) -> list[Case]:
    """What is timed; a run is the same each time, so that only the first one computes."""
    film = ["--prompt", "a red ball", "--output", "film.mp4", *SIZE]
    run = ["run", "--checkpoint-dir", str(checkpoint), *film]
    return [
        Case(name="wanpipe --help", words=["--help"], goal=0.3),
        Case(name="wanpipe run --help", words=["run", "--help"], goal=0.3),
        Case(name="wanpipe run, all there", words=run, goal=1.5),
        Case(name="wanpipe run --dry-run", words=[*run, "--dry-run"], goal=1.5),
        Case(name="wanpipe show film.mp4", words=["show", "film.mp4"], goal=1.5),
    ]


def seconds(words: list[str], folder: Path) -> float:
    """How long a process takes, from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "wanpipe", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print a table: median and slowest of the runs, and the goal."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else DEMO
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| command | median, s | slowest, s | goal, s | |")
        print("|---|---|---|---|---|")
        for case in cases(checkpoint.resolve()):
            seconds(case.words, folder)  # makes the film, and warms the disk's cache
            times = [seconds(case.words, folder) for _ in range(runs)]
            median = statistics.median(times)
            verdict = "met" if median <= case.goal else "missed"
            row = (case.name, f"{median:.2f}", f"{max(times):.2f}", f"{case.goal:g}", verdict)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
