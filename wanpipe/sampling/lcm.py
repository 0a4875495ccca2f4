"""The LCM sampler for flow matching: each step predicts the clean video, and adds new noise to it.

For models that are distilled to a few steps by distribution matching or as consistency models. In
all of them the network predicts the velocity, x0 = x - sigma * v, and the next latent is
(1 - sigma') * x0 + sigma' * noise. The caller puts the noise of a step into `state`.

Sources, which differ only in their noise levels:
- CausVid, causvid/models/wan/bidirectional_inference.py, and FastVideo, `DmdDenoisingStage` of
  fastvideo/pipelines/stages/denoising.py (FastWan): timesteps 1000, 757, 522, which are shifted
  already; the sigma is that of the nearest of 1000 timesteps at shift 8, so 0.757 is 0.7568.
- Self-Forcing and Self-Forcing-Plus, pipeline/bidirectional_inference.py: timesteps 1000, 750, 500,
  250 before a shift of 5; the last timestep is the shifted one, not truncated.
- rCM, rcm/inference/wan2pt1_t2v_rcm_infer.py: sigma is sin(t) / (sin(t) + cos(t)) at the angles
  atan(80), 1.5, 1.4, 1.0; the start is the first sigma times the noise.
- diffusers, `FlowMatchLCMScheduler.step`, without its change of scales.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wanpipe.sampling.schedule import Schedule, build

if TYPE_CHECKING:
    import mlx.core as mx


def schedule(steps: int, shift: float, grid: Sequence[float] | None = None) -> Schedule:
    """Return `steps` levels from sigma 1, or those of `grid`; timesteps keep their fraction."""
    return build("lcm", steps, shift, grid, start=1.0, integer_timesteps=False)


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

    All arrays are (C, F, H, W), float32. `state["noise"]` is the noise of this step; the last one,
    which ends at x0, needs none.
    """
    sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
    x0 = latent - sigma * velocity
    if target == 0.0:
        return x0, x0, {}
    return (1 - target) * x0 + target * state["noise"], x0, {}
