"""Sigmas and timesteps against the official code, and invalid schedules."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import golden, settings
from wanpipe.errors import UsageError
from wanpipe.sampling import SOLVERS

OFFICIAL = {"unipc": "unipc", "dpm++": "dpmpp", "euler": "euler"}
RUNS = [(50, 5), (40, 12), (40, 5), (10, 3), (4, 5), (2, 8), (1, 5)]
DISTILLED = (1000.0, 750.0, 500.0, 250.0)


@pytest.mark.parametrize(("steps", "shift"), RUNS)
@pytest.mark.parametrize("solver", OFFICIAL)
def test_sigmas_and_timesteps_match_the_official_code(solver: str, steps: int, shift: int) -> None:
    reference = golden("schedulers/schedulers")
    ours = SOLVERS[solver].schedule(steps, shift, None)
    name = f"{OFFICIAL[solver]}_{steps}_{shift}"
    np.testing.assert_array_equal(ours.timesteps, reference[f"{name}_timesteps"])
    np.testing.assert_allclose(ours.sigmas, reference[f"{name}_sigmas"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "run",
    [
        "wan21-t2v/e2e",
        "wan21-t2v/e2e_dpmpp",
        "wan22-t2v-a14b/e2e",
        "wan22-i2v-a14b/e2e",
        "wan22-ti2v-5b/e2e_t2v",
        "wan22-ti2v-5b/e2e_i2v",
        "wan21-i2v/e2e",
    ],
)
def test_timesteps_of_whole_runs_match_the_official_code(run: str) -> None:
    official = settings(run)
    schedule = SOLVERS[official["solver"]].schedule(
        official["sampling_steps"], official["shift"], None
    )
    np.testing.assert_array_equal(schedule.timesteps, golden(run)["timesteps"])


def test_an_even_grid_equals_the_schedule_without_a_grid() -> None:
    for solver in ("dpm++", "euler", "lcm"):
        even = SOLVERS[solver].schedule(4, 5.0, None)
        assert SOLVERS[solver].schedule(50, 5.0, DISTILLED) == even


def test_a_grid_for_unipc_starts_at_its_own_first_sigma() -> None:
    schedule = SOLVERS["unipc"].schedule(4, 5.0, DISTILLED)
    assert schedule.sigmas[0] == SOLVERS["unipc"].schedule(4, 5.0, None).sigmas[0] < 1
    assert schedule.timesteps == (999.0, 937.0, 833.0, 625.0)


def test_the_distilled_grid_is_pinned() -> None:
    assert SOLVERS["euler"].schedule(4, 5.0, DISTILLED).timesteps == (
        1000.0,
        937.5,
        833.3333129882812,
        625.0,
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_schedules_hold_plain_float32_numbers(solver: str) -> None:
    schedule = SOLVERS[solver].schedule(7, 3.0, None)
    assert json.loads(json.dumps(dataclasses.asdict(schedule)))["solver"] == solver
    assert all(value == float(np.float32(value)) for value in schedule.sigmas)
    assert schedule.steps == 7 and schedule.sigmas[-1] == 0.0


@pytest.mark.parametrize(
    ("steps", "shift", "grid", "message"),
    [
        (0, 5.0, None, "steps must be 1 to 1000, got 0"),
        (1001, 5.0, None, "steps must be 1 to 1000, got 1001"),
        (4, 0.0, None, "shift must be a number above 0 (1e-06 or more), got 0"),
        (4, 1e-20, None, "shift must be a number above 0 (1e-06 or more), got 1e-20"),
        (4, float("nan"), None, "shift must be a number above 0 (1e-06 or more), got nan"),
        (4, 1e9, None, "noise levels must fall at every step"),
        (2, 5.0, (), "got none"),
        (2, 5.0, (500.0, 750.0), "got 500,750"),
        (2, 5.0, (500.0, 500.0), "got 500,500"),
        (2, 5.0, (1001.0, 500.0), "got 1001,500"),
        (2, 5.0, (500.0, 0.0), "got 500,0"),
        (2, 5.0, (1000.0, float("nan")), "got 1000,nan"),
        (2, 5.0, (float("nan"),), "got nan"),
    ],
)
def test_invalid_schedules_are_one_line_errors(
    steps: int, shift: float, grid: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        SOLVERS["euler"].schedule(steps, shift, grid)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unipc_refuses_two_timesteps_above_its_start() -> None:
    with pytest.raises(UsageError, match="some are equal"):
        SOLVERS["unipc"].schedule(2, 5.0, (1000.0, 999.5))


def test_schedules_load_no_mlx_and_importing_solvers_loads_no_numpy() -> None:
    program = (
        "import sys; from wanpipe.sampling import SOLVERS; assert 'numpy' not in sys.modules\n"
        "for solver in SOLVERS.values(): solver.order(solver.schedule(4, 5.0, None), 1)\n"
        "assert not any(name.partition('.')[0] == 'mlx' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
