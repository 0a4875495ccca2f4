"""--step-cache: which steps reuse a velocity, what keys say of it, and that a cut changes nothing.

The weights of the tiny models are random, so that velocities change a lot: the threshold is 1.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands import Result
from tests.conftest import DATA
from tests.store.builders import HASH, step_fields
from tests.test_resume import after, published, same, start
from tests.workshop import Models, Place
from wanpipe.denoising.chain import CONDITIONS, steps_since_reset
from wanpipe.runtime.documents import to_builtins as as_data
from wanpipe.store import Entry, material

SIZE = ("--width", 32, "--height", 32, "--num-frames", 5)
PLAIN = (*SIZE, "--steps", 16, "--guide-scale", 1)
CACHED = (*PLAIN, "--step-cache", 1)
WARM_UP = 4  # of 16 steps


def skipped(result: Result) -> list[int]:
    """The steps in which the network did not run, as told."""
    return [event["step"] for event in result.events if event["event"] == "skipped"]


def remarks(result: Result) -> list[str]:
    return [event["text"] for event in result.events if event["event"] == "remark"]


def sinces(chain: list[Entry]) -> list[int]:
    """The steps since the last reset that the materials name."""
    return [step.material.step_cache.since for step in chain]


def other(place: Place, tmp_path: Path) -> Place:
    """A copy of the folder as it is now."""
    shutil.copytree(place.cache, tmp_path / "other" / "cache")
    return Place(tmp_path / "other", place.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    ["unipc", *(pytest.param(one, marks=pytest.mark.long) for one in ("dpm++", "euler"))],
)
def test_a_run_cut_at_every_step_is_the_straight_one(
    solver: str, place: Place, tmp_path: Path
) -> None:
    text, options = place.text(), (*CACHED, "--scheduler", solver)
    again, on = other(place, tmp_path / "again"), other(place, tmp_path / "on")
    result = place.do("denoise", "--from", text, *options)
    straight = place.chain(result.paths[-1])
    assert len(skipped(result)) > 2
    step: Path | str = text
    for stop in range(1, 17):
        same_command = again.made("denoise", "--from", text, *options, "--stop-at", stop)
        step = on.made(
            "denoise", "--from", step, *(options if stop == 1 else ()), "--stop-at", stop
        )
    assert same(again.chain(same_command), straight)
    assert same(on.chain(step), straight)


@pytest.mark.long
def test_a_kill_between_changes_no_bit(place: Place, tmp_path: Path) -> None:
    text, options = place.text(), (*CACHED, "--steps", 60)
    killed = other(place, tmp_path)
    straight = place.do("denoise", "--from", text, *options)
    first = min(skipped(straight))
    process = start(killed, "denoise", "--from", text.name, *options)
    after(process, first + 2, 0)
    process.kill()
    process.communicate()
    assert first + 2 <= len(published(killed)) < 60
    again = killed.made("denoise", "--from", text.name, *options)
    assert same(killed.chain(again), place.chain(straight.paths[-1]))


def test_reused_steps_are_told_and_the_first_fifth_and_the_last_compute(place: Place) -> None:
    result = place.do("denoise", "--from", place.text(), *CACHED)
    steps = skipped(result)
    assert min(steps) >= WARM_UP
    assert max(steps) < 15
    assert remarks(result) == [f"step cache: the network ran in {16 - len(steps)} of 16 steps"]
    chain = place.chain(result.paths[-1])
    assert [step.step for step in chain if step.made.network_ran is False] == steps
    assert as_data(chain[5].material.step_cache) == {
        "method": "easycache",
        "threshold": 1.0,
        "warm_up": WARM_UP,
        "since": 5,
    }
    kept = {name for name in chain[5].names if name.startswith("solver/cache_")}
    assert kept == {f"solver/cache_{name}" for name in ("latent", "velocity", "rate", "drift")}
    assert not [name for name in chain[-1].names if "cache" in name]


def test_without_it_nothing_of_it_is_in_an_entry(place: Place) -> None:
    result = place.do("denoise", "--from", place.text(), *PLAIN, "--stop-at", 6)
    for step in place.chain(result.paths[-1]):
        assert "step_cache" not in as_data(step.material)
        assert step.made.network_ran is None
        assert not [name for name in step.names if "cache" in name]
    assert not remarks(result)
    off = place.do("denoise", "--from", place.text(), *PLAIN, "--step-cache", 0, "--stop-at", 6)
    assert off.paths == result.paths


def test_a_tiny_threshold_computes_the_very_latents_under_other_keys(place: Place) -> None:
    plain = place.chain(place.made("denoise", "--from", place.text(), *PLAIN))
    result = place.do("denoise", "--from", place.text(), *PLAIN, "--step-cache", 1e-9)
    cached = place.chain(result.paths[-1])
    assert not skipped(result)
    for one, two in zip(plain, cached, strict=True):
        assert one.key != two.key
        assert one.record.digest.items() <= two.record.digest.items()


def test_a_threshold_reaches_run(place: Place) -> None:
    words = ("--model", place.model, "--prompt", "a", "--output", "film.mp4", *CACHED)
    assert skipped(place.do("run", *words))


@pytest.mark.long
def test_seeds_together_are_each_alone(place: Place, tmp_path: Path) -> None:
    text = place.text()
    alone = other(place, tmp_path)
    together = place.do("denoise", "--from", text, *CACHED, "--seed", 1, "--seed", 2)
    for seed, path in zip((1, 2), together.paths, strict=True):
        chain = alone.chain(alone.made("denoise", "--from", text, *CACHED, "--seed", seed))
        assert same(chain, place.chain(path))
    assert remarks(together)[0].endswith(" of 32 steps")


def test_the_boundary_of_two_experts_resets(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-t2v-a14b"))
    result = place.do("denoise", "--from", place.text(), *CACHED, "--steps", 20)
    chain = place.chain(result.paths[-1])
    experts = [step.material.expert for step in chain]
    high = experts.count(experts[0])
    assert 4 < high < 16
    assert sinces(chain) == [*range(high), *range(20 - high)]
    warm = {*range(4), *range(high, high + 4)}
    assert skipped(result)
    assert not warm & set(skipped(result))


def test_an_expert_that_no_step_needs_is_not_loaded(place: Place) -> None:
    words = ("denoise", "--from", place.text(), *CACHED)
    whole = place.do(*words)
    step = min(skipped(whole))
    shutil.rmtree(place.chain(whole.paths[-1])[step].path)
    again = place.do(*words, "--stop-at", step + 1)
    assert skipped(again) == [step]
    assert again.loaded() == []


def test_the_first_frame_of_ti2v_stays_the_images(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-ti2v-5b"))
    picture = ("--image", DATA / "bad" / "alpha.png", "--width", 32, "--height", 32)
    image = place.made("encode-image", "--model", place.model, *picture)
    options = ("--steps", 20, "--num-frames", 9, "--guide-scale", 1, "--step-cache", 1)
    result = place.do("denoise", "--from", place.text(), "--from", image, *options)
    assert skipped(result)
    expected = place.entry(image).read("latent")
    chain = place.chain(result.paths[-1])
    for step in chain:
        assert np.array_equal(step.read("latent")[:, :1], expected)
    finished = place.do("denoise", "--from", chain[9].key)
    assert finished.paths == result.paths
    assert not finished.computed()


def test_an_image_as_the_only_frame_of_ti2v_stands_still(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-ti2v-5b"))
    picture = ("--image", DATA / "bad" / "alpha.png", "--width", 32, "--height", 32)
    image = place.made("encode-image", "--model", place.model, *picture)
    options = ("--steps", 10, "--num-frames", 1, "--step-cache", 0.1)
    result = place.do("denoise", "--from", place.text(), "--from", image, *options)
    assert skipped(result) == [*range(2, 9)]


@pytest.mark.long
@pytest.mark.parametrize("change", ["prompt", "guidance"])
def test_a_branch_starts_with_an_empty_cache(change: str, place: Place) -> None:
    straight = place.chain(place.made("denoise", "--from", place.text(), *CACHED))
    changes = {"guidance": ("--guide-scale", 2), "prompt": ("--from", place.text("a dog"))}
    branch = place.do("denoise", "--from", straight[7].key, *changes[change])
    assert not set(skipped(branch)) & {8, 9, 10, 11}
    assert sinces(place.chain(branch.paths[-1])) == [*range(8), *range(8)]


@pytest.mark.parametrize("name", CONDITIONS)
def test_whatever_else_a_velocity_depends_on_resets(name: str) -> None:
    rule = {"method": "easycache", "threshold": 0.1, "warm_up": 2, "since": 6}
    fields = step_fields(0) | {"parent": HASH(1), "text": HASH(2), "image": HASH(3)}
    before = material("denoise", **fields, step_cache=rule)
    step = material("denoise", **fields | {"sigma": 0.5})
    given = {"guide_scale": 9.0, "context_scale": 0.5, "loras": [[HASH(4), 1.0]]}
    given["nag"] = {"scale": 11.0}
    changed = given.get(name, HASH(5))
    assert steps_since_reset(step, before) == 7
    assert steps_since_reset(material("denoise", **fields | {name: changed}), before) == 0
    assert steps_since_reset(step, None) == 0


@pytest.mark.long
def test_a_threshold_can_be_given_anew_or_taken_away_on_the_way(place: Place) -> None:
    chain = place.chain(place.made("denoise", "--from", place.text(), *CACHED))
    words = ("denoise", "--from", chain[7].key, "--step-cache")
    lower = place.chain(place.made(*words, 0.5))[8:]
    assert [step.material.step_cache.threshold for step in lower] == [0.5] * 8
    assert sinces(lower) == [*range(8, 16)]
    off = place.do(*words, 0)
    assert not any(
        "step_cache" in as_data(step.material) for step in place.chain(off.paths[-1])[8:]
    )
    uncached = place.made("denoise", "--from", place.text(), *PLAIN, "--stop-at", 3)
    late = place.chain(place.made("denoise", "--from", uncached, "--step-cache", 1))[3:]
    assert sinces(late) == [*range(13)]


def test_what_is_planned_is_what_is_then_computed(place: Place) -> None:
    words = ("denoise", "--from", place.text(), *CACHED)
    plan = place.do(*words, "--dry-run")
    planned = [event["key"] for event in plan.events if event["event"] == "planned"]
    assert not remarks(plan)
    assert planned == [event["key"] for event in place.do(*words).computed()]
    more = place.do(*words[:-1], 0.5, "--dry-run")
    [missing] = [event for event in more.events if event["event"] == "missing"]
    assert "step cache 1 (0 steps after a reset) → 0.5 (0 steps" in missing["reason"]


@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "inf"])
def test_a_threshold_that_cannot_be_is_refused(value: str, place: Place) -> None:
    words = ("denoise", "--from", place.text(), *PLAIN, "--step-cache", value)
    place.refuse(*words, code=2, says=f"step-cache must be above 0 and at most 1, got {value}; use")


def test_few_steps_are_refused(place: Place) -> None:
    says = "step-cache needs 10 steps or more, because fewer differ too much to be reused, got "
    words = ("denoise", "--from", place.text(), *SIZE, "--step-cache", 0.1)
    place.refuse(*words, "--steps", 9, code=2, says=f"{says}9; leave")
    grid = ("--timesteps", "1000,750,500,250")
    place.refuse(*words, *grid, code=2, says=f"{says}4 in --timesteps; leave")


def test_many_explicit_timesteps_are_cached_too(place: Place) -> None:
    grid = ",".join(str(1000 - 60 * index) for index in range(16))
    options = (*SIZE, "--guide-scale", 1, "--step-cache", 1, "--timesteps", grid)
    result = place.do("denoise", "--from", place.text(), *options)
    assert skipped(result)
    assert sinces(place.chain(result.paths[-1])) == [*range(16)]


def test_a_cached_step_can_be_shared(place: Place, tmp_path: Path) -> None:
    step = place.made("denoise", "--from", place.text(), *CACHED, "--stop-at", 8)
    place.do("cache", "export", step, tmp_path / "step.zip")
    elsewhere = Place(tmp_path / "elsewhere", place.model)
    elsewhere.root.mkdir()
    elsewhere.do("cache", "import", tmp_path / "step.zip")
    there = elsewhere.made("denoise", "--model", place.model, "--from", step.name)
    here = place.made("denoise", "--from", step)
    assert same([elsewhere.entry(there)], [place.entry(here)])
