"""The demo models make videos that show what their prompts say, through every stage."""

from pathlib import Path

import pytest

from bench import demo as bench
from bench.train_demo import judge
from tests.workshop import Place
from wanpipe import demo
from wanpipe.store import Store

pytestmark = pytest.mark.slow

STEPS = 10
CHOSEN = bench.cases(6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One cache for all videos of this module."""
    return Store(tmp_path_factory.mktemp("following") / "cache")


def all_right(scores: dict[str, bool | None]) -> bool:
    return all(value is not False for value in scores.values())


@pytest.mark.long
def test_videos_follow_held_out_prompts(store: Store) -> None:
    setup = bench.Setup(label="T2V", model=bench.converted("t2v", store), steps=STEPS)
    clips = bench.videos(setup, CHOSEN, store)
    scores = [judge.score(clip, scene) for clip, (_, _, scene) in zip(clips, CHOSEN, strict=True)]
    assert all(score["color"] for score in scores)
    assert sum(all_right(score) for score in scores) >= 5


def test_two_experts_follow_a_prompt(store: Store) -> None:
    model = bench.converted("t2v-a14b", store)
    assert model.config.experts == ("low_noise_model", "high_noise_model")
    setup = bench.Setup(label="pair", model=model, steps=STEPS)
    [clip] = bench.videos(setup, CHOSEN[:1], store)
    assert all_right(judge.score(clip, CHOSEN[0][2]))


def test_an_image_is_the_first_frame_and_moves_like_the_prompt(
    store: Store, tmp_path: Path
) -> None:
    [given] = bench.first_frames(CHOSEN[:1], tmp_path)
    setup = bench.Setup(
        label="I2V", model=bench.converted("i2v-a14b", store), steps=STEPS, given=tmp_path
    )
    [clip] = bench.videos(setup, CHOSEN[:1], store)
    assert bench.psnr(clip[0], given) >= 25
    assert all_right(judge.score(clip, CHOSEN[0][2]))


@pytest.mark.long
def test_the_lora_draws_outlines_and_follows_the_prompt(store: Store) -> None:
    number, prompt, scene = CHOSEN[0]
    place = Place(store.root.parent, bench.converted("t2v", store).directory)
    words = ["--model", place.model, "--prompt", prompt, "--seed", bench.SEED + number]
    words = ["run", "--output", "video.mp4", *words, "--steps", STEPS]
    plain, styled = (
        place.frames(place.do(*words, *more)) for more in ((), ("--lora", demo.LORA, 1))
    )
    assert [judge.look(frames).outline for frames in (plain, styled)] == [False, True]
    assert all_right(judge.score(styled, scene))
