"""Times `wanpipe convert` on a full-size checkpoint, compared with a plain copy of its files.

    python -m bench.convert [--directory DIR] [--preset 1.3b] [--checkpoint DIR]

The checkpoint is random (bench/make_checkpoint.py). Copy and conversion alternate, each after a
sync; the page cache is not dropped. All files are deleted at the end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import make_checkpoint

GOAL_TIME, GOAL_MEMORY = 2.5, 3.0  # multiples of the copy's time; GB


@dataclass(frozen=True)
class Cost:
    """Wall seconds, processor seconds and peak bytes of a command."""

    wall: float
    cpu: float
    memory: int

    def line(self, what: str, size: int) -> str:
        """Return a row of the table; `size` is the bytes that the command read."""
        return (
            f"| {what} | {self.wall:.1f} | {self.cpu:.1f} | {size / self.wall / 1e9:.2f} | "
            f"{self.memory / 1e9:.2f} |"
        )


def measure(*command: str | Path) -> Cost:
    """Run a command. Raises CalledProcessError if it fails."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def total_size(directory: Path) -> int:
    """Return the bytes of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def compare(checkpoint: Path, directory: Path, rounds: int) -> None:
    """Copy and convert alternately, and print the table."""
    size, ratios, peak = total_size(checkpoint), [], 0
    print(f"{size / 1e9:.2f} GB in {checkpoint.name}\n")
    print("| work | wall, s | processor, s | read, GB/s | peak memory, GB |")
    print("|---|---|---|---|---|")
    for index in range(rounds):
        copy, model = directory / "copy", directory / "model"
        plain = measure("cp", "-r", checkpoint, copy)
        shutil.rmtree(copy)
        convert = (sys.executable, "-m", "wanpipe", "convert", "--quiet")
        places = ("--cache", directory / f"cache-{index}", "--output-dir", model)
        ours = measure(*convert, "--checkpoint-dir", checkpoint, *places)
        written = total_size(model)
        shutil.rmtree(model)
        print(plain.line("`cp -r`", size))
        print(ours.line(f"`convert`, {written / 1e9:.2f} GB written", size), flush=True)
        ratios.append(ours.wall / plain.wall)
        peak = max(peak, ours.memory)
    ratio = sorted(ratios)[len(ratios) // 2]
    print(f"\nconvert / cp: {ratio:.2f} (goal {GOAL_TIME}), peak {peak / 1e9:.2f} GB ", end="")
    print(f"(goal {GOAL_MEMORY})")


def main() -> None:
    """Parse the options, make the checkpoint and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--directory", type=Path, help="Directory for all files; default: a temporary one."
    )
    parser.add_argument("--preset", choices=make_checkpoint.PRESETS, default="1.3b", help="Size.")
    parser.add_argument(
        "--checkpoint", type=Path, help="An existing checkpoint to use; it is kept."
    )
    parser.add_argument("--rounds", type=int, default=1, help="Copies and conversions.")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wanpipe-bench-", dir=chosen.directory) as name:
        directory = Path(name)
        checkpoint = chosen.checkpoint or directory / "checkpoint"
        if chosen.checkpoint is None:
            make_checkpoint.make(chosen.preset, checkpoint)
        compare(checkpoint, directory, chosen.rounds)


if __name__ == "__main__":
    main()
