"""Ends runs of all five stages at random moments, many times, and checks that nothing is lost.

    python -m bench.kills [--count N] [--signal KILL|INT|TERM|HUP]... [--within]

Several signals take turns at random. The tests do a few of these (tests/test_kills.py,
tests/test_interrupts.py). `--within` takes all runs in one process, which is faster; a process that
is killed is always one of its own.
"""

import argparse
import signal
import tempfile
import time
from pathlib import Path

from tests.soak import Campaign, inner_run, whole_run
from tests.test_kills import killed_run


def main() -> None:
    """End runs, check, and tell how much was done meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--signal", choices=("KILL", "INT", "TERM", "HUP"), action="append")
    parser.add_argument("--within", action="store_true")
    parser.add_argument("--seed", type=int, default=11)
    asked = parser.parse_args()
    numbers = [signal.Signals[f"SIG{name}"] for name in asked.signal or ("KILL",)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = inner_run if asked.within else whole_run
        run = killed_run if signal.SIGKILL in numbers else run
        tally = Campaign(Path(folder), run, numbers, asked.seed).go(asked.count)
    took, names = time.monotonic() - started, " or ".join(one.name for one in numbers)
    print(
        f"{tally.ended} times {names} in {took:.0f} s: {tally.made} entries made, "
        f"{tally.finished} runs finished first, none lost"
    )


if __name__ == "__main__":
    main()
