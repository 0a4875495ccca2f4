"""denoise: a chain of steps from noise, each an entry, in the order and for the inputs it names."""

import itertools

import numpy as np
import pytest

from tests.conftest import golden
from tests.workshop import SMALL, Models, Place


def last(place: Place, *more: object) -> np.ndarray:
    """The latent that the small run ends with."""
    path = place.made("denoise", "--from", place.text(), *SMALL, *more)
    return place.entry(path).read("latent")


def test_every_step_names_the_one_before_it(place: Place) -> None:
    chain = place.chain(place.made("denoise", "--from", place.text(), *SMALL))
    assert [step.step for step in chain] == [0, 1, 2, 3]
    assert chain[0].parent is None
    for before, step in itertools.pairwise(chain):
        assert step.parent == step.material.parent == before.key
        assert step.material.sigma == before.material.sigma_next
    assert chain[-1].material.sigma_next == 0
    assert chain[-1].shape("latent") == chain[-1].shape("x0") == (16, 2, 4, 4)


def test_a_seed_gives_the_same_noise_every_time(place: Place, tmp_path_factory) -> None:
    other = Place(tmp_path_factory.mktemp("other"), place.model)
    assert np.array_equal(last(place, "--seed", 7), last(other, "--seed", 7))
    assert not np.array_equal(last(place, "--seed", 7), last(place, "--seed", 8))


def test_given_noise_is_named_by_its_numbers_not_its_file(place: Place) -> None:
    noise = np.random.default_rng(0).standard_normal((16, 2, 4, 4))
    np.save(place.root / "a.npy", noise.astype(np.float32))
    np.save(place.root / "b.npy", np.asfortranarray(noise.astype(np.float32)))
    np.save(place.root / "c.npy", noise.astype(np.float32).astype(">f8"))
    first = last(place, "--noise", "a.npy")
    for name in ("b.npy", "c.npy"):
        again = place.do("denoise", "--from", place.text(), *SMALL, "--noise", name)
        assert not again.computed()
    assert not np.array_equal(first, last(place))


def test_guidance_one_skips_the_negative_prompt(place: Place) -> None:
    texts = [
        place.made("encode-text", "--model", place.model, "--prompt", "a", *more)
        for more in ((), ("--no-negative-prompt",))
    ]
    latents = [
        place.entry(place.made("denoise", "--from", text, *SMALL, "--guide-scale", 1)).read(
            "latent"
        )
        for text in texts
    ]
    assert np.array_equal(*latents)


def test_a_step_does_not_depend_on_how_many_follow(place: Place) -> None:
    options = (*SMALL[:-2], "--scheduler", "euler", "--timesteps")
    words = ("denoise", "--from", place.text(), *options)
    long = place.chain(place.made(*words, "1000,750,500,250"))
    short = place.chain(place.made(*words, "1000,750,500"))
    assert [step.key for step in short[:2]] == [step.key for step in long[:2]]
    assert short[2].key != long[2].key


def test_an_explicit_grid_is_the_even_one_it_equals(place: Place) -> None:
    words = ("denoise", "--from", place.text(), *SMALL[:-2], "--scheduler", "euler")
    grid = place.made(*words, "--timesteps", "1000,750,500,250")
    assert place.made(*words, "--steps", 4) == grid
    timesteps = [step.material.timestep for step in place.chain(grid)]
    assert timesteps[0] == 1000
    assert len(timesteps) == 4


@pytest.mark.parametrize("name", ["wan22-i2v-a14b", "wan21-i2v", "wan22-ti2v-5b"])
def test_a_run_takes_the_canvas_of_its_image(name: str, models: Models, place: Place) -> None:
    place = Place(place.root, models(name))
    canvas = ("--width", 64, "--height", 32, "--num-frames", 5)
    from tests.conftest import DATA

    picture = ("--image", DATA / "bad" / "alpha.png")
    image = place.made("encode-image", "--model", place.model, *picture, *canvas)
    frames = ("--num-frames", 5) if name == "wan22-ti2v-5b" else ()
    words = ("--from", place.text(), "--from", image, "--steps", 2, *frames)
    step = place.entry(place.made("denoise", *words))
    settings = place.run(step.path).settings
    assert (settings.width, settings.height, settings.num_frames) == (64, 32, 5)
    assert step.inputs == {"text": place.text().name, "image": image.name}


def test_the_first_frame_of_ti2v_is_the_images_at_every_step(models: Models, place: Place) -> None:
    place = Place(place.root, models("wan22-ti2v-5b"))
    from tests.conftest import DATA

    picture = ("--image", DATA / "bad" / "alpha.png", "--width", 32, "--height", 32)
    image = place.made("encode-image", "--model", place.model, *picture)
    words = ("--from", place.text(), "--from", image, "--steps", 3, "--num-frames", 9)
    expected = place.entry(image).read("latent")
    for step in place.chain(place.made("denoise", *words)):
        assert np.array_equal(step.read("latent")[:, :1], expected)


def test_timesteps_are_the_official_ones(place: Place) -> None:
    text = place.text()
    words = ("--width", 48, "--height", 32, "--num-frames", 5, "--steps", 5)
    chain = place.chain(place.made("denoise", "--from", text, *words))
    expected = golden("wan21-t2v/e2e")["timesteps"].tolist()
    assert [step.material.timestep for step in chain] == expected
