"""Kills runs of all five stages at random moments, many times, and checks that nothing is lost.

    python -m bench.kills [KILLS]

The tests do a few of these (tests/test_kills.py); this is the same with two hundred.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.test_kills import campaign


def main() -> None:
    """Kill, check, and tell how much was done meanwhile."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        finished, made = campaign(Path(folder), kills)
    took = time.monotonic() - started
    print(
        f"{kills} kills in {took:.0f} s: {made} entries made, {finished} runs finished, none lost"
    )


if __name__ == "__main__":
    main()
