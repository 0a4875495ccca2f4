"""Kills at random moments over all five stages: nothing that was finished is lost or wrong.

bench/kills.py does it two hundred times.
"""

import io
import multiprocessing
import random
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from wanpipe.demo import T2V
from wanpipe.device import is_cuda
from wanpipe.store import Store
from wanpipe.store.entry import read_entry
from wanpipe.store.verify import check

pytestmark = pytest.mark.slow

KILLS = 12
LONGEST = 1.5  # seconds before a kill
# forks from a process that has loaded what a run needs, so that kills fall into the work itself
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.test_kills", "stages.run", "wanpipe.models.vae"])
SIZE = ["--width", "32", "--height", "32", "--num-frames", "5", "--steps", "6"]


def film(folder: Path) -> None:
    """Make two films from the checkpoint, all five stages."""
    from wanpipe.cli import main

    seeds = ["--seed", "1", "--seed", "2"]
    words = ["run", "--checkpoint-dir", str(T2V), "--prompt", "a red circle", *SIZE, *seeds]
    with chdir(folder), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main([*words, "--output", "film.mp4"])


def entries(cache: Path) -> dict[str, dict[str, str]]:
    """The digests of everything that can be seen in a cache, each entry checked whole."""
    found = {}
    for place in Store(cache).index.listing():
        entry = read_entry(cache / place)
        check(entry)
        found[place] = entry.record["digest"] | entry.files
    return found


def campaign(folder: Path, kills: int, seed: int = 11) -> tuple[int, int]:
    """Kill so many runs; the numbers of runs that were finished and of entries that were made.

    Whenever a run has come to its end, part of the cache is removed, so that all stages are hit.
    """
    generator = random.Random(seed)
    straight = folder / "straight"
    straight.mkdir()
    run(straight, None)
    right = entries(straight / "cache")
    place, finished, made = folder / "killed", 0, 0
    place.mkdir()
    seen: dict[str, dict[str, str]] = {}
    patience = LONGEST
    while kills:
        ended = run(place, generator.uniform(0.0, patience))
        kills -= not ended
        there = entries(place / "cache")
        assert set(seen) <= set(there), "an entry was lost"
        assert all(right[name] == digest for name, digest in there.items())
        made += len(set(there) - set(seen))
        # a busy machine may need longer than a run is ever given
        patience = LONGEST if set(there) - set(seen) else 1.2 * patience
        seen = there
        if ended:
            finished += 1
            assert there == right
            gone = generator.choice(("convert", "encode-text", "denoise", "decode", ""))
            shutil.rmtree(place / "cache" / gone)
            (place / "film-1.mp4").unlink()
            seen = entries(place / "cache")
    run(place, None)
    assert entries(place / "cache") == right
    Store(place / "cache").sweep()
    assert not [path for path in (place / "cache").glob(".tmp/*") if path.suffix]
    assert not (place / "cache" / ".damaged").exists()
    return finished, made


def run(folder: Path, seconds: float | None) -> bool:
    """Run in a process of its own and kill it after so many seconds; whether it came to its end."""
    process = server.Process(target=film, args=(folder,))
    process.start()
    process.join(seconds)
    ended = process.exitcode is not None
    process.kill()
    process.join()
    assert not ended or process.exitcode == 0
    return ended


@pytest.mark.skipif(is_cuda(), reason="a process that began CUDA cannot be forked")
def test_kills_over_all_stages_lose_nothing(tmp_path: Path) -> None:
    _, made = campaign(tmp_path, KILLS)
    assert made > 10
