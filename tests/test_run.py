"""run: a prompt to a film, computing only what the cache lacks."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands import succeed
from tests.conftest import DATA
from tests.workshop import PROMPT, SMALL, Models, Place
from wanpipe.media.video import read_metadata

EXPERTS = ("--steps", 6, "--guide-scale", "3,4")


def keys(place: Place) -> set[str]:
    """Every entry as stage/key."""
    return {f"{path.parent.name}/{path.name}" for path in place.cache.glob("[a-z]*/*")}


def test_the_same_run_again_computes_and_loads_nothing(studio: Place) -> None:
    again = studio.film()
    assert not again.computed()
    assert not again.loaded()
    assert again.paths == ["film.mp4"]


def test_two_processes_from_the_checkpoint_make_each_result_once(
    checkpoints: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint-dir", checkpoints / "wan21-t2v", "--prompt", PROMPT, *SMALL)
    first = succeed("run", *words, "--output", "film.mp4", cwd=tmp_path)
    stages = [event["stage"] for event in first.computed()]
    assert stages == ["convert", "encode-text", *["denoise"] * 4, "decode"]
    again = succeed("run", *words, "--output", "film.mp4", cwd=tmp_path)
    assert not again.computed()
    assert not again.loaded()
    assert not [event for event in again.events if event["event"] == "written"]


def test_a_second_seed_loads_no_t5(studio: Place) -> None:
    second = studio.film("--seed", 1)
    assert second.loaded() == ["model", "vae"]
    assert len(second.computed("denoise")) == 4
    assert not second.computed("encode-text")


def test_another_size_reuses_the_text(studio: Place) -> None:
    wide = studio.film("--width", 48)
    assert not wide.computed("encode-text")
    assert studio.frames(wide).shape == (5, 32, 48, 3)


def test_another_prompt_recomputes_all(studio: Place) -> None:
    other = studio.film(prompt="a dog")
    assert [event["stage"] for event in other.computed()] == [
        "encode-text",
        *["denoise"] * 4,
        "decode",
    ]


def test_a_moved_cache_changes_no_key(studio: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    studio.cache.rename(tmp_path / "elsewhere" / "kept")
    moved = studio.film("--cache", tmp_path / "elsewhere" / "kept")
    assert not moved.computed()


def test_a_moved_model_changes_no_key(studio: Place, tmp_path: Path) -> None:
    model = shutil.copytree(studio.model, tmp_path / "another name")
    assert not replace(studio, model=model).film().computed()


def test_seeds_give_films_of_their_own_and_load_each_network_once(studio: Place) -> None:
    films = studio.film("--seed", 3, "--seed", 4)
    assert films.paths == ["film-3.mp4", "film-4.mp4"]
    assert films.loaded() == ["model", "vae"]
    assert len(films.computed("denoise")) == 8
    one = studio.film("--seed", 4)
    assert not one.computed()


def test_without_an_output_the_film_is_named_by_its_prompt(studio: Place) -> None:
    made = studio.do("run", "--model", studio.model, "--prompt", PROMPT, *SMALL)
    assert made.paths[0].startswith("a-cat-plays-the-piano-")
    assert (studio.root / made.paths[0]).is_file()


@pytest.mark.parametrize("words", ["一只戴着墨镜的猫在钢琴上弹奏欢快的爵士乐", "𠀀𠀁𠀂𠀃𠀄𠀅𠀆𠀇"])
def test_a_long_prompt_without_spaces_still_names_a_file(words: str, studio: Place) -> None:
    prompt = words * 12
    made = studio.do("run", "--model", studio.model, "--prompt", prompt, *SMALL)
    assert (studio.root / made.paths[0]).is_file()


def test_the_name_of_a_run_stands_for_its_frames(studio: Place) -> None:
    made = studio.film("--name", "cat")
    assert made.paths == ["film.mp4"]
    assert not studio.do("decode", "--from", "cat", "--output", "again.gif").computed()


def test_a_run_is_what_the_five_commands_give(studio: Place, place: Place) -> None:
    step = place.made("denoise", "--model", place.model, "--from", place.text(), *SMALL)
    place.made("decode", "--from", step)
    assert keys(place) == {key for key in keys(studio) if not key.startswith("convert/")}


def test_trimmed_frames_are_the_tail_of_a_longer_film(studio: Place) -> None:
    longer = studio.frames(studio.film("--num-frames", 9))
    trimmed = studio.frames(studio.film("--num-frames", 5, "--trim-first-frames", 1))
    assert np.array_equal(trimmed, longer[4:])


def test_a_longer_film_after_a_trimmed_one_is_whole(studio: Place) -> None:
    trimmed = studio.frames(studio.film("--num-frames", 5, "--trim-first-frames", 1))
    longer = studio.frames(studio.film("--num-frames", 9))
    assert len(longer) == 9
    assert np.array_equal(trimmed, longer[4:])


def test_trimming_is_recorded_in_entry_and_film(studio: Place) -> None:
    trimmed = studio.film("--trim-first-frames", 2)
    path = trimmed.computed("decode")[0]["path"]
    assert studio.entry(path).material.trim_first_frames == 2
    assert read_metadata(studio.root / "film.mp4")["comment"].count('"trim_first_frames":2') == 1


def test_an_image_is_encoded_for_the_trimmed_frames_too(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-i2v-a14b"))
    canvas = ("--image", DATA / "bad" / "alpha.png", "--trim-first-frames", 1, "--steps", 2)
    assert len(place.frames(place.film(*canvas))) == 5


@pytest.fixture(scope="module")
def experts(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder in which Wan2.2 A14B made a film in six steps with guidance 3 (low) and 4 (high)."""
    place = Place(tmp_path_factory.mktemp("a14b"), models("wan22-t2v-a14b"))
    first = place.film(*EXPERTS)
    assert first.loaded() == ["high_noise_model", "low_noise_model", "vae"]
    assert len(first.computed("denoise")) == 6
    return place


def test_another_low_guidance_recomputes_only_low_noise_steps(experts: Place) -> None:
    changed = experts.film(*EXPERTS, "--guide-scale", "2,4")
    assert changed.loaded() == ["low_noise_model", "vae"]
    steps = experts.chain(changed.computed("denoise")[-1]["path"])
    low = [step.key for step in steps if step.material.timestep < 875]
    assert 0 < len(low) < 6
    assert [event["key"] for event in changed.computed("denoise")] == low


def test_another_high_guidance_recomputes_every_step(experts: Place) -> None:
    changed = experts.film(*EXPERTS, "--guide-scale", "3,5")
    assert changed.loaded() == ["high_noise_model", "low_noise_model", "vae"]
    assert len(changed.computed("denoise")) == 6


def test_another_prompt_recomputes_the_steps_of_both_experts(experts: Place) -> None:
    changed = experts.film(*EXPERTS, prompt="a dog")
    assert len(changed.computed("denoise")) == 6


def test_three_seeds_load_each_expert_once(experts: Place) -> None:
    films = experts.film(*EXPERTS, "--seed", 7, "--seed", 8, "--seed", 9)
    assert films.loaded() == ["high_noise_model", "low_noise_model", "vae"]
    assert len(films.computed("denoise")) == 18
