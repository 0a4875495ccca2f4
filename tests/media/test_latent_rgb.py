"""Maps from latents to colors: what least squares finds on data whose map is known."""

import numpy as np
import pytest

from wanpipe.media.latent_rgb import MAPS, WEIGHT, fit, published

SHAPE = (4, 25, 25)  # F, H, W of a sample
RNG = 7


def colored(latent: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The colors (F, H, W, 3) of a latent (C, F, H, W) by a map (C+1, 3), pixel by pixel."""
    return np.einsum("cfhw,cd->fhwd", latent, colors[:-1]) + colors[-1]


def sample(channels: int, colors: np.ndarray, seed: int = RNG) -> tuple[np.ndarray, np.ndarray]:
    """A random latent and its colors."""
    latent = np.random.default_rng(seed).normal(size=(channels, *SHAPE))
    return latent, colored(latent, colors)


def other_map(channels: int) -> np.ndarray:
    """A map that is not the published one."""
    return np.random.default_rng(RNG + 1).uniform(-0.5, 0.5, (channels + 1, 3))


@pytest.mark.parametrize("channels", MAPS)
def test_a_fit_to_the_published_colors_is_the_published_map(channels: int) -> None:
    known = published(channels)
    assert known is not None
    found = fit([sample(channels, known)])
    assert found is not None
    np.testing.assert_allclose(found, known, atol=1e-6)


@pytest.mark.parametrize("channels", [*MAPS, 4])
def test_a_fit_recovers_another_map_but_for_the_weight_of_the_published_one(channels: int) -> None:
    """Of unit variance, each channel keeps WEIGHT / (1 + WEIGHT) of the published map."""
    true, known = other_map(channels), published(channels)
    prior = np.zeros_like(true) if known is None else known
    found = fit([sample(channels, true)])
    assert found is not None
    expected = (true + WEIGHT * prior) / (1 + WEIGHT)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # 2500 pixels are not quite white
    latent, colors = sample(channels, true)
    found = fit([(100 * latent, colors)])  # a channel of much variance outweighs it
    assert found is not None
    np.testing.assert_allclose(100 * found[:-1], true[:-1], atol=2e-3)


def test_what_the_samples_do_not_tell_stays_as_published() -> None:
    channels = 16
    known = published(channels)
    assert known is not None
    latent, _ = sample(channels, known)
    latent[3] = 0
    found = fit([(latent, colored(latent, other_map(channels)))])
    assert found is not None
    np.testing.assert_allclose(found[3], known[3], atol=1e-6)
    assert np.abs(found[4] - known[4]).max() > 0.1


def test_samples_add_up_whatever_their_sizes() -> None:
    latent, colors = sample(16, other_map(16))
    parts = [(latent[:, :1], colors[:1]), (latent[:, 1:], colors[1:])]
    whole, both = fit([(latent, colors)]), fit(parts)
    assert whole is not None
    assert both is not None
    np.testing.assert_allclose(both, whole, atol=1e-6)


def test_a_fit_without_samples_is_none() -> None:
    assert fit([]) is None
