"""Pushes to a server over a connection that fails, and kills pushes, at random.

    python -m bench.remote_faults [--server seaweedfs] [--faults 200] [--kills 50] [--seed 1]

After each push, every entry that the remote shows must be whole. In the end one push sends the
rest, and another cache must get the same bytes. The tests do the same a few times
(tests/cache/remote/test_faults.py). `bench.remote_servers` says which servers there are.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench.remote_servers import SERVERS, started
from tests.cache.remote.faults import faulty_pushes, killed_pushes

ROUND = 20


def main() -> None:
    """Push, and print how many faults and kills left nothing partial."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=SERVERS, default="moto")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name, work in (("faults", faulty_pushes), ("kills", killed_pushes)):
        begun = time.monotonic()
        count, wanted = 0, getattr(args, name)
        with started(args.server) as server:
            while count < wanted:  # in rounds: each checks everything that it has pushed so far
                with tempfile.TemporaryDirectory() as folder:
                    some = min(ROUND, wanted - count)
                    count += work(server, Path(folder), some, args.seed + count)
        took = time.monotonic() - begun
        print(f"{count} {name} in {took:.0f} s: no part of an entry seen, none lost", flush=True)


if __name__ == "__main__":
    main()
