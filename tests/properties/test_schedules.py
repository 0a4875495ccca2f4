"""Schedules of every solver: noise levels fall to 0, and timesteps are in range."""

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.errors import UsageError
from wanpipe.sampling import SOLVERS
from wanpipe.sampling.schedule import Schedule

SOLVER = st.sampled_from(list(SOLVERS))
SHIFTS = st.floats(0.1, 100)
STEPS = st.integers(1, 100)
LEVELS = st.floats(0, 1000, exclude_min=True)
GRIDS = st.lists(LEVELS, min_size=1, max_size=12, unique=True).map(
    lambda levels: sorted(levels, reverse=True)
)
WHOLE = st.lists(st.integers(1, 998), min_size=1, max_size=12, unique=True).map(
    lambda levels: [float(level) for level in sorted(levels, reverse=True)]
)


def check(schedule: Schedule, steps: int) -> None:
    """Assert the invariants of all schedules."""
    sigmas, timesteps = np.array(schedule.sigmas), np.array(schedule.timesteps)
    assert schedule.steps == len(timesteps) == steps and len(sigmas) == steps + 1
    assert (np.diff(sigmas) < 0).all() and sigmas[-1] == 0 and sigmas[0] <= 1
    assert (np.diff(timesteps) <= 0).all() and timesteps[-1] >= 0 and timesteps[0] <= 1000
    # a timestep is 1000 times its sigma, at most truncated to an integer
    assert (np.abs(timesteps - 1000 * sigmas[:-1]) < 1.001).all()
    assert all(sigma == float(np.float32(sigma)) for sigma in schedule.sigmas)


@repeatable
@given(SOLVER, STEPS, SHIFTS)
def test_any_steps_and_shift_make_a_schedule(solver: str, steps: int, shift: float) -> None:
    check(SOLVERS[solver].schedule(steps, shift), steps)


@repeatable
@given(SOLVER, SHIFTS, WHOLE)
def test_any_integer_timesteps_make_a_schedule(
    solver: str, shift: float, grid: Sequence[float]
) -> None:
    check(SOLVERS[solver].schedule(0, shift, grid), len(grid))


@repeatable
@given(
    SOLVER,
    st.integers(-5, 1100),
    st.floats() | st.integers(-40, 3).map(lambda power: 10.0**power),
    st.none() | GRIDS | st.lists(st.floats(), max_size=4),
)
def test_an_invalid_schedule_is_a_one_line_error(
    solver: str, steps: int, shift: float, grid: Sequence[float] | None
) -> None:
    try:
        schedule = SOLVERS[solver].schedule(steps, shift, grid)
    except UsageError as error:
        assert "\n" not in str(error) and "; use " in str(error)
    else:
        check(schedule, steps if grid is None else len(grid))


@repeatable
@given(SOLVER, STEPS, st.floats(1, 50), st.floats(1.01, 2))
def test_a_greater_shift_raises_every_level(
    solver: str, steps: int, shift: float, factor: float
) -> None:
    low = SOLVERS[solver].schedule(steps, shift).sigmas
    high = SOLVERS[solver].schedule(steps, shift * factor).sigmas
    assert all(above >= below for above, below in zip(high, low, strict=True))
    assert math.isclose(low[0], SOLVERS[solver].schedule(1, shift).sigmas[0])
