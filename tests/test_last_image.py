"""A last image: which models take it, what is encoded, and that every command works with it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.golden_runs import write_lora
from tests.test_show import show
from tests.workshop import SMALL, Models, Place
from wanpipe.media.video import read_metadata

CANVAS = SMALL[:-2]
BOTH = ("--image", "first.png", "--last-image", "last.png")
TAKING = ("wan21-flf2v", "wan22-i2v-a14b")


def draw(root: Path) -> None:
    """Draw two images of one size, and one that is wider."""
    pixels = np.random.Generator(np.random.Philox(8)).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(root / "wide.png")
    Image.fromarray(pixels[:, 16:48]).save(root / "middle.png")
    Image.fromarray(pixels[::-1, :32]).save(root / "first.png")
    Image.fromarray(pixels[:, 32:]).save(root / "last.png")


def place_of(family: str, models: Models, root: Path) -> Place:
    draw(root)
    return Place(root, models(family))


@pytest.fixture
def a14b(models: Models, tmp_path: Path) -> Place:
    return place_of("wan22-i2v-a14b", models, tmp_path)


@pytest.fixture
def flf2v(models: Models, tmp_path: Path) -> Place:
    return place_of("wan21-flf2v", models, tmp_path)


def encode(place: Place, *images: object) -> Path:
    return place.made("encode-image", "--model", place.model, *CANVAS, *images)


def test_flf2v_encodes_both_images_for_the_vae_and_for_clip(flf2v: Place) -> None:
    both = flf2v.entry(encode(flf2v, *BOTH))
    assert sorted(both.names) == ["clip", "condition"]
    assert both.shape("clip")[0] == 514
    swapped = encode(flf2v, "--image", "last.png", "--last-image", "first.png")
    tokens, others = both.read("clip"), flf2v.entry(swapped).read("clip")
    assert np.array_equal(tokens[:257], others[257:])
    assert np.array_equal(tokens[257:], others[:257])


@pytest.mark.parametrize(
    ("images", "first", "last"),
    [
        (BOTH, True, True),
        (BOTH[:2], True, False),
        (BOTH[2:], False, True),
    ],
)
def test_the_mask_marks_the_frames_that_are_given(
    images: tuple[str, ...], first: bool, last: bool, a14b: Place
) -> None:
    entry = a14b.entry(encode(a14b, *images, "--num-frames", 9))
    mask = np.zeros((4, 3, 4, 4), np.float32)
    mask[:, 0] = first
    mask[3, 2] = last
    assert np.array_equal(entry.read("condition")[:4], mask)
    assert [*entry.names] == ["condition"]


def test_a_last_image_alone_leaves_a_gray_first_frame(a14b: Place) -> None:
    alone, both = (a14b.entry(encode(a14b, *images)) for images in (BOTH[2:], BOTH))
    latents = [entry.read("condition")[4:] for entry in (alone, both)]
    assert not np.array_equal(latents[0][:, 0], latents[1][:, 0])
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(a14b.root / "gray.png")
    gray = a14b.entry(encode(a14b, "--image", "gray.png", *BOTH[2:])).read("condition")[4:]
    assert np.abs(gray - latents[0]).max() < 0.05 < np.abs(latents[1] - latents[0]).max()


def test_a_last_image_of_another_size_covers_the_canvas(a14b: Place) -> None:
    made = {
        file: encode(a14b, "--image", "first.png", "--last-image", f"{file}.png")
        for file in ("wide", "middle")
    }
    assert made["wide"] == made["middle"]
    words = ("--image", "first.png", "--last-image", "wide.png", "--fit")
    fits = {fit: encode(a14b, *words, fit) for fit in ("cover", "stretch", "pad", "official")}
    assert fits["cover"] == made["wide"]
    assert len(set(fits.values())) == 4


def test_images_of_one_size_are_fitted_alike(a14b: Place) -> None:
    Image.open(a14b.root / "wide.png").transpose(Image.Transpose.ROTATE_180).save(
        a14b.root / "end.png"
    )
    words = ("encode-image", "--model", a14b.model, "--image", "wide.png", "--last-image")
    made = [
        a14b.do(*words, "end.png", "--num-frames", 5, *fit, "--dry-run").paths
        for fit in ((), ("--fit", "stretch"), ("--fit", "official"))
    ]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(
    ("family", "images", "says"),
    [
        ("wan21-i2v", BOTH, "takes no last image; use Wan2.1-FLF2V-14B-720P or Wan2.2-I2V-A14B"),
        ("wan21-i2v", BOTH[2:], "takes no last image; use Wan2.1-FLF2V-14B-720P"),
        ("wan22-ti2v-5b", BOTH, "takes no last image; use Wan2.1-FLF2V-14B-720P"),
        ("wan21-t2v", BOTH[2:], "takes no image"),
        ("wan21-flf2v", BOTH[:2], "got only the first one; give the other with --last-image"),
        ("wan21-flf2v", BOTH[2:], "got only the last one; give the other with --image"),
        ("wan22-i2v-a14b", (), "no image is given; use --image"),
        (
            "wan22-i2v-a14b",
            (*BOTH, "--num-frames", 1),
            "num-frames must be at least 5 with a last image, got 1",
        ),
    ],
)
def test_images_that_a_model_does_not_take_are_refused_before_weights_load(
    family: str, images: tuple[str, ...], says: str, models: Models, tmp_path: Path
) -> None:
    place = place_of(family, models, tmp_path)
    words = ("--model", place.model, *CANVAS, *images)
    place.refuse("encode-image", *words, code=2, says=says)
    if images:
        place.refuse("run", "--prompt", "new", *words, code=2, says=says)


def test_entries_of_images_that_a_model_does_not_take_are_refused(
    models: Models, tmp_path: Path
) -> None:
    draw(tmp_path)
    families = ("wan21-flf2v", "wan21-i2v", "wan22-i2v-a14b")
    flf2v, i2v, a14b = (Place(tmp_path, models(family)) for family in families)
    entries = {
        "both": encode(flf2v, *BOTH),
        "first": encode(i2v, *BOTH[:2]),
        "alone": encode(a14b, *BOTH[2:]),
    }
    text = flf2v.text()
    for place, name, says in (
        (i2v, "both", "wan2.1-i2v-14b-480p takes no last image; use Wan2.1-FLF2V-14B-720P"),
        (flf2v, "first", "needs a first and a last image, got only the first one"),
        (flf2v, "alone", "was made by another CLIP"),
        (a14b, "both", "was made by another CLIP"),
    ):
        sources = ("--from", text, "--from", entries[name])
        place.refuse("denoise", "--model", place.model, *sources, code=2, says=says)


@pytest.mark.parametrize("family", TAKING)
def test_a_run_with_a_last_image_is_what_the_commands_give(
    family: str, models: Models, tmp_path: Path
) -> None:
    place = place_of(family, models, tmp_path)
    image = encode(place, *BOTH)
    sources = ("--from", place.text(), "--from", image)
    step = place.made("denoise", "--model", place.model, *sources, "--steps", 4)
    film = place.film(*BOTH)
    assert [event["stage"] for event in film.computed()] == ["decode"]
    assert not place.film(*BOTH).computed()
    assert place.entry(step).inputs["image"] == image.name
    comment = read_metadata(place.root / "film.mp4")["comment"]
    assert '"image":"first.png","last_image":"last.png"' in comment


@pytest.mark.parametrize("family", TAKING)
def test_a_run_with_a_last_image_is_resumed_and_branches(
    family: str, models: Models, tmp_path: Path
) -> None:
    place = place_of(family, models, tmp_path)
    sources = ("--from", place.text(), "--from", encode(place, *BOTH))
    words = ("denoise", "--model", place.model, *sources, "--steps", 4)
    straight = place.chain(place.made(*words))
    early = place.chain(place.made(*words, "--force", "--stop-at", 2))[-1]
    resumed = place.chain(place.made("denoise", "--from", early.key, "--force"))
    assert [step.record.digest for step in resumed] == [step.record.digest for step in straight]
    other = encode(place, "--image", "first.png", "--last-image", "middle.png")
    branch = place.chain(place.made("denoise", "--from", early.key, "--from", other))
    assert [step.key for step in branch[:2]] == [step.key for step in straight[:2]]
    assert not np.array_equal(branch[-1].read("latent"), straight[-1].read("latent"))


@pytest.mark.parametrize("images", [BOTH, BOTH[2:]])
def test_the_names_of_the_images_are_shown_listed_and_exported(
    images: tuple[str, ...], a14b: Place, tmp_path: Path
) -> None:
    alone, film = images == BOTH[2:], a14b.film(*images)
    [entry] = (a14b.cache / "encode-image").iterdir()
    rows = show(a14b, entry)
    assert rows["last_image"] == "last.png"
    assert rows.get("image") == (None if alone else "first.png")
    assert rows["material last_pixels"] == a14b.entry(entry).material.last_pixels
    step = film.computed("denoise")[-1]["path"]
    name = "to last.png" if alone else "first.png to last.png"
    assert show(a14b, step)["from image"] == f"encode-image/{entry.name}: {name}"
    a14b.do("cache", "export", step, "all.zip")
    other = Place(tmp_path / "elsewhere", a14b.model)
    other.root.mkdir()
    other.do("cache", "import", tmp_path / "all.zip")
    copy = other.entry(other.cache / "encode-image" / entry.name)
    assert (copy.material, copy.made) == (a14b.entry(entry).material, a14b.entry(entry).made)


def test_what_differs_in_a_last_image_is_explained(a14b: Place) -> None:
    encode(a14b, *BOTH)
    words = ("encode-image", "--model", a14b.model, *CANVAS, "--dry-run", "--image", "first.png")
    for more in ((), ("--last-image", "middle.png")):
        [miss] = [event for event in a14b.do(*words, *more).events if event["event"] == "missing"]
        assert [one["what"] for one in miss["differences"]] == ["last picture"]


@pytest.mark.parametrize("bits", [None, 8])
def test_flf2v_streams_and_takes_loras_like_every_model(
    bits: int | None, checkpoints: Path, models: Models, tmp_path: Path
) -> None:
    place = place_of("wan21-flf2v", models, tmp_path)
    if bits:
        source = ("--checkpoint-dir", checkpoints / "wan21-flf2v", "--dtype", "float32")
        small = ("--quantize", "--bits", bits, "--group-size", 32)
        place = Place(tmp_path, place.made("convert", *source, *small))
    write_lora(place.root / "style.safetensors", 5)
    sources = ("--from", place.text(), "--from", encode(place, *BOTH))
    lora = ("--lora", "style.safetensors", 0.5)
    words = ("denoise", "--model", place.model, *sources, "--steps", 2, *lora)
    plan = place.do(*words, "--dry-run").events
    [told] = [event for event in plan if event["event"] == "forecast"]
    whole = place.entry(place.made(*words))
    result = place.do(*words, "--force", "--memory", told["peak_bytes"] - 1)
    assert [event["component"] for event in result.events if event["event"] == "memory"] == [
        "model"
    ]
    assert place.entry(result.paths[-1]).record.digest == whole.record.digest
