"""Schedules: the noise levels (sigmas) of a run, and the timesteps for the transformer.

Plain numbers on the host. Loads no MLX, and NumPy only to build a schedule.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wanpipe.errors import UsageError

TRAIN_TIMESTEPS = 1000
MIN_SHIFT = 1e-6  # with a far smaller shift, the level 1 would become infinite in float64


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a solver: step i goes from `sigmas[i]` to `sigmas[i + 1]` at `timesteps[i]`.

    Sigmas are float32 values, as in the official solvers; there is one more than steps, and the
    last is 0. Timesteps are in [0, 1000].
    """

    solver: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    def last_part(self, strength: float) -> "Schedule":
        """Return the last steps, `strength` (above 0 and at most 1) of all.

        Raises UsageError if that is none. Source: diffusers, WanVideoToVideoPipeline.get_timesteps.
        """
        first = self.steps - min(int(self.steps * strength), self.steps)
        if first == self.steps:
            raise UsageError(
                f"strength {strength:g} of {self.steps} steps is less than one step; use "
                f"{1 / self.steps:.2g} or more, or more steps"
            )
        return replace(self, sigmas=self.sigmas[first:], timesteps=self.timesteps[first:])


def build(
    solver: str,
    steps: int,
    shift: float,
    grid: Sequence[float] | None,
    *,
    start: float,
    integer_timesteps: bool,
) -> Schedule:
    """Return a schedule of `steps` evenly spaced levels from `start` to 0, after the shift.

    `grid` gives the timesteps before the shift, and replaces `steps`; levels above `start` become
    `start`. `integer_timesteps` truncates timesteps, as both official solvers do.
    Raises UsageError if steps, shift or grid are invalid.
    Source: wan/utils/fm_solvers.py, `get_sampling_sigmas`; fm_solvers_unipc.py, `set_timesteps`.
    """
    import numpy as np

    if not MIN_SHIFT <= shift < math.inf:
        expected = f"a number above 0 ({MIN_SHIFT:g} or more)"
        raise UsageError(f"shift must be {expected}, got {shift:g}; use 3, 5, 8 or 12")
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
            f"noise levels must fall at every step, but at shift {shift:g} some are equal; "
            "use a smaller shift, or timesteps farther apart"
        )
    timesteps = TRAIN_TIMESTEPS * levels  # from float64 levels: float32 ones truncate differently
    timesteps = np.trunc(timesteps) if integer_timesteps else timesteps.astype(np.float32)
    return Schedule(
        solver=solver, sigmas=tuple(sigmas.tolist()), timesteps=tuple(timesteps.tolist())
    )


def check_grid(grid: Sequence[float]) -> None:
    """Raise UsageError unless the timesteps fall strictly and are in (0, 1000]."""
    falling = all(above > below for above, below in itertools.pairwise(grid))
    if not grid or not falling or not (grid[-1] > 0 and grid[0] <= TRAIN_TIMESTEPS):
        shown = ",".join(f"{value:g}" for value in grid) or "none"
        raise UsageError(
            f"timesteps must fall from at most {TRAIN_TIMESTEPS} and stay above 0, got {shown}; "
            "use for example 1000,750,500,250"
        )


def log_snr(sigma: float) -> float:
    """Return lambda = log((1 - sigma) / sigma) of a level, which is infinite at 0 and 1."""
    if sigma == 0.0:
        return math.inf
    if sigma == 1.0:
        return -math.inf
    return math.log(1.0 - sigma) - math.log(sigma)


def coefficients(sigma: float, target: float) -> tuple[float, float, float]:
    """Return the first-order coefficients from level `sigma` to `target`, and the step in log-SNR.

    The first-order update is ratio * sample - alpha_phi_1 * x0. Returns ratio, alpha_phi_1 and h;
    h is infinite from sigma 1 and to sigma 0. In the DPM-Solver++ and UniPC papers, ratio is
    sigma_t / sigma_s, and alpha_phi_1 is alpha_t * (e^-h - 1).
    """
    h = log_snr(target) - log_snr(sigma)
    return target / sigma, (1.0 - target) * math.expm1(-h), h
