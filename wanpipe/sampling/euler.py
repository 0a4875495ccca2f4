"""Euler's method, mainly for distilled models.

Has no state. The official code has no Euler solver.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build

if TYPE_CHECKING:
    import mlx.core as mx


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Return `steps` levels from sigma 1, or those of `grid`; timesteps keep their fraction."""
    return build("euler", steps, shift, grid, start=1.0, integer_timesteps=False)


def order(schedule: Schedule, step: int) -> int:
    """Return the order at `step`, which is always 1."""
    return 1


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step, and return the next latent, the clean latent x0, and an empty state.

    All arrays are (C, F, H, W), float32.
    """
    sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
    return latent + (target - sigma) * velocity, latent - sigma * velocity, {}
