"""The judge reads clips correctly, and rejects clips that show no shape."""

import numpy as np
import pytest

from bench.train_demo import judge
from wanpipe.demo import world


def all_right(scores: dict[str, bool | None]) -> bool:
    return all(value in (True, None) for value in scores.values())


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_every_rendered_test_scene_is_read_correctly(start: int) -> None:
    for i, (_, scene) in enumerate(world.test_prompts()[start : start + 10]):
        assert all_right(judge.score(world.render(scene, seed=start + i), scene)), scene


@pytest.mark.parametrize("shape", world.SHAPES)
def test_an_outline_has_the_shape_it_encloses_and_is_recognized_as_an_outline(shape: str) -> None:
    scene = world.Scene(shape=shape, color="red", motion="right", background="white", speed="fast")
    drawn, filled = (judge.look(world.render(scene, outline=o)) for o in (True, False))
    assert (drawn.shape, drawn.outline) == (shape, True)
    assert (filled.shape, filled.outline) == (shape, False)


def test_reversed_frames_show_the_opposite_motion() -> None:
    scene = world.Scene(shape="circle", color="blue", motion="up", background="grey")
    assert judge.look(world.render(scene)[::-1]).motion == "down"


def test_noise_as_strong_as_compression_changes_no_score() -> None:
    scene = world.test_prompts()[6][1]
    clip = world.render(scene).astype(np.float32)
    noisy = clip + np.random.default_rng(0).normal(0, 6, clip.shape)
    assert all_right(judge.score(np.clip(noisy, 0, 255).astype(np.uint8), scene))


def test_an_empty_clip_shows_no_shape() -> None:
    seen = judge.look(np.full((17, 96, 96, 3), 245, np.uint8))
    assert (seen.shape, seen.color, seen.motion) == (None, None, None)
    assert seen.background == "white"


def test_noise_has_no_shape() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (17, 96, 96, 3)).astype(np.uint8)
    assert judge.look(clip).shape is None


def test_a_blob_has_no_shape() -> None:
    y, x = np.indices((96, 96)) - 48.0
    angle = np.arctan2(y, x)
    inside = np.hypot(x, y) < 20 * (1 + 0.4 * np.cos(2 * angle + 0.3))
    frame = np.where(inside[..., None], (225, 45, 45), (245, 245, 245))
    assert judge.look(np.stack([frame] * 17).astype(np.uint8)).shape is None


def test_a_wrong_prompt_fails_only_on_the_wrong_words() -> None:
    scene = world.Scene(shape="star", color="pink", motion="left", background="black", speed="slow")
    other = world.Scene(
        shape="star", color="green", motion="right", background="black", speed="slow"
    )
    assert judge.score(world.render(scene), other) == {
        "color": False,
        "shape": True,
        "motion": False,
        "speed": True,
        "background": True,
        "all": False,
    }


def test_an_open_part_of_the_prompt_is_not_scored() -> None:
    scene = world.Scene(shape="square", color="cyan", motion="still")
    scores = judge.score(world.render(scene), scene)
    assert (scores["speed"], scores["background"], scores["all"]) == (None, None, True)


def test_pixels_near_a_mask_in_any_frame_of_their_latent_are_not_away_from_it() -> None:
    mask = np.zeros((17, 96, 96), np.uint8)
    mask[6, 40:50, 40:50] = 1
    known = judge.away(mask)
    assert known[0].all()
    assert known[1:5].all()
    assert known[9:].all()
    for frame in known[5:9]:
        assert not frame[32:58, 32:58].any()
        assert frame[:32].all()
        assert frame[:, 58:].all()


def test_the_psnr_of_kept_pixels_ignores_the_others() -> None:
    given = np.full((2, 8, 8, 3), 100, np.uint8)
    frames = given.copy()
    known = np.ones((2, 8, 8), bool)
    frames[:, :, 0], known[:, :, 0] = 255, False
    frames[:, 0, 1] = 110
    expected = 10 * np.log10(255**2 / (100 * 2 / known.sum()))
    assert judge.kept_psnr(frames, given, known) == pytest.approx(expected, abs=1e-3)


def test_a_film_overlaps_itself_but_not_one_that_moves_elsewhere() -> None:
    left, right = (
        world.render(world.Scene(shape="star", color="red", motion=m, speed="fast"))
        for m in ("left", "right")
    )
    assert judge.overlap(left, left) == 1
    assert judge.overlap(left, right) < 0.5


def test_the_joint_of_a_steady_film_is_no_larger_than_its_other_steps() -> None:
    steady = world.render(world.Scene(shape="star", color="red", motion="left", speed="fast"))
    across, elsewhere = judge.joint(steady, 5)
    assert across <= 1.1 * elsewhere
    jumping = np.concatenate([steady[:5], steady[9:]])
    across, elsewhere = judge.joint(jumping, 5)
    assert across > 1.5 * elsewhere
