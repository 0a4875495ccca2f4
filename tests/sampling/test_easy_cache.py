"""EasyCache against a worked example and a NumPy version of the official code."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from wanpipe.sampling import easy_cache
from wanpipe.sampling.guidance import apply_guidance

STEPS, WARM_UP, SIZE = 30, 6, (2, 3, 4, 5)


def array(*values: float) -> mx.array:
    return mx.array(values).reshape(1, 1, 1, -1)  # (C, F, H, W)


def numbers(state: dict[str, mx.array]) -> tuple[float, float]:
    return state["cache_rate"].item(), state["cache_drift"].item()


def test_the_rule_is_pinned_and_a_fifth_of_the_steps_is_warm_up() -> None:
    assert easy_cache.rule(0.05, 50, 12) == {
        "method": "easycache",
        "threshold": 0.05,
        "warm_up": 10,
        "since": 12,
    }
    assert [easy_cache.rule(0.05, n, 0)["warm_up"] for n in (10, 11, 20, 40)] == [2, 3, 4, 8]


def test_a_worked_example() -> None:
    rules = [easy_cache.rule(0.2, 10, since) for since in range(4)]
    state: dict[str, mx.array] = {}
    inputs = [array(1, 3), array(2, 4), array(2, 5), array(3, 5)]
    for step, velocity in enumerate((array(2, 4), array(3, 6))):
        assert easy_cache.reuse(inputs[step], rules[step], state) is None
        state = easy_cache.update_state(
            inputs[step], velocity, inputs[step + 1], rules[step], state
        )
    # the velocity changed by 1.5 while the latent changed by 1; its mean absolute value is 4.5
    assert numbers(state) == pytest.approx((1 / 3, 1 / 3 * 0.5))
    reused = easy_cache.reuse(inputs[2], rules[2], state)
    assert reused is not None
    assert reused.flatten().tolist() == [2 + 1, 5 + 2]
    state = easy_cache.update_state(inputs[2], None, inputs[3], rules[2], state)
    assert numbers(state) == pytest.approx((1 / 3, 1 / 3 * 0.5 + 1 / 3 * 0.5))
    assert easy_cache.reuse(inputs[3], rules[3], state) is None  # 0.33 is above 0.2


def field(latent: np.ndarray, step: int) -> np.ndarray:
    """A toy network: smooth, and slower towards the end."""
    return np.tanh(1.3 * latent) + np.cos(latent * (1 + 2 / (step + 1)))


def ours(threshold: float) -> tuple[list[bool], np.ndarray]:
    """Return which steps of a toy run ran the network, and the last latent."""
    state: dict[str, Any] = {}
    latent, ran = mx.array(start()), []
    for step in range(STEPS):
        rule = easy_cache.rule(threshold, STEPS, step)
        reused = easy_cache.reuse(latent, rule, state)
        ran.append(reused is None)
        computed = mx.array(field(np.array(latent), step)) if reused is None else None
        moved = latent - 0.03 * (computed if reused is None else reused)
        state = easy_cache.update_state(latent, computed, moved, rule, state)
        latent = moved
    return ran, np.array(latent)


def official(threshold: float) -> tuple[list[bool], np.ndarray]:
    """Do the same with the algorithm of `easycache_forward`, which decides before each step."""
    latent, ran = start(), []
    seen = computed = output = difference = rate = None
    total = 0.0
    for step in range(STEPS):
        if step < WARM_UP:
            total = 0.0
            needed = True
        else:
            total += rate * np.abs(latent - seen).mean() / np.abs(output).mean()
            needed = total >= threshold
            total = 0.0 if needed else total
        seen = latent
        if needed:
            velocity = field(latent, step)
            if output is not None:
                rate = np.abs(velocity - output).mean() / np.abs(latent - computed).mean()
            computed, output, difference = latent, velocity, velocity - latent
        else:
            velocity = latent + difference
        ran.append(needed)
        latent = latent - np.float32(0.03) * velocity
    return ran, latent


def start() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(SIZE, dtype=np.float32)


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2, 0.4])
def test_decisions_match_the_official_code(threshold: float) -> None:
    (ran, end), (expected, reference) = ours(threshold), official(threshold)
    assert ran == expected
    assert all(ran[:WARM_UP])
    assert not all(ran)
    assert np.allclose(end, reference, rtol=0, atol=2e-6)


def test_a_tiny_threshold_never_reuses() -> None:
    assert all(ours(1e-9)[0])


def test_one_difference_of_the_guided_velocity_suffices() -> None:
    cond, uncond, before, latent = (
        mx.array(np.random.default_rng(seed).standard_normal(SIZE, dtype=np.float32))
        for seed in range(4)
    )
    state = {"cache_latent": before, "cache_velocity": apply_guidance(cond, uncond, 5.0)}
    state |= {"cache_drift": mx.zeros((1, 1, 1, 1))}
    one = easy_cache.reuse(latent, easy_cache.rule(0.1, 10, 2), state)
    each = apply_guidance(latent + (cond - before), latent + (uncond - before), 5.0)
    assert one is not None
    assert np.allclose(np.array(one), np.array(each), rtol=0, atol=1e-5)


def test_a_reset_ignores_the_previous_state() -> None:
    stale = {"cache_latent": array(1, 2), "cache_velocity": array(9, 9)}
    stale |= {"cache_rate": array(1), "cache_drift": array(0)}
    rule = easy_cache.rule(0.5, 10, 0)
    assert easy_cache.reuse(array(1, 2), rule, stale) is None
    state = easy_cache.update_state(array(1, 2), array(3, 4), array(2, 2), rule, stale)
    assert {name: value.flatten().tolist() for name, value in state.items()} == {
        "cache_latent": [1, 2],
        "cache_velocity": [3, 4],
    }


def test_a_constant_latent_gives_finite_values() -> None:
    state: dict[str, mx.array] = {}
    for since, velocity in enumerate((array(1, 2), array(2, 4))):
        rule = easy_cache.rule(0.5, 10, since)
        state = easy_cache.update_state(array(5, 6), velocity, array(5, 6), rule, state)
    assert all(mx.isfinite(value).all().item() for value in state.values())
    assert state["cache_drift"].item() == 0
