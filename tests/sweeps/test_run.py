"""Sweeps on workers of this machine: what is made once, kept and left out."""

import signal
from pathlib import Path

import pytest

from tests.sweeps.clusters import (
    Sweep,
    all_end,
    begin,
    digests,
    ended,
    steps,
    sweep,
    until,
    workers,
)
from tests.sweeps.faults import killed_workers
from tests.workshop import Models

TWELVE = ("--prompts", 3, "--seeds", 4)
LONGER = ("--seeds", 2, "--steps", 14)


@pytest.mark.long
def test_two_workers_make_every_entry_once_and_with_the_bits_of_plain_runs(
    models: Models, tmp_path: Path
) -> None:
    model = models("wan21-t2v")
    found = sweep(model, "--cache", tmp_path / "swept", "--workers", 2, *TWELVE)
    assert found.states() == {"done": 3 + 12 + 12}
    assert found.computed() == 3 + 12 * 4 + 12
    assert {outcome["worker"] for outcome in found.outcomes.values()} == {"1", "2"}
    kinds = [event["event"] for event in found.events]
    assert [kinds.count(kind) for kind in ("queued", "started", "done")] == [27] * 3
    assert ended(begin(model, "--cache", tmp_path / "plain", "--plain", *TWELVE)).code == 0
    assert digests(tmp_path / "swept") == digests(tmp_path / "plain")
    again = sweep(model, "--cache", tmp_path / "swept", "--workers", 2, *TWELVE)
    assert again.states() == {"exists": 27}


@pytest.mark.parametrize(
    ("family", "experts", "videos"),
    [
        ("wan21-t2v", ("model",), 6),
        pytest.param(
            "wan22-t2v-a14b",
            ("high_noise_model", "low_noise_model"),
            2,
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_worker_loads_each_network_once_for_all_videos(
    family: str, experts: tuple[str, ...], videos: int, models: Models, tmp_path: Path
) -> None:
    found = sweep(models(family), "--cache", tmp_path, "--seeds", videos, "--workers", 1)
    networks = (*experts, "vae")
    assert [found.loaded(name) for name in networks] == [1] * len(networks)
    assert found.computed() == 1 + videos * 4 + videos


@pytest.mark.long
def test_killed_workers_lose_no_step_and_change_no_bit(models: Models, tmp_path: Path) -> None:
    assert killed_workers(models("wan21-t2v"), tmp_path, kills=2, seed=1) == 2


def test_a_node_that_fails_ends_only_those_that_need_it(models: Models, tmp_path: Path) -> None:
    words = ("--prompts", 2, "--workers", 1, "--break", "a cat number 1")
    found = sweep(models("wan21-t2v"), "--cache", tmp_path, *words)
    assert found.states() == {"done": 5, "failed": 1, "skipped": 4}
    (failed,) = (one for one in found.outcomes.values() if one["state"] == "failed")
    assert "more than --memory 1 B" in failed["error"]
    assert {one["error"] for one in found.outcomes.values() if one["state"] == "skipped"} == {
        f"needs encode-text {failed['key'][:8]}, which failed: {failed['error']}"
    }


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_an_ended_sweep_leaves_no_process_and_goes_on(
    number: int, models: Models, tmp_path: Path
) -> None:
    words = (models("wan21-t2v"), "--cache", tmp_path, "--workers", 2, *LONGER)
    process = begin(*words)
    until(lambda: steps(tmp_path) >= 5)
    started = workers(process)
    process.send_signal(number)
    found: Sweep = ended(process)
    assert found.code == (130 if number == signal.SIGINT else -number)
    assert all_end(started)
    kept = len(digests(tmp_path))
    rest = sweep(*words)
    assert rest.computed() == 1 + 2 * 14 + 2 - kept
