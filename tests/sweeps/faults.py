"""Sweeps of which workers or schedulers are killed at random. What they made is compared with plain
runs, bit for bit.
"""

import random
import time
from contextlib import ExitStack
from pathlib import Path

from tests.sweeps.clusters import (
    all_end,
    begin,
    digests,
    ended,
    kill,
    scheduler,
    steps,
    sweep,
    until,
    worker,
    workers,
)


def plain(model: Path, cache: Path, size: tuple[object, ...]) -> dict[str, object]:
    """Carry out the commands of a sweep one after the other, and return all digests."""
    assert ended(begin(model, "--cache", cache, "--plain", *size)).code == 0
    return digests(cache)


def killed_workers(model: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill workers of a sweep at random moments, and return how many were."""
    chance, cache = random.Random(seed), folder / "swept"
    size = ("--seeds", 2, "--steps", 8 + 4 * kills)
    process = begin(model, "--cache", cache, "--workers", 2, "--retries", 2 * kills, *size)
    started: set[int] = set()
    done = 0
    while done < kills and process.poll() is None:
        # a new worker takes seconds to come; two steps are half of what is there for one kill
        before = steps(cache)
        until(lambda before=before: steps(cache) >= before + 2 or process.poll() is not None)
        time.sleep(chance.uniform(0, 0.3))
        there = workers(process)
        started.update(there)
        if there:
            kill(chance.choice(there))
            done += 1
    found = ended(process)
    assert found.states() == {"done": 5}, found.outcomes
    assert all_end(list(started))
    assert digests(cache) == plain(model, folder / "plain", size)
    return done


def killed_schedulers(model: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill the scheduler of a sweep at random moments, and start it and the sweep again. Two
    workers stay. Returns how many were killed.
    """
    chance, cache = random.Random(seed), folder / "swept"
    # a worker without a scheduler finishes its video, so there are some for each kill
    videos = 4 * kills + 2
    size = ("--seeds", videos, "--steps", 6)
    done = port = 0
    with ExitStack() as stack:
        while done < kills:
            with scheduler(port) as (process, address):
                words = (model, "--cache", cache, "--scheduler", address, *size)
                if not port:
                    port = int(address.rpartition(":")[2])
                    for _ in range(2):
                        stack.enter_context(worker(address, cache, "--death-timeout", 90))
                swept = begin(*words)
                assert swept.stderr is not None
                assert any('"queued"' in line for line in swept.stderr)
                before = steps(cache)
                until(lambda before=before: steps(cache) >= before + 2)
                time.sleep(chance.uniform(0, 0.3))
                process.kill()
                found = ended(swept)
                assert found.code == 1, found
                assert found.error.startswith(f"lost the scheduler at {address};"), found.error
                done += 1
        with scheduler(port):
            assert sweep(*words).outcomes
    assert len(digests(cache)) == 1 + videos * 6 + videos
    assert digests(cache) == plain(model, folder / "plain", size)
    return done
