"""--memory: the same results in less memory, refusals that cost nothing, and plans that tell."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import convert
from tests.commands import wanpipe
from tests.workshop import PROMPT, SMALL, Place, inside
from wanpipe.demo import CHECKPOINTS
from wanpipe.store import Store


def forecasts(place: Place, *more: object) -> dict[str, dict[str, object]]:
    """What a plan of the small film tells of each component."""
    words = ("run", "--model", place.model, "--prompt", PROMPT, *SMALL, "--output", "film.mp4")
    plan = place.do(*words, "--dry-run", *more)
    return {event["component"]: event for event in plan.events if event["event"] == "forecast"}


def test_a_plan_tells_memory_and_arithmetic_of_every_stage(place: Place) -> None:
    told = forecasts(place)
    assert told["model"]["units"] == 4
    assert told["model"]["seconds"] is None
    for name in ("t5_encoder", "model"):
        assert told[name]["peak_bytes"] > 10_000
        assert told[name]["flops"] > 1_000_000


def test_a_plan_tells_time_at_the_pace_of_what_was_made_here(studio: Place) -> None:
    steps = (studio.cache / "denoise").iterdir()
    seconds = [studio.entry(path).made.seconds for path in steps]
    told = forecasts(studio, "--seed", 8, "--steps", 8)["model"]
    assert told["units"] == 8
    assert 8 * min(seconds) - 0.05 <= told["seconds"] <= 8 * max(seconds) + 0.05


@pytest.mark.parametrize("cache", [(), ("--step-cache", 0.5)])
def test_a_step_has_no_more_arrays_than_its_plan_counts(
    cache: tuple[object, ...], studio: Place
) -> None:
    words = ("--model", studio.model, "--from", studio.text(), *SMALL, "--steps", 12)
    last = studio.made("denoise", *words, "--seed", 9, *cache)
    most = 0.0
    for step in studio.chain(last):
        arrays = [step.read(name) for name in step.names]
        most = max(most, sum(array.size for array in arrays) / step.read("latent").size)
    assert round(most, 2) == (6 if cache else 4)


def test_what_is_there_already_is_not_forecast(studio: Place) -> None:
    assert forecasts(studio) == {}


def test_a_model_that_does_not_fit_takes_less_memory_and_gives_the_same_bits(
    tmp_path: Path,
) -> None:
    model = convert.run(
        convert.Params(checkpoint_dir=CHECKPOINTS / "t2v", output_dir=tmp_path / "model"),
        Store(tmp_path / "cache"),
    )
    place = Place(tmp_path, model)
    text = place.text("a red circle moves right")
    words = ("denoise", "--model", model, "--from", text, *SMALL, "--steps", 2, "--seed", 5)
    latents, lines, memory = [], [], 10**9
    for _ in range(4):
        peak = forecast_of(place, *words, "--memory", memory)
        result = place.do(*words, "--force", "--memory", memory)
        lines.append([event["text"] for event in result.events if event["event"] == "memory"])
        latents.append(place.entry(result.paths[-1]).read("latent"))
        memory = peak - 1  # too little for that plan
    streamed, apart = "its blocks are read from disk at every step", "its two guidance passes"
    assert lines[0] == []
    for [line], told in zip(lines[1:], (apart, streamed, f"{streamed} and {apart}"), strict=True):
        assert line.startswith(f"model: {told}")
        assert ", because the fastest plan needs" in line
    for latent in latents[1:]:
        assert np.array_equal(latents[0], latent)
    place.refuse(*words, "--force", "--memory", memory, code=2, says="more than --memory")


def forecast_of(place: Place, *words: object) -> int:
    """Peak in bytes that a plan tells of the transformer."""
    plan = place.do(*words, "--force", "--dry-run")
    [told] = [event for event in plan.events if event["event"] == "forecast"]
    return int(told["peak_bytes"])


def test_less_than_any_way_takes_is_refused_before_anything_is_read(studio: Place) -> None:
    text = studio.text()
    words = ("denoise", "--model", studio.model, "--from", text, *SMALL, "--seed", 6)
    studio.refuse(*words, "--memory", "1kB", code=2, says="more than --memory 1 kB; make width")


def test_no_memory_at_all_is_no_default(studio: Place) -> None:
    words = ("denoise", "--model", studio.model, "--from", studio.text(), *SMALL, "--seed", 6)
    studio.refuse(*words, "--memory", "0", code=2, says="more than --memory 0 B")


def test_a_size_that_is_none_is_a_usage_error(place: Place) -> None:
    result = inside("denoise", "--memory", "much", "--events", "json", cwd=place.root)
    assert result.code == 2
    assert "a size must be like 50GB" in json.loads(result.stderr)["text"]


def test_a_run_says_once_how_it_keeps_within_memory(tmp_path: Path) -> None:
    params = convert.Params(checkpoint_dir=CHECKPOINTS / "t2v", output_dir=tmp_path / "model")
    place = Place(tmp_path, convert.run(params, Store(tmp_path / "cache")))
    peak = int(forecasts(place)["model"]["peak_bytes"])
    film = place.film("--memory", peak - 1)
    [line] = [event["text"] for event in film.events if event["event"] == "memory"]
    assert "model: its two guidance passes run one after the other, because" in line


def test_devices_share_the_tokens_where_passes_apart_need_too_much(place: Place) -> None:
    words = ("denoise", "--model", place.model, "--from", place.text(), *SMALL)
    words = (*words, "--width", 128, "--height", 128, "--devices", 2)
    plan, less = place.do(*words, "--dry-run"), forecast_of(place, *words) - 1
    [apart] = [event["way"] for event in plan.events if event["event"] == "forecast"]
    assert apart == "each computes one guidance pass"
    assert forecast_of(place, *words, "--memory", less) < less
    made = wanpipe(*words, "--memory", less, cwd=place.root)  # a group stays with its process
    told = [event["text"] for event in made.events if event["event"] == "memory"]
    assert "model: its devices share the tokens, because the fastest plan needs" in told[0]


def test_time_on_several_devices_is_told_at_best(studio: Place) -> None:
    one, two = (forecasts(studio, "--seed", 8, "--devices", n)["model"] for n in (1, 2))
    assert "at_best" not in one
    assert two["at_best"] is True
    assert two["seconds"] == pytest.approx(one["seconds"] / 2, abs=0.1)
