"""The judge says what clips show, and is not fooled."""

import numpy as np
import pytest

from wanpipe.demo import judge, world


def right(scores: dict[str, bool | None]) -> bool:
    return all(value in (True, None) for value in scores.values())


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_every_rendered_test_scene_is_read_right(start: int) -> None:
    for i, (_, scene) in enumerate(world.test_prompts()[start : start + 10]):
        assert right(judge.score(world.render(scene, seed=start + i), scene)), scene


@pytest.mark.parametrize("shape", world.SHAPES)
def test_outlines_count_as_their_shape_and_are_told_apart(shape: str) -> None:
    scene = world.Scene(shape=shape, colour="red", motion="right", background="white", speed="fast")
    drawn, filled = (judge.look(world.render(scene, outline=o)) for o in (True, False))
    assert (drawn.shape, drawn.outline) == (shape, True)
    assert (filled.shape, filled.outline) == (shape, False)


def test_frames_in_reverse_show_the_opposite_motion() -> None:
    scene = world.Scene(shape="circle", colour="blue", motion="up", background="grey")
    assert judge.look(world.render(scene)[::-1]).motion == "down"


def test_noise_as_strong_as_compression_changes_nothing() -> None:
    scene = world.test_prompts()[6][1]
    clip = world.render(scene).astype(np.float32)
    noisy = clip + np.random.default_rng(0).normal(0, 6, clip.shape)
    assert right(judge.score(np.clip(noisy, 0, 255).astype(np.uint8), scene))


def test_an_empty_picture_shows_no_shape() -> None:
    seen = judge.look(np.full((17, 96, 96, 3), 245, np.uint8))
    assert (seen.shape, seen.colour, seen.motion) == (None, None, None)
    assert seen.background == "white"


def test_noise_is_no_shape() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (17, 96, 96, 3)).astype(np.uint8)
    assert judge.look(clip).shape is None


def test_a_blob_is_no_shape() -> None:
    y, x = np.indices((96, 96)) - 48.0
    angle = np.arctan2(y, x)
    inside = np.hypot(x, y) < 20 * (1 + 0.4 * np.cos(2 * angle + 0.3))
    frame = np.where(inside[..., None], (225, 45, 45), (245, 245, 245))
    assert judge.look(np.stack([frame] * 17).astype(np.uint8)).shape is None


def test_a_wrong_prompt_fails_on_the_words_that_are_wrong() -> None:
    scene = world.Scene(
        shape="star", colour="pink", motion="left", background="black", speed="slow"
    )
    asked = world.Scene(
        shape="star", colour="green", motion="right", background="black", speed="slow"
    )
    assert judge.score(world.render(scene), asked) == {
        "colour": False,
        "shape": True,
        "motion": False,
        "speed": True,
        "background": True,
        "all": False,
    }


def test_what_the_prompt_leaves_open_is_not_scored() -> None:
    asked = world.Scene(shape="square", colour="cyan", motion="still")
    scores = judge.score(world.render(asked), asked)
    assert (scores["speed"], scores["background"], scores["all"]) == (None, None, True)
