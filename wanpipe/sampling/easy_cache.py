"""EasyCache: reuses the last velocity while the latent has changed little since the network ran.

Runs no network and loads no MLX at import. The caller counts `since`, the number of steps since
anything but the latent changed, because keys are planned before arrays exist.

Source: Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via
Runtime-Adaptive Caching" (arXiv 2507.02860), and its code, H-EmbodVis/EasyCache,
EasyCache4Wan2.2/easycache_generate.py, `easycache_forward`. Differences from that code:
- The guided velocity decides, not the conditional one.
- The warm-up is a fifth of all steps, not 7 (or 10 of 50 in ports to Wan2.1).
- The network runs at the last step of the run, not of each expert: the next expert starts with a
  warm-up.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

METHOD = "easycache"
MIN_STEPS = 10  # with fewer, steps change too much, and the warm-up is too short for a rate
EPSILON = 1e-12  # a latent that is all image (one frame of TI2V) does not change at all


def rule(threshold: float, steps: int, since: int) -> dict[str, Any]:
    """Return the reuse rule of a step, as recorded in its material.

    `threshold` bounds the estimated relative change of the velocity, accumulated since the network
    ran. The first fifth of `steps` always runs the network.
    """
    warm_up = math.ceil(steps / 5)
    return {"method": METHOD, "threshold": threshold, "warm_up": warm_up, "since": since}


def reuse(
    latent: "mx.array", rule: dict[str, Any], state: dict[str, "mx.array"]
) -> "mx.array | None":
    """Estimate the velocity (C, F, H, W), or return None if the network must run.

    The estimate is the latent plus the last known difference between velocity and latent. The
    official code has one difference per guidance pass. One difference of the guided velocity is
    equivalent: n + d_n + g * ((n + d_c) - (n + d_n)) = n + (d_n + g * (d_c - d_n)) for a latent n.
    `state` comes from `update_state` after the previous step; the warm-up does not read it.
    """
    if rule["since"] < rule["warm_up"] or state["cache_drift"].item() >= rule["threshold"]:
        return None
    return latent + (state["cache_velocity"] - state["cache_latent"])


def update_state(
    latent: "mx.array",
    velocity: "mx.array | None",
    moved: "mx.array",
    rule: dict[str, Any],
    state: dict[str, "mx.array"],
) -> dict[str, "mx.array"]:
    """Return the float32 state for the next step, whose latent is `moved`.

    `velocity` is the network's prediction for `latent`, or None if the network did not run.
    "cache_latent" and "cache_velocity" (C, F, H, W) belong to the step at which it last ran. From
    the second such step on, the state also has two values (1, 1, 1, 1): "cache_rate", the relative
    change of the velocity per change of the latent, and "cache_drift", the expected change of the
    velocity, accumulated since the network ran. Changes are mean absolute values.
    """
    import mlx.core as mx

    if velocity is None:
        after = {name: state[name] for name in ("cache_latent", "cache_velocity", "cache_rate")}
        drift = state["cache_drift"]
    else:
        after, drift = {"cache_latent": latent, "cache_velocity": velocity}, mx.zeros((1, 1, 1, 1))
        if rule["since"] == 0:  # `state` belongs to another expert, text or guidance
            return after
        change = mean_abs(velocity - state["cache_velocity"])
        move = mx.maximum(mean_abs(latent - state["cache_latent"]), EPSILON)
        after["cache_rate"] = change / move / mean_abs(velocity)
    return {**after, "cache_drift": drift + after["cache_rate"] * mean_abs(moved - latent)}


def mean_abs(array: "mx.array") -> "mx.array":
    """Return the mean absolute value (1, 1, 1, 1)."""
    return array.abs().mean(keepdims=True)
