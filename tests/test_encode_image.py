"""encode-image: an image as the official code reads it, on the canvas that was asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.conftest import DATA, golden
from tests.workshop import Models, Place

UNUSUAL = ["alpha.png", "gray16.png", "cmyk.jpg", "animated.gif", "one_by_one.png"]
CANVAS = ("--width", 64, "--height", 48, "--num-frames", 5)


@pytest.fixture
def i2v(models: Models, tmp_path: Path) -> Place:
    return Place(tmp_path, models("wan22-i2v-a14b"))


@pytest.fixture
def ti2v(models: Models, tmp_path: Path) -> Place:
    return Place(tmp_path, models("wan22-ti2v-5b"))


def encode(place: Place, image: object, *more: object) -> Path:
    return place.made("encode-image", "--model", place.model, "--image", image, *more)


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_is_the_pixels_the_official_code_reads(name: str, i2v: Place) -> None:
    entry = encode(i2v, DATA / "bad" / name, *CANVAS)
    pixels = golden("bad/images")[name]
    Image.fromarray(pixels).save(i2v.root / "plain.png")
    assert encode(i2v, "plain.png", *CANVAS) == entry
    condition = i2v.entry(entry).read("condition")
    assert condition.shape == (20, 2, 6, 8)
    assert np.isfinite(condition).all()


def test_the_orientation_that_a_camera_notes_is_ignored(i2v: Place) -> None:
    image = Image.open(DATA / "bad" / "alpha.png").convert("RGB")
    image.save(i2v.root / "plain.png")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(i2v.root / "turned.png", exif=exif)
    plain = encode(i2v, "plain.png", *CANVAS)
    assert plain == encode(i2v, "turned.png", *CANVAS)
    assert plain == encode(i2v, "plain.png", *CANVAS, "--exif")
    told = i2v.do("encode-image", "--model", i2v.model, "--image", "turned.png", *CANVAS).events
    assert ["--exif" in event["text"] for event in told if event["event"] == "remark"] == [True]


def test_exif_turns_an_image_and_its_canvas(i2v: Place) -> None:
    image = Image.open(DATA / "bad" / "cmyk.jpg").convert("RGB").resize((64, 32))
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(i2v.root / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_90).save(i2v.root / "upright.png")
    upright = encode(i2v, "upright.png", *CANVAS)
    assert encode(i2v, "turned.png", *CANVAS, "--exif") == upright
    assert encode(i2v, "turned.png", *CANVAS) != upright
    words = ("encode-image", "--model", i2v.model, "--num-frames", 5, "--dry-run", "--image")
    assert i2v.do(*words, "turned.png", "--exif").paths == i2v.do(*words, "upright.png").paths


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--width", 0), "width must be a multiple of 16, got 0"),
        (("--height", 0), "height must be a multiple of 16, got 0"),
        (("--num-frames", 0), "frames must be 4n+1, got 0"),
        (("--width", 16384, "--height", 16384), "at most 16777216 pixels, got 16384x16384"),
    ],
)
def test_zero_and_absurd_sizes_are_refused(more: tuple[object, ...], says: str, i2v: Place) -> None:
    image = ("--model", i2v.model, "--image", DATA / "bad" / "alpha.png")
    i2v.refuse("encode-image", *image, *more, code=2, says=says)
    i2v.refuse("run", "--prompt", "new", *image, *more, code=2, says=says)


@pytest.mark.parametrize("size", [(65500, 1), (1, 65500), (80, 1_000_000), (65500, 60)])
def test_an_image_whose_aspect_gives_no_canvas_is_refused_before_it_is_decoded(
    size: tuple[int, int], i2v: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", size).save(i2v.root / "long.png")

    def decode(*_: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    words = ("--model", i2v.model, "--image", "long.png")
    i2v.refuse("encode-image", *words, code=2, says="no canvas within 921600 pixels")


def test_a_copied_or_renamed_image_is_the_same_entry(i2v: Place) -> None:
    (i2v.root / "copy").write_bytes((DATA / "bad" / "alpha.png").read_bytes())
    again = ("encode-image", "--model", i2v.model, "--image", "copy", *CANVAS)
    encode(i2v, DATA / "bad" / "alpha.png", *CANVAS)
    assert not i2v.do(*again).computed()


def test_without_a_canvas_the_image_keeps_its_aspect(i2v: Place) -> None:
    Image.new("RGB", (300, 100), (10, 200, 90)).save(i2v.root / "wide.png")
    dry = i2v.do("encode-image", "--model", i2v.model, "--image", "wide.png", "--dry-run")
    assert not dry.computed()
    film = i2v.do(
        *("run", "--model", i2v.model, "--image", "wide.png", "--prompt", "x", "--dry-run"),
        *("--output", "film.mp4"),
    )
    planned = [event["stage"] for event in film.events if event["event"] == "planned"]
    assert planned[:2] == ["encode-text", "encode-image"]


@pytest.mark.parametrize("fit", ["stretch", "cover", "pad"])
def test_each_fit_is_an_entry_of_its_own_on_the_canvas_asked_for(fit: str, i2v: Place) -> None:
    image = np.zeros((40, 160, 3), np.uint8)
    image[:, :80, 0], image[20:, :, 1] = 255, 200
    Image.fromarray(image).save(i2v.root / "wide.png")
    made = {mode: encode(i2v, "wide.png", *CANVAS, "--fit", mode) for mode in ("cover", fit)}
    assert i2v.entry(made[fit]).material.width == 64
    assert (made[fit] == made["cover"]) == (fit == "cover")
    assert encode(i2v, "wide.png", *CANVAS) == made["cover"]


def test_ti2v_encodes_the_image_alone_whatever_the_length(ti2v: Place) -> None:
    image = DATA / "bad" / "alpha.png"
    short, long = (
        encode(ti2v, image, *CANVAS[:2], "--height", 32, "--num-frames", n) for n in (5, 9)
    )
    assert short == long
    assert ti2v.entry(short).shape("latent") == (48, 1, 2, 4)


def test_wan21_adds_what_clip_sees(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan21-i2v"))
    entry = place.entry(encode(place, DATA / "bad" / "alpha.png", *CANVAS))
    assert sorted(entry.names) == ["clip", "condition"]
    assert entry.shape("clip")[0] == 257


def test_experts_that_share_a_vae_share_image_entries(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-i2v-a14b"))
    first = place.do(
        "encode-image", "--model", place.model, "--image", DATA / "bad" / "cmyk.jpg", *CANVAS
    )
    assert first.loaded() == ["vae_encoder"] or first.loaded() == ["vae"]
