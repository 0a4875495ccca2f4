"""run --like: a video is made again from its record, bit for bit, with what is given changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from stages import run
from tests.commands import Result
from tests.test_encode_video import furnished
from tests.test_lora_runs import STYLE
from tests.test_lora_runs import furnished as with_loras
from tests.workshop import PROMPT, SMALL, Models, Place, inside
from wanpipe.cache.gallery import remake
from wanpipe.cli.like import SETTINGS
from wanpipe.denoising.settings import CHANGING
from wanpipe.media.video import read_metadata, write_video
from wanpipe.runtime.documents import decode
from wanpipe.store import Settings
from wanpipe.store.keys import canonical

OUT = ("--output", "again.gif")


def like(place: Place, *more: object, video: object = "film.mp4") -> Result:
    return place.do("run", "--like", video, *OUT, *more)


def lineage(place: Place, name: str = "film.mp4") -> dict[str, Any]:
    """The record in the metadata of a video."""
    comment = read_metadata(place.root / name)["comment"]
    found: dict[str, Any] = decode(comment, dict[str, Any])["wanpipe"]
    return found


def remarks(result: Result) -> list[str]:
    return [event["text"] for event in result.events if event["event"] == "remark"]


def check_anew(place: Place, *more: object) -> Result:
    """Make film.mp4 again in an empty cache, and check that it is the same, bit for bit."""
    made = like(place, "--cache", "empty", "--model", place.model, *more)
    before, after = lineage(place), lineage(place, "again.gif")
    assert made.computed("denoise")
    assert (after["denoise"], after["decode"]) == (before["denoise"], before["decode"])
    for stage, name in (("denoise", "latent"), ("decode", "frames")):
        old = place.entry(f"cache/{stage}/{before[stage]}")
        new = place.entry(f"empty/{stage}/{before[stage]}")
        assert np.array_equal(old.read(name), new.read(name))
    assert not [line for line in remarks(made) if "film.mp4" in line]
    return made


def test_the_same_again_is_found_in_the_cache(studio: Place) -> None:
    studio.film("--seed", 3, "--guide-scale", 4, "--no-negative-prompt", "--fps", 8)
    again = like(studio)
    assert not again.computed()
    assert not again.loaded()
    assert lineage(studio, "again.gif") == lineage(studio)
    assert lineage(studio)["fps"] == 8


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--seed", 123456789012345678901234567890, "--negative-prompt", "bad, ugly"),
        ("--no-negative-prompt", "--scheduler", "euler", "--shift", 3, "--guide-scale", 2.5),
        ("--timesteps", "1000,750,500,250", "--trim-first-frames", 1),
        ("--steps", 10, "--step-cache", 0.05),
        ("--nag", 5, "--nag-tau", 3, "--nag-alpha", 0.5, "--guide-scale", 1),
    ],
)
def test_in_an_empty_cache_it_has_the_same_keys_and_bits(
    options: tuple[object, ...], studio: Place
) -> None:
    studio.film(*options)
    check_anew(studio)


def test_what_is_given_is_changed_and_nothing_else(studio: Place) -> None:
    studio.film("--seed", 3, "--guide-scale", 4, "--timesteps", "1000,750,500,250")
    before = lineage(studio)
    like(studio, "--seed", 7)
    assert {**lineage(studio, "again.gif"), **moved(before)} == {**before, "seed": 7}
    made = like(studio, "--prompt", "a dog", "--steps", 2, "--width", 48)
    after = lineage(studio, "again.gif")
    assert (after["prompt"], after["steps"], after["timesteps"]) == ("a dog", 2, None)
    assert (after["width"], after["height"], after["seed"]) == (48, 32, 3)
    assert after["guide_scale"] == before["guide_scale"]
    assert not remarks(made)


def moved(before: dict[str, Any]) -> dict[str, Any]:
    """The keys of results, which a change moves."""
    return {name: before[name] for name in ("denoise", "decode")}


def test_seeds_of_a_range_and_a_prompt_of_standard_input_change_it_too(studio: Place) -> None:
    made = studio.do("run", "--like", "film.mp4", "--seed", "4-5", "--output", "{seed}.gif")
    assert made.paths == ["4.gif", "5.gif"]
    assert lineage(studio, "5.gif")["prompt"] == PROMPT


def test_a_run_a_step_and_frames_are_made_again_too(studio: Place) -> None:
    made = lineage(studio)
    run = studio.run(made["denoise"])
    for reference in (run.key[:12], made["denoise"][:12], f"cache/decode/{made['decode']}"):
        again = like(studio, video=reference)
        assert not again.computed()
        assert lineage(studio, "again.gif")["denoise"] == made["denoise"]
    text = studio.text()
    studio.refuse("run", "--like", text, code=2, says="--like takes a video, a run, a step or")


def test_a_draft_is_finished(studio: Place) -> None:
    text = studio.text()
    words = ("denoise", "--model", studio.model, "--from", text, *SMALL, "--seed", 5)
    step = studio.made(*words, "--stop-at", 2)
    studio.do("decode", "--from", step, "--output", "draft.gif")
    made = like(studio, video="draft.gif")
    assert len(made.computed("denoise")) == 2
    assert remarks(made) == ["draft.gif shows step 2 of 4; all steps are made"]


def test_an_image_is_found_by_its_entry_or_asked_for(models: Models, tmp_path: Path) -> None:
    place = furnished("wan22-i2v-a14b", models, tmp_path)
    place.film("--image", "wide.png", "--last-image", "last.png", "--steps", 2)
    (place.root / "wide.png").rename(place.root / "moved.png")
    assert not like(place).computed()
    for more, why in (
        (("--cache", "empty", "--model", place.model), "is not in the cache"),
        (("--width", 48), "has another size or length"),
        (("--num-frames", 9), "has another size or length"),
    ):
        says = "made from --image “wide.png” --last-image “last.png”, and its entry encode-image/"
        place.refuse("run", "--like", "film.mp4", *more, code=2, says=says)
        place.refuse("run", "--like", "film.mp4", *more, code=2, says=why)
    (place.root / "moved.png").rename(place.root / "wide.png")
    check_anew(place, "--image", "wide.png", "--last-image", "last.png")
    other = like(place, "--image", "first.png")
    assert place.entry(other.computed("encode-image")[0]["path"]).made.fit == "cover"


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("wan21-t2v", ("--video", "clip", "--strength", 0.5)),
        ("wan21-vace", ("--video", "clip", "--mask", "right.png", "--reference", "wide.png")),
        ("wan21-vace", ("--keyframe", 0, "first.png", "--keyframe", -1, "last.png")),
    ],
)
def test_a_video_is_found_by_its_entry_or_asked_for(
    family: str, options: tuple[object, ...], models: Models, tmp_path: Path
) -> None:
    place = furnished(family, models, tmp_path)
    place.film(*options)
    assert not like(place).computed()
    empty = ("run", "--like", "film.mp4", "--cache", "empty", "--model", place.model)
    place.refuse(*empty, code=2, says="give the files again, with their options")
    check_anew(place, *options[:2] if family == "wan21-t2v" else options)


def test_vace_makes_a_video_from_nothing_again(models: Models, tmp_path: Path) -> None:
    place = furnished("wan21-vace", models, tmp_path)
    place.film()
    assert not like(place).computed()
    check_anew(place)
    assert lineage(place, "again.gif") == lineage(place)


def test_loras_are_found_by_their_hash_or_asked_for(place: Place) -> None:
    gallery = with_loras(place)
    gallery.film("--lora", STYLE, 0.5)
    assert not like(gallery).computed()
    empty = ("--cache", "empty", "--model", gallery.model)
    says = f"was made with LoRA “{STYLE[:39]}"
    gallery.refuse("run", "--like", "film.mp4", *empty, code=2, says=says)
    check_anew(gallery, "--lora", STYLE, 0.5)
    (gallery.root / STYLE).write_bytes(b"other")
    gallery.refuse("run", "--like", "film.mp4", code=1, says=STYLE)


def test_another_model_is_told(studio: Place, checkpoints: Path) -> None:
    empty = ("run", "--like", "film.mp4", "--cache", "empty")
    studio.refuse(*empty, code=2, says="is not known in empty; use --model or --checkpoint-dir")
    half = studio.made(
        "convert", "--checkpoint-dir", checkpoints / "wan21-t2v", "--dtype", "float16"
    )
    made = like(studio, "--model", half)
    assert [line.split(", that of")[0] for line in remarks(made)] == [
        f"step {lineage(studio, 'again.gif')['denoise'][:8]} is not "
        f"{lineage(studio)['denoise'][:8]}"
    ]


def test_a_branch_and_noise_of_a_file_are_told(studio: Place) -> None:
    half = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 2)
    other = studio.made("denoise", "--from", half, "--guide-scale", 2)
    studio.do("decode", "--from", other, "--output", "branch.gif")
    says = f"branch.gif branches from step {half.name[:8]} of another run"
    studio.refuse("run", "--like", "branch.gif", code=2, says=says)
    says = "with what it changes, which `wanpipe show branch.gif` lists"
    studio.refuse("run", "--like", "branch.gif", code=2, says=says)
    np.save(studio.root / "noise.npy", np.random.default_rng(1).normal(size=(16, 2, 4, 4)))
    studio.film("--noise", "noise.npy")
    studio.refuse("run", "--like", "film.mp4", code=2, says="give it with --noise, or use --seed")
    assert not like(studio, "--noise", "noise.npy").computed()


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": "../evil"}, "names a scheduler that wanpipe does not have"),
    ({"width": "32"}, "cannot be used: Expected `int`, got `str`"),
    ({"width": 10**9}, "width"),
    ({"width": 33}, "width"),
    ({"num_frames": 1_000_001}, "frames must be at most"),
    ({"steps": 0}, "cannot be used"),
    ({"steps": 10**12}, "cannot be used"),
    ({"timesteps": [1, 2]}, "timesteps"),
    ({"shift": -1}, "shift"),
    ({"fps": 1e9}, "fps must be above"),
    ({"seed": -1}, "cannot be used"),
    ({"step_cache": 7}, "step-cache must be above 0"),
    ({"strength": 9}, "strength must be above 0"),
    ({"guide_scale": [1, 2, 3]}, "cannot be used"),
    ({"experts": {"model": "../../etc"}}, "cannot be used"),
    ({"experts": {"model": "0" * 32}, "denoise": "1" * 32}, "is not known in cache"),
    ({"denoise": "../.."}, "cannot be used"),
    ({"encode-image": "../../../etc"}, "cannot be used"),
    ({"fit": "evil"}, "cannot be used"),
    ({"prompt": None}, "no prompt is recorded"),
    ({"prompt": "a\0b"}, "a prompt must be text, got a NUL"),
    ({"loras": [{"name": "/etc/passwd", "hash": "0" * 32, "strength": 1}]}, "no run in cache has"),
    (
        {"loras": [{"name": "x", "hash": "0" * 32, "strength": 1, "expert": "\x1b[2J"}]},
        "which is no transformer",
    ),
]


@pytest.mark.parametrize(("change", "says"), HOSTILE, ids=lambda value: str(value)[:30])
def test_a_strangers_record_is_checked_like_options(
    change: dict[str, Any], says: str, studio: Place
) -> None:
    comment = canonical({"wanpipe": {**lineage(studio), **change}}).decode()
    write_video(studio.root / "x.gif", [np.zeros((1, 8, 8, 3), np.uint8)], 8, {"comment": comment})
    result = inside("run", "--like", "x.gif", cwd=studio.root)
    assert result.code in (1, 2), result.stderr
    assert says in result.stderr.splitlines()[-1]
    assert all(line.isprintable() and len(line) < 400 for line in result.stderr.splitlines())
    assert not result.paths


def test_a_prompt_of_a_hyphen_in_a_record_reads_nothing(studio: Place) -> None:
    comment = json.dumps({"wanpipe": {**lineage(studio), "prompt": "-"}})
    write_video(studio.root / "x.gif", [np.zeros((1, 8, 8, 3), np.uint8)], 8, {"comment": comment})
    like(studio, video="x.gif")
    assert lineage(studio, "again.gif")["prompt"] == "-"


def test_files_that_are_no_video_are_refused(studio: Place) -> None:
    shutil.copyfile(studio.model / "config.json", studio.root / "notes.txt")
    write_video(studio.root / "bare.gif", [np.zeros((1, 8, 8, 3), np.uint8)], 8)
    for name, code, says in (
        ("nowhere.mp4", 2, "no video at nowhere.mp4"),
        ("notes.txt", 1, "notes.txt cannot be read as a video"),
        ("bare.gif", 2, "has no record of how it was made"),
        ("0000000", 1, "no entry 0000000"),
    ):
        studio.refuse("run", "--like", name, code=code, says=says)


def test_every_setting_of_a_run_is_an_option_of_the_commands_that_make_it_again() -> None:
    names = {field.name for field in structs.fields(Settings)} - {"loras", "reference_frames"}
    assert names <= {*SETTINGS} <= {option.name for option in run.command.params}
    assert {*CHANGING} - {"loras"} <= {*remake.CHANGING} <= {*SETTINGS}
