"""Trajectories against the official code, and exact resumption from stored arrays."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import golden
from wanpipe.sampling import RENOISING, SOLVERS
from wanpipe.sampling.noise import draw
from wanpipe.sampling.schedule import Schedule

OFFICIAL = {"unipc": "unipc", "dpm++": "dpmpp", "euler": "euler"}
GRIDS = [(1000.0, 750.0, 500.0, 250.0), (999.5, 20.0, 1.0), (1000.0,), (300.0, 100.0)]
Arrays = dict[str, mx.array]


def toy_velocity(latent: mx.array, sigma: float) -> mx.array:
    return 0.7 * latent - 0.35 * sigma


def unchanged(arrays: Arrays) -> Arrays:
    return arrays


def store(arrays: Arrays) -> Arrays:
    """Round-trip arrays through bytes, as an entry does."""
    loaded = {}
    for name, array in arrays.items():
        assert array.dtype == mx.float32, name
        data = np.array(array).tobytes()
        loaded[name] = mx.array(np.frombuffer(data, dtype=np.float32).reshape(array.shape))
    return loaded


def trajectory(
    schedule: Schedule, noise: mx.array, between: Callable[[Arrays], Arrays] = unchanged
) -> list[Arrays]:
    solver = SOLVERS[schedule.solver]
    latent, state, entries = noise, {}, []
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        velocity = toy_velocity(latent, sigma)
        if schedule.solver in RENOISING:
            state = {**state, "noise": mx.array(draw(7, latent.shape, step + 1))}
        latent, x0, state = solver.advance(latent, velocity, schedule, step, state)
        entries.append({"latent": latent, "x0": x0, **state})
        arrays = between({"latent": latent, "x0": x0, **state})
        latent, state = arrays["latent"], arrays
    return entries


@pytest.fixture
def noise() -> mx.array:
    return mx.array(golden("schedulers/schedulers")["traj_noise"])


@pytest.mark.parametrize(("steps", "shift"), [(10, 3), (4, 5), (2, 8), (1, 5)])
@pytest.mark.parametrize("solver", OFFICIAL)
def test_trajectories_match_the_official_code(
    solver: str, steps: int, shift: int, noise: mx.array
) -> None:
    reference = golden("schedulers/schedulers")[f"{OFFICIAL[solver]}_{steps}_{shift}_traj"]
    entries = trajectory(SOLVERS[solver].schedule(steps, shift, None), noise)
    ours = np.stack([entry["latent"] for entry in entries])
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_resumed_at_every_step_is_bit_for_bit_the_whole_run(
    solver: str, noise: mx.array
) -> None:
    schedule = SOLVERS[solver].schedule(9, 5.0, None)
    whole, resumed = trajectory(schedule, noise), trajectory(schedule, noise, store)
    for ours, theirs in zip(whole, resumed, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(np.array(ours[name]), np.array(theirs[name]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_grid_stays_finite_and_ends_at_the_clean_latent(
    solver: str, grid: tuple[float, ...], noise: mx.array
) -> None:
    entries = trajectory(SOLVERS[solver].schedule(0, 5.0, grid), noise)
    assert all(np.isfinite(array).all() for entry in entries for array in entry.values())
    last = entries[-1]
    np.testing.assert_allclose(last["latent"], last["x0"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", OFFICIAL)
def test_a_straight_path_is_solved_exactly(solver: str, noise: mx.array) -> None:
    # with a constant x0 the path from noise to x0 is a line, which these solvers must follow
    schedule = SOLVERS[solver].schedule(6, 3.0, None)
    clean, latent, state = 0.5 * mx.cos(noise), noise, {}
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        velocity = (latent - clean) / sigma
        latent, x0, state = SOLVERS[solver].advance(latent, velocity, schedule, step, state)
        state["x0"] = x0
        target = schedule.sigmas[step + 1]
        line = clean + target / schedule.sigmas[0] * (noise - clean)
        np.testing.assert_allclose(latent, line, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "orders"),
    [
        ("unipc", [1, 2, 2, 2, 1]),
        ("dpm++", [1, 2, 2, 2, 1]),
        ("euler", [1, 1, 1, 1, 1]),
        ("lcm", [1, 1, 1, 1, 1]),
    ],
)
def test_orders_are_pinned(solver: str, orders: list[int]) -> None:
    schedule = SOLVERS[solver].schedule(5, 5.0, None)
    assert [SOLVERS[solver].order(schedule, step) for step in range(5)] == orders
    assert SOLVERS[solver].order(SOLVERS[solver].schedule(1, 5.0, None), 0) == 1


def test_only_unipc_has_state(noise: mx.array) -> None:
    stored = {
        name: sorted(trajectory(solver.schedule(3, 5.0, None), noise)[1])
        for name, solver in SOLVERS.items()
    }
    assert stored == {
        "unipc": ["latent", "sample", "x0", "x0_before"],
        "dpm++": ["latent", "x0"],
        "euler": ["latent", "x0"],
        "lcm": ["latent", "x0"],
    }
