"""Times the start-up of the command line: whole processes, median of several runs.

    python -m bench.startup [RUNS [CHECKPOINT]]

Goals: 0.3 s for `--help`, 1.5 s for a run whose video is cached.
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
    """A command and its goal in seconds."""

    name: str
    words: list[str]
    goal: float


def cases(checkpoint: Path) -> list[Case]:
    """Return the timed commands. Only the first run computes; later ones reuse its entries."""
    video = ["--prompt", "a red ball", "--output", "video.mp4", *SIZE]
    run = ["run", "--checkpoint-dir", str(checkpoint), *video]
    return [
        Case(name="wanpipe --help", words=["--help"], goal=0.3),
        Case(name="wanpipe run --help", words=["run", "--help"], goal=0.3),
        Case(name="wanpipe run, everything cached", words=run, goal=1.5),
        Case(name="wanpipe run --dry-run", words=[*run, "--dry-run"], goal=1.5),
        Case(name="wanpipe show video.mp4", words=["show", "video.mp4"], goal=1.5),
    ]


def seconds(words: list[str], folder: Path) -> float:
    """Run a command and return its wall time."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "wanpipe", *words]
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
        for case in cases(checkpoint.resolve()):
            seconds(case.words, folder)  # makes the video and fills the page cache
            times = [seconds(case.words, folder) for _ in range(runs)]
            median = statistics.median(times)
            verdict = "met" if median <= case.goal else "missed"
            row = (case.name, f"{median:.2f}", f"{max(times):.2f}", f"{case.goal:g}", verdict)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
