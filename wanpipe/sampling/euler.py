"""Euler's method along the velocity: the plain solver, for distilled models above all.

Has no memory: nothing is carried from step to step. There is no official class of it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build

if TYPE_CHECKING:
    import mlx.core as mx


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Lay out `steps` levels from sigma 1, or those of `grid`; timesteps keep their fractions."""
    return build("euler", steps, shift, grid, start=1.0, whole=False)


def order(schedule: Schedule, step: int) -> int:
    """Order of the method at `step`: always 1."""
    return 1


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step: (C, F, H, W) float32 to the next latent, the clean video x0, and no state."""
    sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
    return latent + (target - sigma) * velocity, latent - sigma * velocity, {}
