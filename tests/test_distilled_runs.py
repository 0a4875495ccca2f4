"""Runs of distilled models: --scheduler lcm and --nag, with what else a run can have."""

from pathlib import Path

import numpy as np
import pytest

from tests.test_encode_video import denoise, encode, furnished
from tests.test_resume import cut_everywhere, same
from tests.workshop import SMALL, Models, Place, inside
from wanpipe.runtime.documents import to_builtins
from wanpipe.sampling.noise import draw
from wanpipe.store import Entry

LCM = (*SMALL, "--scheduler", "lcm", "--guide-scale", 1)
NAG = (*SMALL, "--guide-scale", 1, "--nag", 11)
SHAPE = (16, 2, 4, 4)  # of the latent of the small film
FRAMES = ("--width", 32, "--height", 32, "--num-frames", 5)


def latents(chain: list[Entry]) -> list[np.ndarray]:
    return [step.read("latent") for step in chain]


def reason(place: Place, *words: object) -> str:
    """Why the steps of a command do not exist, as `cache explain` tells it."""
    result = place.do(*words, "--dry-run")
    [event] = [event for event in result.events if event["event"] == "missing"]
    return str(event["reason"])


def test_every_step_adds_noise_of_its_own_and_the_last_ends_at_x0(place: Place) -> None:
    chain = place.chain(place.made("denoise", "--from", place.text(), *LCM, "--seed", 7))
    for number, step in enumerate(chain[:-1]):
        noise = {"algorithm": "numpy-philox-normal", "seed": 7, "stream": number + 1}
        assert to_builtins(step.material.step_noise) == noise
        sigma = step.material.sigma_next
        added = sigma * draw(7, SHAPE, number + 1)
        moved = (1 - sigma) * step.read("x0") + added
        np.testing.assert_allclose(step.read("latent"), moved, rtol=0, atol=1e-6)
        assert step.names == ["latent", "x0"]
    assert "step_noise" not in to_builtins(chain[-1].material)
    assert np.array_equal(chain[-1].read("latent"), chain[-1].read("x0"))


