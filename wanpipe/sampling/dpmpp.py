"""DPM-Solver++ (2M, midpoint) on flow-matching levels: the second of the official solvers.

Remembers one clean prediction, that of the step before. Its scalars are float64 on the host.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build, log_snr, transfer

if TYPE_CHECKING:
    import mlx.core as mx


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Lay out `steps` levels from sigma 1, or those of `grid`; timesteps are cut to integers."""
    return build("dpm++", steps, shift, grid, start=1.0, whole=True)


def order(schedule: Schedule, step: int) -> int:
    """Order of the method at `step`: 1 at the first and the last step, else 2."""
    return 1 if step in (0, schedule.steps - 1) else 2


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step: (C, F, H, W) float32 to the next latent, the clean video x0, and no state.

    `state["x0"]` is what the step before returned as x0; step 0 needs none.
    Source: wan/utils/fm_solvers.py, FlowDPMSolverMultistepScheduler.
    """
    sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
    x0 = latent - sigma * velocity
    ratio, gain, h = transfer(sigma, target)
    moved = ratio * latent - gain * x0
    if order(schedule, step) == 2:
        # infinite from sigma 1, where the quotient below is 0: the step is of first order there
        h_before = log_snr(sigma) - log_snr(schedule.sigmas[step - 1])
        moved = moved - 0.5 * gain * (h / h_before) * (x0 - state["x0"])
    return moved, x0, {}
