"""Normalized attention guidance against its official formula, rewritten here in NumPy."""

import mlx.core as mx
import numpy as np
import pytest

from wanpipe.sampling.nag import Nag, guide
from wanpipe.sampling.noise import draw

SHAPE = (1, 40, 16)
CASES = [(11, 2.5, 0.25), (9, 2.5, 0.25), (4, 10, 1), (5, 0.5, 0.5), (1.5, 2.5, 0.25)]


def official(positive: np.ndarray, negative: np.ndarray, nag: Nag) -> np.ndarray:
    """Compute as `NAGWanAttnProcessor2_0` does, in float64."""
    z, other = positive.astype(np.float64), negative.astype(np.float64)
    guided = z * nag.scale - other * (nag.scale - 1)
    norm_z = np.abs(z).sum(-1, keepdims=True) + np.zeros_like(z)
    norm_guided = np.abs(guided).sum(-1, keepdims=True) + np.zeros_like(z)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(norm_guided / norm_z, nan=10)
    far = ratio > nag.tau
    guided[far] = guided[far] / (norm_guided[far] + 1e-7) * norm_z[far] * nag.tau
    return guided * nag.alpha + z * (1 - nag.alpha)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Attention to two prompts: in a half of the rows they hardly differ."""
    positive, noise = draw(1, SHAPE), draw(2, SHAPE)
    noise[:, ::2] *= 0.02
    return positive, positive + noise


@pytest.mark.parametrize(("scale", "tau", "alpha"), CASES)
def test_guided_attention_is_the_official_one(
    scale: float, tau: float, alpha: float, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    nag = Nag(scale=scale, tau=tau, alpha=alpha)
    ours = np.array(guide(*map(mx.array, pair), nag))
    np.testing.assert_allclose(ours, official(*pair, nag), rtol=0, atol=2e-6)


def test_only_rows_that_became_longer_than_tau_are_shortened(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    whole = np.array(guide(*map(mx.array, pair), Nag(scale=11, alpha=1)))
    growth = np.abs(whole).sum(-1) / np.abs(pair[0]).sum(-1)
    near, far = growth[:, ::2], growth[:, 1::2]
    assert near.max() < 2.5
    np.testing.assert_allclose(far, 2.5, rtol=1e-6)
    free = 11 * pair[0] - 10 * pair[1]
    np.testing.assert_allclose(whole[:, ::2], free[:, ::2], rtol=0, atol=1e-5)


def test_alpha_0_keeps_every_bit(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for dtype in (mx.float32, mx.bfloat16):
        positive, negative = (mx.array(array).astype(dtype) for array in pair)
        kept = guide(positive, negative, Nag(scale=11, alpha=0))
        assert kept.dtype == dtype
        assert mx.array_equal(kept, positive)


def test_scale_1_and_an_equal_negative_prompt_change_nothing(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    positive, negative = map(mx.array, pair)
    np.testing.assert_allclose(guide(positive, negative, Nag(scale=1)), positive, rtol=3e-7)
    np.testing.assert_allclose(guide(positive, positive, Nag(scale=11)), positive, rtol=3e-6)


def test_rows_of_zeros_stay_finite() -> None:
    zeros, ones = mx.zeros((1, 2, 4)), mx.ones((1, 2, 4))
    for positive, negative in ((zeros, zeros), (zeros, ones), (ones, zeros)):
        made = np.array(guide(positive, negative, Nag(scale=11)))
        expected = official(np.array(positive), np.array(negative), Nag(scale=11))
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)
