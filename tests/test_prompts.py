"""Several prompts in one command: each network is loaded once, and each video is that of its prompt
alone.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages import convert
from tests.conftest import DATA
from tests.groups import same
from tests.workshop import PROMPT, SMALL, Models, Place, inside
from wanpipe.demo import CHECKPOINTS
from wanpipe.denoising.sampler import Sampler
from wanpipe.errors import WanpipeError
from wanpipe.pipeline.encoders import text
from wanpipe.store import Entry, Store

EXPERTS = ("high_noise_model", "low_noise_model")
DOG = "a dog sings a much longer song than the cat"
BOTH = ("--prompt", PROMPT, "--prompt", DOG)
TWO = ("--steps", 4, "--shift", 5)  # some steps for each of two experts


@pytest.fixture
def places(models: Models, tmp_path: Path) -> list[Place]:
    """Two folders with the same model of two experts."""
    found = [Place(tmp_path / name, models("wan22-t2v-a14b")) for name in ("one", "other")]
    for place in found:
        place.root.mkdir()
    return found


def films(place: Place, *words: object) -> Any:
    """Make small films of what is given."""
    return place.do("run", "--model", place.model, *SMALL, *words)


def last_steps(place: Place) -> dict[tuple[str | None, int | None], list[Entry]]:
    """The steps of each run in a cache, by its prompt and seed."""
    runs = Store(place.cache).runs.all()
    return {(run.prompt, run.seed): place.chain(place.cache / "denoise" / run.last) for run in runs}


def test_each_network_is_loaded_once_for_two_prompts_and_two_seeds(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode: Callable[..., Any] = text.encode

    def noting(path: Path, config: Any, sequences: Any, *rest: Any) -> Any:
        encoded.append(len(sequences))
        return encode(path, config, sequences, *rest)

    monkeypatch.setattr(text, "encode", noting)
    together, alone = places
    made = films(together, *BOTH, *TWO, "--seed", "1-2", "--output", "{prompt}.gif")
    assert made.loaded() == [*EXPERTS, "vae"]
    assert encoded == [3]  # with the negative prompt
    monkeypatch.undo()
    for prompt in (PROMPT, DOG):
        for seed in (1, 2):
            films(alone, "--prompt", prompt, *TWO, "--seed", seed, "--output", f"{seed}.gif")
    ours, theirs = last_steps(together), last_steps(alone)
    assert ours.keys() == theirs.keys() == {(one, seed) for one in (PROMPT, DOG) for seed in (1, 2)}
    assert all(same(ours[name], theirs[name]) for name in ours)
    keys = [{run.key for run in Store(place.cache).runs.all()} for place in places]
    assert keys[0] == keys[1]
    # high noise of all four films first; prompt by prompt, then seed by seed
    steps = {step.key: (name, step.step) for name in ours for step in ours[name]}
    order = [steps[event["key"]] for event in made.computed("denoise")]
    high = sum(step.material.timestep >= 875 for step in ours[PROMPT, 1])
    assert 0 < high < 4
    names = [(prompt, seed) for prompt in (PROMPT, DOG) for seed in (1, 2)]
    assert order == [
        (name, step) for part in (range(high), range(high, 4)) for name in names for step in part
    ]
    words = ("a-cat-plays-the-piano", "a-dog-sings-a-much-longer")
    assert made.paths == [f"{prompt}-{seed}.gif" for prompt in words for seed in (1, 2)]


def test_an_interrupted_command_resumes_at_the_last_step_of_each_prompt(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, whole = places
    advance, taken = Sampler.advance, 0

    def failing(self: Sampler, *rest: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > 5:
            raise WanpipeError("the power is gone")
        return advance(self, *rest)

    words = ("run", "--model", cut.model, *BOTH, *SMALL, *TWO, "--output", "film.gif")
    with monkeypatch.context() as patched:
        patched.setattr(Sampler, "advance", failing)
        assert inside(*words, cwd=cut.root).code == 1
    again = cut.do(*words)
    assert again.paths == ["film-1.gif", "film-2.gif"]
    assert len(again.computed("denoise")) == 2 * 4 - 5
    assert not again.computed("encode-text")
    whole.do(*words)
    ours, theirs = last_steps(cut), last_steps(whole)
    assert all(same(ours[name], theirs[name]) for name in ours)


def test_only_the_prompt_that_is_new_is_computed(studio: Place) -> None:
    both = films(studio, *BOTH, "--output", "film.gif")
    assert len(both.computed("encode-text")) == len(both.computed("decode")) == 1
    assert len(both.computed("denoise")) == 4
    assert not studio.film(prompt=DOG).computed()


def test_the_same_prompt_again_is_one_video(studio: Place) -> None:
    words = ("--prompt", PROMPT, "--prompt", f" {PROMPT}  ", "--prompt", PROMPT)
    made = films(studio, *words, "--output", "same.gif")
    assert made.paths == ["same.gif"]
    [remark] = [event["text"] for event in made.events if event["event"] == "remark"]
    assert remark == "2 of 3 prompts left out: others have the same tokens"
    assert not made.computed()


def test_prompts_of_a_file_and_a_name_for_each_video(place: Place) -> None:
    (place.root / "prompts.txt").write_text(f"{DOG}\n\n{PROMPT}\n")
    words = ("--prompt", "a fish", "--prompt-file", "prompts.txt", "--name", "animal")
    made = films(place, *words, "--steps", 1, "--guide-scale", 1)
    stems = ("a-fish-", "a-dog-sings-a-much-longer-", "a-cat-plays-the-piano-")
    assert [path.startswith(stem) for path, stem in zip(made.paths, stems, strict=True)] == [
        True
    ] * 3
    for number, path in enumerate(made.paths, 1):
        again = place.do("decode", "--from", f"animal-{number}", "--output", path)
        assert not again.computed()
        assert not [event for event in again.events if event["event"] == "written"]


def test_a_plan_counts_the_steps_of_all_prompts_and_the_longest_text(place: Place) -> None:
    told = []
    for words in (("--prompt", PROMPT), ("--prompt", DOG), BOTH):
        plan = films(place, *words, "--output", "film.gif", "--dry-run")
        forecasts = [event for event in plan.events if event["event"] == "forecast"]
        [steps] = [event for event in forecasts if event["component"] == "model"]
        told.append((steps["units"], steps["peak_bytes"]))
    assert told[0][1] < told[1][1]
    assert told == [(4, told[0][1]), (4, told[1][1]), (8, told[1][1])]
    assert not place.cache.exists()


def test_like_makes_a_video_of_each_prompt_with_the_recorded_settings(studio: Place) -> None:
    studio.film("--seed", 3, "--guide-scale", 4)
    made = studio.do("run", "--like", "film.mp4", *BOTH, "--output", "like.gif")
    assert made.paths == ["like-1.gif", "like-2.gif"]
    assert len(made.computed("denoise")) == 4  # the other is the film itself
    settings = {prompt: steps[-1] for (prompt, _), steps in last_steps(studio).items()}
    assert studio.run(settings[DOG].path).settings.guide_scale == (4, 4)
    assert studio.run(settings[DOG].path).seed == 3


def test_texts_of_denoise_start_a_run_each(place: Place) -> None:
    texts = [place.text(prompt) for prompt in (PROMPT, DOG)]
    words = ("--from", texts[0], "--from", texts[1], "--from", texts[0], *SMALL, "--seed", "5,6")
    made = place.do("denoise", "--model", place.model, *words, "--stop-at", 2, "--name", "draft")
    assert made.loaded() == ["model"]
    runs = [place.run(path) for path in made.paths]
    assert [(run.prompt, run.seed) for run in runs] == [
        (prompt, seed) for prompt in (PROMPT, DOG) for seed in (5, 6)
    ]
    straight = place.do("denoise", "--from", texts[1], *SMALL, "--seed", 6)
    assert [event["step"] for event in straight.computed()] == [2, 3]
    assert place.do("denoise", "--from", "draft-4").paths == straight.paths


def test_texts_branch_from_one_step(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 2)
    others = [studio.text(prompt) for prompt in (DOG, "a fish")]
    made = studio.do("denoise", "--from", step, "--from", others[0], "--from", others[1])
    assert [event["step"] for event in made.computed()] == [2, 3, 2, 3]
    chains = [studio.chain(path) for path in made.paths]
    assert chains[0][1].key == chains[1][1].key == step.name
    again = studio.do("denoise", "--from", step, "--from", others[1])
    assert not again.computed()
    assert again.paths == made.paths[1:]


def test_one_image_is_for_all_prompts(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-i2v-a14b"))
    image = ("--image", DATA / "bad" / "alpha.png", "--output", "film.gif")
    made = films(place, *BOTH, *image)
    assert len(made.computed("encode-image")) == 1
    assert made.loaded() == ["vae_encoder", *EXPERTS, "vae"]
    for prompt in (PROMPT, DOG):
        assert not films(place, "--prompt", prompt, *image).computed()


def test_prompts_that_say_nothing_and_names_for_one_prompt_are_refused(studio: Place) -> None:
    words = ("run", "--model", studio.model, "--prompt", PROMPT, "--prompt", "", *SMALL)
    studio.refuse(*words, code=2, says="no prompt is given; use --prompt or --prompt-file")
    studio.refuse("run", "--model", studio.model, code=2, says="no prompt is given")
    (studio.root / "empty.txt").write_text("\n")
    words = ("run", "--model", studio.model, "--prompt-file", "empty.txt")
    studio.refuse(*words, code=2, says="empty.txt has no prompt; write one a line")
    words = ("run", "--model", studio.model, *BOTH, *SMALL, "--output", "{seed}.gif")
    studio.refuse(*words, code=2, says="2 videos would be named 0.gif; add")


@pytest.mark.parametrize("way", ["streamed", "step cache"])
def test_each_prompt_has_its_own_text_and_state(way: str, tmp_path: Path) -> None:
    params = convert.Params(checkpoint_dir=CHECKPOINTS / "t2v", output_dir=tmp_path / "model")
    model = convert.run(params, Store(tmp_path / "cache"))
    together, alone = (Place(tmp_path / name, model) for name in ("together", "alone"))
    together.root.mkdir()
    alone.root.mkdir()
    texts = [together.text(f"a red circle {words}") for words in ("moves right", "grows")]
    words: tuple[object, ...] = (*SMALL, "--steps", 12, "--step-cache", 0.5)
    if way == "streamed":
        words = (*SMALL, "--guide-scale", 1)
        plan = together.do("denoise", "--from", texts[0], *words, "--dry-run")
        [told] = [event for event in plan.events if event["event"] == "forecast"]
        words = (*words, "--memory", told["peak_bytes"] - 1)
    made = together.do("denoise", "--from", texts[0], "--from", texts[1], *words)
    lines = [event["text"] for event in made.events if event["event"] in ("memory", "remark")]
    assert ("are read from disk" if way == "streamed" else "of 24 steps") in lines[-1]
    shutil.copytree(together.cache / "encode-text", alone.cache / "encode-text")
    for text_entry, path in zip(texts, made.paths, strict=True):
        other = alone.made("denoise", "--model", model, "--from", text_entry.name, *words)
        assert same(together.chain(path), alone.chain(other))
