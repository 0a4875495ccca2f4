"""Sweeps on a Dask scheduler and workers that others have started."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import wanpipe
from tests.sweeps.clusters import (
    Process,
    begin,
    digests,
    ended,
    scheduler,
    steps,
    sweep,
    until,
    worker,
)
from tests.workshop import Models, Place

FEW = ("--seeds", 2, "--steps", 12)


def said(process: Process, words: str) -> bool:
    """Wait until a worker says something."""
    assert process.stderr is not None
    return any(words in line for line in process.stderr)


@pytest.mark.long
def test_a_lost_scheduler_ends_a_sweep_and_workers_wait_for_the_next(
    models: Models, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with ExitStack() as stack:
        first, address = stack.enter_context(scheduler())
        works = stack.enter_context(worker(address, cache, "--death-timeout", 60))
        words = (models("wan21-t2v"), "--cache", cache, "--scheduler", address, *FEW)
        process = begin(*words)
        until(lambda: steps(cache) >= 3)
        first.kill()
        found = ended(process)
        assert found.code == 1
        assert found.error == (
            f"lost the scheduler at {address}; run the same command again, what was made is kept"
        )
        stack.enter_context(scheduler(int(address.rpartition(":")[2])))
        assert said(works, "waiting for it")
        kept = len(digests(cache))
        rest = sweep(*words)
        assert rest.computed() == 1 + 2 * 12 + 2 - kept
        assert len(digests(cache)) == 1 + 2 * 12 + 2
        works.terminate()
        assert works.wait(60) == 143


@pytest.mark.long
def test_two_sweeps_at_once_share_entries_and_a_late_worker_takes_part(
    models: Models, tmp_path: Path
) -> None:
    model, cache = models("wan21-t2v"), tmp_path / "cache"
    with scheduler() as (_, address), worker(address, cache, "--name", "early"):
        words = (model, "--cache", cache, "--scheduler", address)
        processes = [begin(*words, "--seeds", count, "--steps", 12) for count in (3, 4)]
        until(lambda: steps(cache) >= 1)
        with worker(address, cache, "--name", "late"):
            found = [ended(process) for process in processes]
    assert [one.states() for one in found] == [{"done": 7}, {"done": 9}]
    every = [pair for one in found for pair in one.outcomes.items()]
    made = {(key, outcome["seconds"]): outcome for key, outcome in every}
    assert {outcome["worker"] for outcome in made.values()} == {"early", "late"}
    assert len(digests(cache)) == 1 + 4 * 12 + 4
    # what both wanted was one task, or was made already when the second one wanted it
    assert sum(outcome["computed"] for outcome in made.values()) == 1 + 4 * 12 + 4


@pytest.mark.long
def test_workers_with_their_own_caches_share_a_remote(models: Models, tmp_path: Path) -> None:
    remote = ("--remote", (tmp_path / "remote").as_uri(), "--push", "steps")
    (tmp_path / "remote").mkdir()
    with (
        scheduler() as (_, address),
        worker(address, tmp_path / "one", *remote),
        worker(address, tmp_path / "other", *remote),
    ):
        words = ("--scheduler", address, "--seeds", 4)
        found = sweep(models("wan21-t2v"), "--cache", tmp_path / "planned", *words)
    assert found.states() == {"done": 9}
    assert len({outcome["worker"] for outcome in found.outcomes.values()}) == 2
    assert len(list((tmp_path / "remote").glob("[a-z]*/*/zarr.json"))) == 1 + 4 * 4 + 4


@pytest.mark.long
def test_tls_lets_in_only_those_whom_the_authority_signed(models: Models, tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        certify(folder)
    files = ("--tls-ca-file", ours / "ca.pem", "--tls-cert", ours / "cert.pem")
    files = (*files, "--tls-key", ours / "key.pem")
    cache = tmp_path / "cache"
    options = ("--protocol", "tls", *files)
    with scheduler(0, *options) as (_, address), worker(address, cache, *files):
        assert address.startswith("tls://")
        words = (models("wan21-t2v"), "--cache", cache, "--scheduler", address, "--seeds", 1)
        assert sweep(*words, "--tls", ours).states() == {"done": 3}
        stranger = ended(begin(*words, "--steps", 5, "--tls", others))
    assert stranger.code == 1
    assert stranger.error.startswith(f"the certificate of {address} must be signed by")


def certify(folder: Path) -> None:
    """Make an authority and a certificate that it signed."""
    folder.mkdir()
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    authority = f"{new} -keyout ca.key -out ca.pem -subj /CN=authority"
    signed = f"{new} -CA ca.pem -CAkey ca.key -keyout key.pem -out cert.pem -subj /CN=member"
    for command in (authority, f"{signed} -addext basicConstraints=critical,CA:FALSE"):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--scheduler", "example"), 2, "--scheduler must be tcp://HOST:PORT or tls://HOST:PORT"),
        (("--scheduler", "tls://127.0.0.1:9"), 2, "a scheduler at tls:// needs --tls-ca-file"),
        (
            ("--scheduler", "tcp://127.0.0.1:9", "--tls-key", "none.pem"),
            2,
            "--tls-key is for tls://, got tcp://127.0.0.1:9",
        ),
        (
            ("--scheduler", "tcp://127.0.0.1:9", "--interface", "none0"),
            2,
            "'none0' is not a valid network interface",
        ),
        (
            ("--scheduler", "tcp://127.0.0.1:9", "--death-timeout", 1),
            1,
            "no scheduler answered at tcp://127.0.0.1:9 within 1 s; start `dask scheduler`",
        ),
    ],
)
def test_a_worker_that_cannot_join_says_why(
    options: tuple[object, ...], code: int, says: str, place: Place
) -> None:
    result = wanpipe("worker", *options, cwd=place.root)
    assert result.code == code
    assert says in result.events[-1]["text"], result.stderr
    assert len(result.stderr.splitlines()) == 1
