"""The noise levels of a run and the timesteps the transformer is told, laid out as officially.

Plain numbers on the host: knows no tensors, loads no MLX, and NumPy only when asked for levels.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wanpipe.errors import UsageError

TRAIN_TIMESTEPS = 1000
LEAST_SHIFT = 1e-6  # far below it float64 loses the level 1, which would become infinite


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """N steps of one solver: step i goes from `sigmas[i]` to `sigmas[i + 1]`, at `timesteps[i]`.

    Sigmas (N + 1 of them, the last is 0) are float32 values, as the official solvers compute with.
    Timesteps lie in [0, 1000].
    """

    solver: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)


def build(
    solver: str,
    steps: int,
    shift: float,
    grid: Sequence[float] | None,
    *,
    start: float,
    whole: bool,
) -> Schedule:
    """Lay out `steps` even levels from `start` to 0 and shift them.

    `grid` takes the place of the even levels (and of `steps`): timesteps before the shift, where
    what lies above `start` becomes `start`. `whole` cuts timesteps to integers, as both official
    solvers do. Raises UsageError where steps, shift or grid cannot be right.
    Source: wan/utils/fm_solvers.py, get_sampling_sigmas; fm_solvers_unipc.py, set_timesteps.
    """
    import numpy as np

    if not LEAST_SHIFT <= shift < math.inf:
        least = f"a number above 0 ({LEAST_SHIFT:g} or more)"
        raise UsageError(f"shift must be {least}, got {shift:g}; use 3, 5, 8 or 12")
    if grid is None:
        if not 1 <= steps <= TRAIN_TIMESTEPS:
            raise UsageError(f"steps must be 1 to {TRAIN_TIMESTEPS}, got {steps}; use 40 or 50")
        levels = np.linspace(start, 0.0, steps + 1)[:-1]
    else:
        check_grid(grid)
        levels = np.minimum(np.asarray(grid, dtype=np.float64) / TRAIN_TIMESTEPS, start)
    levels = shift * levels / (1.0 + (shift - 1.0) * levels)
    sigmas = np.append(levels, 0.0).astype(np.float32)
    if not (np.diff(sigmas) < 0).all():
        raise UsageError(
            f"noise levels must fall at every step, but at shift {shift:g} neighbours are equal; "
            "use a smaller shift, or timesteps farther apart"
        )
    timesteps = TRAIN_TIMESTEPS * levels  # of the float64 levels: those of float32 cut differently
    timesteps = np.trunc(timesteps) if whole else timesteps.astype(np.float32)
    return Schedule(
        solver=solver, sigmas=tuple(sigmas.tolist()), timesteps=tuple(timesteps.tolist())
    )


def check_grid(grid: Sequence[float]) -> None:
    """Raise UsageError unless the timesteps fall strictly and lie in (0, 1000]."""
    falling = all(above > below for above, below in itertools.pairwise(grid))
    if not grid or not falling or not (grid[-1] > 0 and grid[0] <= TRAIN_TIMESTEPS):
        shown = ",".join(f"{value:g}" for value in grid) or "none"
        raise UsageError(
            f"timesteps must fall from at most {TRAIN_TIMESTEPS} and stay above 0, got {shown}; "
            "use for example 1000,750,500,250"
        )


def log_snr(sigma: float) -> float:
    """Lambda of a flow-matching level: log((1 - sigma) / sigma), infinite at 0 and 1."""
    if sigma == 0.0:
        return math.inf
    if sigma == 1.0:
        return -math.inf
    return math.log(1.0 - sigma) - math.log(sigma)


def transfer(sigma: float, target: float) -> tuple[float, float, float]:
    """Coefficients of the move from level `sigma` to `target` under a constant x0.

    The moved sample is ratio * sample - gain * x0. Returns ratio, gain, and the step h in log-SNR,
    which is infinite from sigma 1 and to sigma 0.
    """
    h = log_snr(target) - log_snr(sigma)
    return target / sigma, (1.0 - target) * math.expm1(-h), h
