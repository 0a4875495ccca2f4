"""The LCM sampler against what the code of distilled models computes, rewritten here in NumPy."""

import itertools
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest

from wanpipe.sampling import SOLVERS, lcm
from wanpipe.sampling.noise import draw
from wanpipe.sampling.schedule import Schedule

SHAPE = (4, 2, 3, 5)
Velocity = Callable[[np.ndarray, float], np.ndarray]
FASTWAN = (1000.0, 757.0, 522.0)
SELF_FORCING = (1000.0, 750.0, 500.0, 250.0)
# of rCM: atan(80), 1.5, 1.4 and 1.0 as noise levels of a straight path
ANGLES = (np.arctan(80.0), 1.5, 1.4, 1.0, 0.0)


def velocity(x: np.ndarray, t: float) -> np.ndarray:
    """Stand in for a network: nothing that a solver knows of, and different at every timestep."""
    moved: np.ndarray = np.sin(3 * x + t / 100) - 0.4 * x
    return moved


def training_grid(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigmas of the schedulers of CausVid, Self-Forcing and FastVideo."""
    sigmas = np.linspace(1.0, 0.0, 1001)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return 1000 * sigmas, sigmas


def nearest(timesteps: Sequence[float], shift: float) -> list[float]:
    """The sigmas that they look up: those of the nearest timesteps."""
    grid, sigmas = training_grid(shift)
    return [float(sigmas[np.argmin(np.abs(grid - t))]) for t in timesteps]


def distribution_matching(
    noise: np.ndarray,
    fresh: Sequence[np.ndarray],
    timesteps: Sequence[float],
    levels: Sequence[float],
) -> list[np.ndarray]:
    """Sample as `BidirectionalInferencePipeline` and `DmdDenoisingStage` do, in float64."""
    x, latents = noise.astype(np.float64), []
    for index, t in enumerate(timesteps):
        x = x - levels[index] * velocity(x, t)
        if index < len(timesteps) - 1:
            x = (1 - levels[index + 1]) * x + levels[index + 1] * fresh[index]
        latents.append(x)
    return latents


def rectified_consistency(noise: np.ndarray, fresh: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sample as wan2pt1_t2v_rcm_infer.py does, in float64."""
    levels = np.sin(ANGLES) / (np.cos(ANGLES) + np.sin(ANGLES))
    x, latents = noise.astype(np.float64) * levels[0], []
    for index, (now, after) in enumerate(itertools.pairwise(levels)):
        x = (1 - after) * (x - now * velocity(x, 1000 * now)) + after * fresh[index]
        latents.append(x)
    return latents


def sampled(schedule: Schedule, noise: np.ndarray, fresh: Sequence[np.ndarray]) -> list[np.ndarray]:
    latent, latents = mx.array(noise), []
    for step, t in enumerate(schedule.timesteps):
        moved = mx.array(velocity(np.array(latent), t).astype(np.float32))
        last = step == schedule.steps - 1
        state = {} if last else {"noise": mx.array(fresh[step])}
        latent, x0, after = lcm.advance(latent, moved, schedule, step, state)
        assert not after
        assert not last or np.array_equal(np.array(latent), np.array(x0))
        latents.append(np.array(latent))
    return latents


@pytest.fixture
def noises() -> list[np.ndarray]:
    return [draw(3, SHAPE, stream) for stream in range(5)]


@pytest.mark.parametrize("shift", [5.0, 8.0])
def test_self_forcing_warps_its_timesteps_by_the_shift(
    shift: float, noises: list[np.ndarray]
) -> None:
    noise, *fresh = noises
    grid, _ = training_grid(shift)
    warped = [float(np.append(grid, 0.0)[1000 - int(t)]) for t in SELF_FORCING]
    schedule = lcm.schedule(50, shift, SELF_FORCING)
    np.testing.assert_allclose(schedule.timesteps, warped, rtol=1e-7)
    assert lcm.schedule(4, shift) == schedule
    theirs = distribution_matching(noise, fresh, warped, nearest(warped, shift))
    np.testing.assert_allclose(sampled(schedule, noise, fresh), theirs, rtol=0, atol=2e-5)


def test_fastwan_and_causvid_take_their_timesteps_as_they_are(noises: list[np.ndarray]) -> None:
    noise, *fresh = noises
    schedule = lcm.schedule(50, 1.0, FASTWAN)
    assert schedule.timesteps == FASTWAN
    # theirs are those of the nearest of 1000 timesteps: 0.7568 and 0.5217
    levels = [1.0, 0.757, 0.522]
    np.testing.assert_allclose(nearest(FASTWAN, 8.0), levels, rtol=0, atol=3e-4)
    theirs = distribution_matching(noise, fresh, FASTWAN, levels)
    np.testing.assert_allclose(sampled(schedule, noise, fresh), theirs, rtol=0, atol=2e-5)


def test_a_shift_of_8_takes_fastwan_elsewhere() -> None:
    timesteps = lcm.schedule(50, 8.0, FASTWAN).timesteps
    np.testing.assert_allclose(timesteps, [1000, 961.42, 897.29], rtol=0, atol=0.01)


def test_rcm_starts_from_its_first_sigma_times_the_noise(noises: list[np.ndarray]) -> None:
    noise, *fresh = noises
    grid = tuple(1000 * np.sin(ANGLES[:-1]) / (np.cos(ANGLES[:-1]) + np.sin(ANGLES[:-1])))
    np.testing.assert_allclose(grid, [987.65, 933.78, 852.90, 608.98], rtol=0, atol=0.05)
    schedule = lcm.schedule(50, 1.0, grid)
    start = schedule.sigmas[0] * noise
    theirs = rectified_consistency(noise, fresh)
    np.testing.assert_allclose(sampled(schedule, start, fresh), theirs, rtol=0, atol=2e-5)


def test_the_noise_level_is_that_of_the_schedule() -> None:
    # a network that knows the clean video leaves exactly that and the new noise
    schedule, clean = lcm.schedule(4, 5.0), mx.array(np.cos(draw(1, SHAPE)))
    latent, fresh = mx.array(draw(2, SHAPE)), mx.array(draw(2, SHAPE, 1))
    moved, x0, _ = SOLVERS["lcm"].advance(latent, latent - clean, schedule, 0, {"noise": fresh})
    sigma = schedule.sigmas[1]
    np.testing.assert_allclose(x0, clean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved, (1 - sigma) * clean + sigma * fresh, rtol=0, atol=1e-6)
