"""Solvers on arbitrary schedules: orders, straight lines, and resumed runs."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.sampling import RENOISING, SOLVERS
from wanpipe.sampling.schedule import Schedule

Arrays = dict[str, Any]  # MLX's arrays or NumPy's: a solver only adds and multiplies
SHAPE = (2, 1, 2, 2)


@st.composite
def schedules(draw: st.DrawFn, renoising: bool = True) -> Schedule:
    """Draw a schedule of any solver, from a number of steps or from a grid."""
    names = [name for name in SOLVERS if renoising or name not in RENOISING]
    solver = SOLVERS[draw(st.sampled_from(names))]
    shift = draw(st.floats(0.5, 20))
    if draw(st.booleans()):
        return solver.schedule(draw(st.integers(1, 30)), shift)
    levels = draw(st.lists(st.integers(1, 998), min_size=1, max_size=10, unique=True))
    return solver.schedule(0, shift, [float(level) for level in sorted(levels, reverse=True)])


def array(seed: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32))


def advance(schedule: Schedule, step: int, before: Arrays, velocity: Any) -> Arrays:
    """Take one step: compute the arrays of the next entry from `before`."""
    solver, state = SOLVERS[schedule.solver], before
    if schedule.solver in RENOISING:
        state = before | {"noise": array(step)}
    latent, x0, state = solver.advance(before["latent"], velocity, schedule, step, state)
    return {"latent": latent, "x0": x0, **state}


def trajectory(
    schedule: Schedule, start: Arrays, first: int, velocity: Callable[[Any], Any]
) -> list[Arrays]:
    """Run all steps from `first` on."""
    entries = [start]
    for step in range(first, schedule.steps):
        latent = entries[-1]["latent"]
        entries.append(advance(schedule, step, entries[-1], velocity(latent)))
    return entries[1:]


@repeatable
@given(schedules())
def test_the_first_and_the_last_step_are_of_order_one(schedule: Schedule) -> None:
    solver = SOLVERS[schedule.solver]
    orders = [solver.order(schedule, step) for step in range(schedule.steps)]
    inner = 1 if schedule.solver in ("euler", "lcm") else 2
    assert orders == [1, *[inner] * (schedule.steps - 2), 1][: schedule.steps]


@repeatable
@given(schedules(renoising=False), st.integers(0, 2**32))
def test_a_constant_velocity_is_followed_exactly(schedule: Schedule, seed: int) -> None:
    # in float64: steps of very unequal length multiply what float32 rounds
    noise, velocity = (np.array(array(number), np.float64) for number in (seed, seed + 1))
    entries = trajectory(schedule, {"latent": noise}, 0, lambda latent: velocity)
    start = schedule.sigmas[0]
    for sigma, entry in zip(schedule.sigmas[1:], entries, strict=True):
        line = noise + (sigma - start) * velocity
        np.testing.assert_allclose(entry["latent"], line, rtol=0, atol=1e-10)
        np.testing.assert_allclose(entry["x0"], noise - start * velocity, rtol=0, atol=1e-10)


@repeatable
@given(schedules(), st.integers(0, 2**32), st.data())
def test_a_run_resumed_from_any_step_is_the_whole_run(
    schedule: Schedule, seed: int, data: st.DataObject
) -> None:
    def velocity(latent: mx.array) -> mx.array:
        return mx.sin(latent) - latent

    whole = trajectory(schedule, {"latent": array(seed)}, 0, velocity)
    cut = data.draw(st.integers(1, schedule.steps))
    stored = {name: mx.array(np.array(one)) for name, one in whole[cut - 1].items()}
    for ours, theirs in zip(trajectory(schedule, stored, cut, velocity), whole[cut:], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@repeatable
@given(schedules(), st.integers(0, 2**32))
def test_a_run_ends_at_its_last_clean_latent(schedule: Schedule, seed: int) -> None:
    last = trajectory(schedule, {"latent": array(seed)}, 0, mx.cos)[-1]
    assert all(np.isfinite(np.array(one)).all() for one in last.values())
    np.testing.assert_allclose(last["latent"], last["x0"], rtol=1e-6, atol=1e-6)