def test_the_start_is_the_first_sigma_times_the_noise(place: Place) -> None:
    words = (*FRAMES, "--scheduler", "lcm", "--shift", 1, "--timesteps", "800,400")
    [first, _] = place.chain(place.made("denoise", "--from", place.text(), *words))
    euler = (*words[:-5], "euler", *words[-4:], "--noise", "scaled.npy", "--guide-scale", 5)
    np.save(place.root / "scaled.npy", np.float32(0.8) * draw(0, SHAPE))
    [other, _] = place.chain(place.made("denoise", "--from", place.text(), *euler))
    np.testing.assert_allclose(first.read("x0"), other.read("x0"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [LCM, NAG])
def test_a_cut_run_is_the_straight_one(
    options: tuple[object, ...], place: Place, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", place.model)
    straight = place.chain(place.made("denoise", "--from", place.text(), *options, "--seed", 3))
    assert same(other.chain(cut_everywhere(other, other.text(), *options, "--seed", 3)), straight)


def test_a_branch_goes_on_with_the_noise_of_its_seed(place: Place) -> None:
    straight = place.chain(place.made("denoise", "--from", place.text(), *LCM, "--seed", 3))
    dog = place.text("a dog")
    branch = place.chain(place.made("denoise", "--from", straight[1].key, "--from", dog))
    assert [step.key for step in branch[:2]] == [step.key for step in straight[:2]]
    assert branch[2].key != straight[2].key
    assert branch[2].material.step_noise == straight[2].material.step_noise
    again = place.chain(place.made("denoise", "--from", branch[2].key, "--guide-scale", 2))
    assert again[-1].material.guide_scale == 2


def test_two_seeds_have_other_noise_at_every_step(place: Place) -> None:
    result = place.do("denoise", "--from", place.text(), *LCM, "--seed", 1, "--seed", 2)
    one, two = (latents(place.chain(path)) for path in result.paths)
    assert not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--noise", "noise.npy"), "lcm draws new noise at every step from the seed"),
        (("--steps", 10, "--step-cache", 0.05), "lcm adds new noise at every step"),
        (("--nag", 0.5), "nag must be 1 (off) to 100, got 0.5; use 11"),
        (("--nag", "nan"), "nag must be 1 (off) to 100, got nan"),
        (("--nag", 11, "--nag-tau", 0), "nag-tau must be above 0 and at most 10, got 0; use 2.5"),
        (("--nag", 11, "--nag-alpha", 2), "nag-alpha must be 0 to 1, got 2; use 0.25"),
        (("--nag-tau", 2), "nag-tau and nag-alpha belong to --nag, which is not given"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[object, ...], says: str, place: Place) -> None:
    np.save(place.root / "noise.npy", draw(0, SHAPE))
    place.refuse("denoise", "--from", place.text(), *LCM, *words, code=2, says=says)


def test_known_frames_of_ti2v_stay_clean(models: Models, tmp_path: Path) -> None:
    place = furnished("wan22-ti2v-5b", models, tmp_path)
    image = ("--image", "wide.png", *FRAMES)
    encoded = place.made("encode-image", "--model", place.model, *image)
    first = place.entry(encoded).read("latent")
    for step in place.chain(denoise(place, encoded, *LCM)):
        assert np.array_equal(step.read("latent")[:, :1], first)


def test_what_a_mask_keeps_of_a_video_has_the_noise_of_the_step(
    models: Models, tmp_path: Path
) -> None:
    place = furnished("wan21-t2v", models, tmp_path)
    video = encode(place, *FRAMES, "--video", "clip", "--mask", "right.png")
    given, kept = place.entry(video).read("latent"), place.entry(video).read("mask") == 0
    kept = np.broadcast_to(kept, given.shape)
    assert kept.any() and not kept.all()
    chain = place.chain(denoise(place, video, *LCM, "--strength", 1, "--seed", 5))
    for step in chain[:-1]:
        sigma, stream = step.material.sigma_next, step.material.step_noise.stream
        noisy = (1 - sigma) * given + sigma * draw(5, given.shape, stream)
        np.testing.assert_allclose(step.read("latent")[kept], noisy[kept], rtol=0, atol=2e-6)
    np.testing.assert_allclose(chain[-1].read("latent")[kept], given[kept], rtol=0, atol=2e-6)
    part = place.chain(denoise(place, video, *LCM, "--strength", 0.5))
    assert [step.material.sigma for step in part] == [step.material.sigma for step in chain[2:]]


def test_the_negative_prompt_acts_at_guidance_1_with_nag_alone(place: Place) -> None:
    texts = [
        place.made("encode-text", "--model", place.model, "--prompt", "a", *more)
        for more in (("--negative-prompt", "dark"), ("--negative-prompt", "light"))
    ]
    plain = (*SMALL, "--guide-scale", 1)
    chains = {
        words: [place.chain(place.made("denoise", "--from", text, *words)) for text in texts]
        for words in (plain, NAG)
    }
    assert same(*chains[plain])
    one, two = chains[NAG]
    assert all(a.key != b.key for a, b in zip(one, two, strict=True))
    assert one[0].material.text == texts[0].name
    assert not any(np.array_equal(a, b) for a, b in zip(latents(one), latents(two), strict=True))


def test_nag_and_guidance_act_together(place: Place) -> None:
    text = place.text()
    found = [
        latents(place.chain(place.made("denoise", "--from", text, *SMALL, *words)))[-1]
        for words in ((), ("--nag", 11), ("--guide-scale", 1), ("--guide-scale", 1, "--nag", 11))
    ]
    assert not any(np.array_equal(a, b) for n, a in enumerate(found) for b in found[:n])


def test_a_step_without_effect_of_nag_has_the_bits_without_it(place: Place) -> None:
    text, plain = place.text(), (*SMALL, "--guide-scale", 1)
    without = place.chain(place.made("denoise", "--from", text, *plain))
    off = place.do("denoise", "--from", text, *plain, "--nag", 1)
    assert not off.computed()
    none = place.chain(place.made("denoise", "--from", text, *NAG, "--nag-alpha", 0))
    for one, two in zip(without, none, strict=True):
        assert one.key != two.key
        assert one.record.digest == two.record.digest


def test_a_branch_changes_nag_and_turns_it_off(place: Place) -> None:
    text = place.text()
    straight = place.chain(place.made("denoise", "--from", text, *NAG))
    kept = place.do("denoise", "--from", straight[1].key)
    assert not kept.computed()
    other = place.chain(place.made("denoise", "--from", straight[1].key, "--nag-tau", 3))
    assert to_builtins(other[-1].material.nag) == {"scale": 11.0, "tau": 3.0, "alpha": 0.25}
    off = place.chain(place.made("denoise", "--from", straight[1].key, "--nag", 1))
    assert "nag" not in to_builtins(off[-1].material)
    assert [step.key for step in off[:2]] == [step.key for step in straight[:2]]


def test_the_reason_of_a_missing_step_names_nag_and_lcm(place: Place) -> None:
    text = place.text()
    words = ("denoise", "--from", text, *SMALL)
    place.do(*words)
    assert reason(place, *words, "--nag", 11).endswith("NAG none → 11 (tau 2.5, alpha 0.25)")
    assert reason(place, *words, "--scheduler", "lcm").endswith("same; solver unipc → lcm")
    place.do(*words, "--scheduler", "lcm")
    seeds = reason(place, *words, "--scheduler", "lcm", "--seed", 1)
    assert seeds.endswith("same; seed 0 → 1")


def test_show_and_the_video_tell_of_nag_and_lcm(place: Place) -> None:
    film = place.film("--scheduler", "lcm", "--guide-scale", 1, "--nag", 9, "--nag-alpha", 0.5)
    shown = inside("show", film.paths[-1], cwd=place.root)
    told = " ".join(shown.paths)
    assert "lcm" in told
    assert "9.0" in told and "alpha" in told
    assert "guidance 1.0, NAG 9" in " ".join(inside("cache", "ls", cwd=place.root).paths)
