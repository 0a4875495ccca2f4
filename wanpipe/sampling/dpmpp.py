"""DPM-Solver++ (2M, midpoint) for flow matching, the other official solver besides UniPC.

Needs the x0 of the previous step. Its scalars are float64 on the host.
Source: Lu et al. 2022, "DPM-Solver++" (arXiv 2211.01095).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build, coefficients, log_snr

if TYPE_CHECKING:
    import mlx.core as mx


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Return `steps` levels from sigma 1, or those of `grid`; timesteps are truncated."""
    return build("dpm++", steps, shift, grid, start=1.0, integer_timesteps=True)


def order(schedule: Schedule, step: int) -> int:
    """Return the order at `step`: 1 at the first and the last step, else 2."""
    return 1 if step in (0, schedule.steps - 1) else 2


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step, and return the next latent, the clean latent x0, and an empty state.

    All arrays are (C, F, H, W), float32. `state["x0"]` is the x0 of the previous step; step 0 needs
    none. Source: wan/utils/fm_solvers.py, `FlowDPMSolverMultistepScheduler`.
    """
    sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
    x0 = latent - sigma * velocity
    ratio, alpha_phi_1, h = coefficients(sigma, target)
    moved = ratio * latent - alpha_phi_1 * x0
    if order(schedule, step) == 2:
        # h_0 is infinite from sigma 1; then h / h_0 is 0, and the step is of order 1
        h_0 = log_snr(sigma) - log_snr(schedule.sigmas[step - 1])
        moved = moved - 0.5 * alpha_phi_1 * (h / h_0) * (x0 - state["x0"])
    return moved, x0, {}
