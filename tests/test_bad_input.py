"""Bad input: a one-line error and the right exit code, with nothing computed or written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import DATA
from tests.workshop import PROMPT, SMALL, Models, Place

BAD = DATA / "bad"
SETTINGS = [
    (("--num-frames", 80), "frames must be 4n+1, got 80; use 77 or 81"),
    (("--width", 470), "width must be a multiple of 16, got 470; use 464 or 480"),
    (("--height", 833), "height must be a multiple of 16, got 833; use 832 or 848"),
    (("--width", 0), "width must be a multiple of 16, got 0; use 16"),
    (("--width", -16), "width"),
    (("--width", 16_000_000, "--height", 16_000_000), "width"),
    (("--num-frames", 4_000_000_001), "frames"),
    (("--steps", 0), "steps must be 1 to 1000, got 0"),
    (("--steps", 5, "--timesteps", "1000,500"), "steps"),
    (("--guide-scale", "nan"), "'nan'"),
    (("--guide-scale", "inf"), "'inf'"),
    (("--guide-scale", "1,2"), "has one expert"),
    (("--guide-scale", ""), "--guide-scale"),
    (("--shift", "nan"), "shift must be a number above 0"),
    (("--shift", 0), "shift must be a number above 0"),
    (("--seed", -1), "seed must not be negative"),
    (("--timesteps", "500,1000"), "timesteps must fall"),
    (("--trim-first-frames", -1), "trim-first-frames must not be negative"),
    (("--trim-first-frames", 100_000), "got 100000, which makes 400005; use 1 or 2"),
    (("--trim-first-frames", 2500), "at most 10001 frames to generate, got 2500"),
    (("--num-frames", 0), "frames must be 4n+1, got 0"),
    (("--noise", "nowhere.npy"), "noise nowhere.npy cannot be read"),
    (("--noise", "shape.npy"), "noise shape.npy must be floats of shape (16, 2, 4, 4)"),
    (("--noise", "whole.npy"), "noise whole.npy must be floats"),
    (("--noise", "nan.npy"), "noise nan.npy must be finite"),
    (("--noise", "pickle.npy"), "noise pickle.npy cannot be read"),
    (("--noise", "text.npy"), "noise text.npy cannot be read"),
    (("--noise", "pipe.npy"), "noise pipe.npy cannot be read as .npy: it is not a regular file"),
    (("--noise", "huge.npy"), "noise huge.npy must be floats of shape (16, 2, 4, 4), got"),
    (("--noise", "deep.npy"), "noise deep.npy cannot be read as .npy"),
    (("--noise", "good.npy", "--seed", 1), "--seed and --noise exclude each other"),
]


def write_noise(folder: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((16, 2, 4, 4)).astype(np.float32)
    np.save(folder / "good.npy", noise)
    np.save(folder / "shape.npy", noise[:, :1])
    np.save(folder / "whole.npy", np.zeros((16, 2, 4, 4), np.int32))
    np.save(folder / "nan.npy", np.where(noise > 2, np.nan, noise))
    np.save(folder / "pickle.npy", np.array([print], dtype=object), allow_pickle=True)
    (folder / "text.npy").write_text("no noise")
    if not (folder / "pipe.npy").exists():
        os.mkfifo(folder / "pipe.npy")
    for name, shape in (("huge", "(16, 1000000000, 4, 4)"), ("deep", "(" * 4000 + ")" * 4000)):
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
        (folder / f"{name}.npy").write_bytes(
            b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
        )


@pytest.mark.parametrize(("options", "says"), SETTINGS)
def test_run_refuses_an_invalid_setting_before_any_work(
    options: tuple[object, ...], says: str, place: Place
) -> None:
    write_noise(place.root)
    words = ("--model", place.model, "--prompt", PROMPT, "--output", "film.mp4")
    size = SMALL[:-2] if "--timesteps" in options else SMALL
    place.refuse("run", *words, *size, *options, code=2, says=says)


@pytest.mark.parametrize(("options", "says"), SETTINGS)
def test_denoise_refuses_an_invalid_setting(
    options: tuple[object, ...], says: str, studio: Place
) -> None:
    write_noise(studio.root)
    text = next(studio.cache.glob("encode-text/*"))
    size = SMALL[:-2] if "--timesteps" in options else SMALL
    studio.refuse("denoise", "--from", text, *size, *options, code=2, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--output", "film.avi"), "a video must end in .mp4, .webm, .gif or .png"),
        (("--output", "nowhere/film.mp4"), "no folder nowhere"),
        (("--output", "full"), "has files that are not frames"),
        (("--output", "x" * 300 + ".mp4"), "name"),
        (("--output", "film.mp4", "--fps", 0), "fps must be above 0"),
        (("--output", "film.mp4", "--fps", "nan"), "fps must be above 0"),
        (("--output", "film.mp4", "--fps", -3), "fps must be above 0"),
        (("--output", "film.mp4", "--fps", 1000), "at most 240"),
    ],
)
def test_an_invalid_output_is_refused_before_any_work(
    options: tuple[object, ...], says: str, studio: Place
) -> None:
    (studio.root / "full").mkdir()
    (studio.root / "full" / "letter.txt").write_text("dear")
    words = ("--model", studio.model, "--prompt", "new", *SMALL)
    studio.refuse("run", *words, *options, code=2, says=says)
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 1)
    studio.refuse("decode", "--from", step, *options, code=2, says=says)


@pytest.mark.parametrize(
    "reference",
    ["nothing", "abcdef01", "/", "/tmp", "", "..", "a*", "**", "*", "cache", "film.mp4", "\udcff"],
)
def test_a_missing_entry_is_refused(reference: str, studio: Place) -> None:
    for command in ("denoise", "decode"):
        studio.refuse(command, "--from", reference, code=1, says="")
    if reference != "film.mp4":
        studio.refuse("show", reference, code=1, says="")


def test_an_ambiguous_key_prefix_is_refused(studio: Place) -> None:
    key = next(studio.cache.glob("encode-text/*")).name
    twin = studio.cache / "decode" / (key[:6] + "0" * 26)
    shutil.copytree(studio.cache / "encode-text" / key, twin)
    studio.refuse("show", key[:6], code=2, says=f"{key[:6]} means 2 entries")


@pytest.mark.parametrize(
    ("command", "stage"),
    [("decode", "encode-text"), ("denoise", "decode"), ("denoise", "convert")],
)
def test_an_entry_of_the_wrong_stage_is_refused(
    command: str, stage: str, studio: Place, checkpoints: Path
) -> None:
    if stage == "convert":
        studio.do("convert", "--checkpoint-dir", checkpoints / "wan21-t2v")
    entry = next(studio.cache.glob(f"{stage}/*"))
    studio.refuse(command, "--from", entry, code=2, says=f"got one of {stage}")


def test_two_entries_of_one_stage_are_refused(studio: Place) -> None:
    one, other, *_ = (studio.cache / "denoise").iterdir()
    words = ("denoise", "--from", one, "--from", other)
    studio.refuse(*words, code=2, says="--from takes one entry of denoise")


def test_a_step_cannot_be_continued_with_another_seed_size_or_schedule(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 2)
    for more, says in (
        (("--seed", 1), "a step to continue from has its own noise"),
        (("--steps", 9), "steps of the run that step"),
        (("--width", 48), "width of the run"),
        (("--scheduler", "euler"), "scheduler of the run"),
        (("--stop-at", 1), "stop-at must be"),
        (("--stop-at", 5), "stop-at must be"),
    ):
        studio.refuse("denoise", "--from", step, *more, code=2, says=says)


@pytest.mark.parametrize(
    "command", [("encode-text", "--prompt", "x"), ("run", "--prompt", "x"), ("denoise",)]
)
def test_a_missing_model_is_refused(command: tuple[str, ...], place: Place) -> None:
    place.refuse(*command, "--model", "nowhere", code=1, says="`wanpipe convert`")
    (place.root / "empty").mkdir()
    place.refuse(*command, "--model", "empty", code=1, says="config.json is missing")


def test_a_checkpoint_given_as_a_model_is_refused_with_the_command_to_convert_it(
    place: Place, checkpoints: Path
) -> None:
    path = checkpoints / "wan21-t2v"
    says = f"convert the checkpoint with `wanpipe convert --checkpoint-dir {path}`"
    place.refuse("encode-text", "--prompt", "x", "--model", path, code=1, says=says)


def test_a_command_without_a_model_names_the_missing_option(place: Place) -> None:
    place.refuse("encode-text", "--prompt", "x", code=2, says="use --model")
    place.refuse("run", "--prompt", "x", code=2, says="give --model or --checkpoint-dir")
    place.refuse("decode", code=2, says="--from")


@pytest.mark.parametrize("name", ["wan22-i2v-a14b", "wan21-i2v"])
def test_an_image_to_video_model_needs_an_image(name: str, models: Models, place: Place) -> None:
    i2v = Place(place.root, models(name))
    words = ("--model", i2v.model, *SMALL)
    text = i2v.text()
    i2v.refuse("denoise", "--from", text, *words, code=2, says="needs an image")
    i2v.refuse("run", "--prompt", "new", *words, code=2, says="needs an image")


def test_a_text_to_video_model_refuses_an_image(models: Models, place: Place) -> None:
    image = ("--image", BAD / "alpha.png")
    i2v = Place(place.root, models("wan22-i2v-a14b"))
    entry = i2v.made("encode-image", "--model", i2v.model, *image, *SMALL[:-2])
    text = place.text()
    words = ("--model", place.model)
    place.refuse("encode-image", *words, *image, code=2, says="takes no image")
    place.refuse("run", *words, "--prompt", "new", *SMALL, *image, code=2, says="takes no image")
    both = ("--from", text, "--from", entry)
    place.refuse("denoise", *words, *both, *SMALL, code=2, says="takes no image")


def test_an_image_entry_of_another_vae_is_refused(models: Models, place: Place) -> None:
    ti2v, i2v = (Place(place.root, models(name)) for name in ("wan22-ti2v-5b", "wan22-i2v-a14b"))
    words = ("--image", BAD / "alpha.png", "--width", 32, "--height", 32)
    image = ti2v.made("encode-image", "--model", ti2v.model, *words)
    both = ("--from", i2v.text(), "--from", image)
    i2v.refuse("denoise", "--model", i2v.model, *both, code=2, says="made by another VAE")


def test_an_image_entry_of_another_size_is_refused(models: Models, place: Place) -> None:
    i2v = Place(place.root, models("wan22-i2v-a14b"))
    words = ("--image", BAD / "alpha.png", *SMALL[:-2])
    image = i2v.made("encode-image", "--model", i2v.model, *words)
    both = ("denoise", "--from", i2v.text(), "--from", image)
    i2v.refuse(*both, "--width", 48, code=2, says="is 32x32, the video to make 48x32")
    i2v.refuse(*both, "--num-frames", 9, code=2, says="is for 5 frames, the video to make has 9")


def test_a_text_entry_of_another_t5_is_refused(
    place: Place, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "model"
    words = ("convert", "--checkpoint-dir", checkpoints / "wan21-t2v", "--dtype", "float16")
    place.do(*words, "--output-dir", other)
    text = Place(place.root, other).text()
    says = "was made by another T5"
    place.refuse("denoise", "--model", place.model, "--from", text, *SMALL, code=2, says=says)


def test_a_step_of_another_vae_is_not_decoded(models: Models, studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--stop-at", 1)
    other = models("wan22-ti2v-5b")
    says = "was made for another VAE"
    studio.refuse("decode", "--from", step, "--model", other, code=2, says=says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.png", "no image at nowhere.png"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("bomb.png", "is too large"),
        ("folder.png", "cannot be read"),
        ("empty.png", "cannot be read"),
    ],
)
def test_an_unreadable_image_is_refused(
    name: str, says: str, models: Models, tmp_path: Path
) -> None:
    shutil.copyfile(BAD / "text.png", tmp_path / "text.png")
    (tmp_path / "cut.png").write_bytes((BAD / "alpha.png").read_bytes()[:2000])
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    place = Place(tmp_path, models("wan22-i2v-a14b"))
    words = ("--model", place.model, "--image", name)
    place.refuse("encode-image", *words, code=2, says=says)
    place.refuse("run", "--prompt", "new", *words, code=2, says=says)


@pytest.mark.parametrize(("option", "value"), [("--fit", "pad"), ("--exif", None)])
def test_options_of_an_image_need_one(option: str, value: str | None, place: Place) -> None:
    words = ("--model", place.model, "--prompt", "x", option, *([value] if value else []))
    place.refuse("run", *words, code=2, says=f"{option} tells how to take an image; give --image")


def test_a_config_with_another_schema_or_unknown_keys_is_refused(
    models: Models, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(models("wan21-t2v"), model)
    config = json.loads((model / "config.json").read_text())
    words = ("encode-text", "--prompt", "x", "--model", model)
    for change, says in (
        ({"schema": 99}, "has schema 99"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"variant": "wan9"}, "got wan9"),
    ):
        (model / "config.json").write_text(json.dumps({**config, **change}))
        place.refuse(*words, code=1, says=says)
    (model / "config.json").write_text(json.dumps(config))
    (model / "vae.safetensors").unlink()
    place.refuse(*words, code=1, says="vae.safetensors is missing")
