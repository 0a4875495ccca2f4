"""UniPC of order 2 (B2, data prediction) for flow matching, the official default solver.

Each step corrects its input sample, then predicts the next. Its scalars are float64 on the host.
Source: Zhao et al. 2023, "UniPC" (arXiv 2302.04867).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build, coefficients, log_snr

if TYPE_CHECKING:
    import mlx.core as mx

START = 0.9990000128746033  # 1 - 1/1000 in float32: officially the highest level before the shift


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Return `steps` levels from 0.999, or those of `grid`; timesteps are truncated.

    Timesteps of `grid` above 999 become 999. At sigma 1, the official corrector has an infinite
    coefficient and returns NaN.
    """
    return build("unipc", steps, shift, grid, start=START, integer_timesteps=True)


def order(schedule: Schedule, step: int) -> int:
    """Return the order of the predictor at `step`: 1 at the first and the last step, else 2."""
    return 1 if step in (0, schedule.steps - 1) else 2


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step, and return the next latent, the clean latent x0, and the state.

    All arrays are (C, F, H, W), float32. The state has "sample", the corrected sample, and from
    step 1 on "x0_before", the x0 of the previous step. The input `state` is that of the previous
    step, with its x0 as "x0"; step 0 needs none.
    Source: wan/utils/fm_solvers_unipc.py, `FlowUniPCMultistepScheduler.step`.
    """
    x0 = latent - schedule.sigmas[step] * velocity
    if step == 0:
        return _predict(latent, x0, x0, schedule, step), x0, {"sample": latent}
    sample, x0_before = _correct(x0, schedule, step, state), state["x0"]
    moved = _predict(sample, x0, x0_before, schedule, step)
    return moved, x0, {"sample": sample, "x0_before": x0_before}


def _predict(
    sample: "mx.array",
    x0: "mx.array",
    x0_before: "mx.array",
    schedule: Schedule,
    step: int,
) -> "mx.array":
    """Predict the sample after `step` (`multistep_uni_p_bh_update`)."""
    ratio, alpha_phi_1, h = coefficients(*schedule.sigmas[step : step + 2])
    moved = ratio * sample - alpha_phi_1 * x0
    if order(schedule, step) == 2:
        # 0.5: at order 2 the official predictor does not solve for its weight
        moved = moved - 0.5 * alpha_phi_1 / _r_k(schedule, step, h) * (x0_before - x0)
    return moved


def _correct(
    x0: "mx.array", schedule: Schedule, step: int, state: dict[str, "mx.array"]
) -> "mx.array":
    """Compute the sample at `step` again with its x0 (`multistep_uni_c_bh_update`)."""
    ratio, alpha_phi_1, h = coefficients(*schedule.sigmas[step - 1 : step + 1])
    moved = ratio * state["sample"] - alpha_phi_1 * state["x0"]
    if order(schedule, step - 1) == 1:
        return moved - 0.5 * alpha_phi_1 * (x0 - state["x0"])
    r_k = _r_k(schedule, step - 1, h)
    rho_before, rho = _corrector_weights(h, r_k)
    return (
        moved
        - alpha_phi_1 * rho_before / r_k * (state["x0_before"] - state["x0"])
        - alpha_phi_1 * rho * (x0 - state["x0"])
    )


def _r_k(schedule: Schedule, step: int, h: float) -> float:
    """Return r_k: the log-SNR from `step` back to the previous step, relative to h; negative."""
    return (log_snr(schedule.sigmas[step - 1]) - log_snr(schedule.sigmas[step])) / h


def _corrector_weights(h: float, r_k: float) -> tuple[float, float]:
    """Solve [[1, 1], [r_k, 1]] rho = b for the weights of the previous and the current x0."""
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2.0 * phi_3 / phi_1
    rho_before = (b_1 - b_2) / (1.0 - r_k)
    return rho_before, b_1 - rho_before
