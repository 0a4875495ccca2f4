"""UniPC of order 2 (B2, data prediction) on flow-matching levels: the official default solver.

Every step first corrects the sample it was given, then predicts the next. Its scalars are float64
on the host.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build, log_snr, transfer

if TYPE_CHECKING:
    import mlx.core as mx

START = 0.9990000128746033  # float32 of 1 - 1/1000: the official highest level before the shift


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Lay out `steps` levels from 0.999, or those of `grid`; timesteps are cut to integers.

    Of `grid`, what lies above 999 becomes 999: at sigma 1 the official corrector solves a
    system with an infinite coefficient and gives NaN; its own start is the highest it can stand.
    """
    return build("unipc", steps, shift, grid, start=START, whole=True)


def order(schedule: Schedule, step: int) -> int:
    """Order of the predictor at `step`: 1 at the first and the last step, else 2."""
    return 1 if step in (0, schedule.steps - 1) else 2


def advance(
    latent: "mx.array",
    velocity: "mx.array",
    schedule: Schedule,
    step: int,
    state: dict[str, "mx.array"],
) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]:
    """Take one step: (C, F, H, W) float32 to the next latent, the clean video x0, and state.

    `state` is what the step before returned, with its x0 added as "x0"; step 0 needs none. It holds
    "sample", the corrected sample, and from step 1 on "x0_before", the x0 one step earlier.
    Source: wan/utils/fm_solvers_unipc.py, FlowUniPCMultistepScheduler.step.
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
    ratio, gain, h = transfer(*schedule.sigmas[step : step + 2])
    moved = ratio * sample - gain * x0
    if order(schedule, step) == 2:
        # 0.5: the official predictor of order 2 does not solve for its weight
        moved = moved - 0.5 * gain / _reach(schedule, step, h) * (x0_before - x0)
    return moved


def _correct(
    x0: "mx.array", schedule: Schedule, step: int, state: dict[str, "mx.array"]
) -> "mx.array":
    """Move the sample of the step before to `step` again, now that x0 there is known."""
    ratio, gain, h = transfer(*schedule.sigmas[step - 1 : step + 1])
    moved = ratio * state["sample"] - gain * state["x0"]
    if order(schedule, step - 1) == 1:
        return moved - 0.5 * gain * (x0 - state["x0"])
    reach = _reach(schedule, step - 1, h)
    past, present = _weights(h, reach)
    return (
        moved
        - gain * past / reach * (state["x0_before"] - state["x0"])
        - gain * present * (x0 - state["x0"])
    )


def _reach(schedule: Schedule, step: int, h: float) -> float:
    """How far the step before `step` lies back, in units of the step h ahead: negative."""
    return (log_snr(schedule.sigmas[step - 1]) - log_snr(schedule.sigmas[step])) / h


def _weights(h: float, reach: float) -> tuple[float, float]:
    """Solve [[1, 1], [reach, 1]] w = b for the corrector's weights: past and present difference."""
    growth = math.expm1(-h)
    phi_2 = growth / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / growth, 2.0 * phi_3 / growth
    past = (b_1 - b_2) / (1.0 - reach)
    return past, b_1 - past
