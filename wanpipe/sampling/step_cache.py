"""EasyCache: a velocity without the network, while the latent has moved little since it last ran.

Runs no network and loads no MLX itself. Which steps may reuse is counted by the chain (`since`, the
steps since something other than the latent changed), since their keys are planned before any array.

Source: Zhou et al. 2025, "Less is Enough: Training-Free Video Diffusion Acceleration via
Runtime-Adaptive Caching" (arXiv 2507.02860), and its code, H-EmbodVis/EasyCache,
EasyCache4Wan2.2/easycache_generate.py, `easycache_forward`. What differs: officially the velocity
under the prompt decides, here the guided one; the official warm-up is 7 steps (in ports to Wan2.1
10 of 50), here a fifth of all; officially the last step of each expert computes, here that of the
run, since the next expert begins with a warm-up.
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

METHOD = "easycache"
LEAST_STEPS = 10  # with fewer every step changes too much, and the warm-up is too short for a rate
SMALLEST = 1e-12  # a latent that is an image everywhere (one frame of TI2V) does not move at all


def rule(threshold: float, steps: int, since: int) -> dict[str, Any]:
    """Give what decides on a step, as its material has it: `threshold` bounds the estimated change
    of the velocity, relative and summed up; of `steps` the first fifth always computes.
    """
    warm_up = math.ceil(steps / 5)
    return {"method": METHOD, "threshold": threshold, "warm_up": warm_up, "since": since}


def reuse(
    latent: "mx.array", rule: dict[str, Any], state: dict[str, "mx.array"]
) -> "mx.array | None":
    """Give the velocity (C, F, H, W) that the network would predict, or None where it has to run.

    It is the latent plus what the network made of its last input: velocity minus latent. Officially
    either pass of guidance has its own difference; one of the guided velocity gives the same, since
    n + d_n + g * ((n + d_c) - (n + d_n)) = n + (d_n + g * (d_c - d_n)) for a latent n.
    `state` is what `remember` gave after the step before; in the warm-up it is not read.
    """
    if rule["since"] < rule["warm_up"] or state["cache_drift"].item() >= rule["threshold"]:
        return None
    return latent + (state["cache_velocity"] - state["cache_latent"])


def remember(
    latent: "mx.array",
    velocity: "mx.array | None",
    moved: "mx.array",
    rule: dict[str, Any],
    state: dict[str, "mx.array"],
) -> dict[str, "mx.array"]:
    """Give the state for the next step, float32: its latent is `moved`; `velocity` is what the
    network predicted for `latent`, None where it did not run.

    "cache_latent" and "cache_velocity" (C, F, H, W) are of the step where the network last ran.
    From the second such step on, (1, 1, 1, 1) each: "cache_rate", by how much the velocity changes,
    relative to itself, for a change of the latent by 1; "cache_drift", the change that this lets
    expect at the next step, summed up since the network ran. All changes are means of magnitudes.
    """
    import mlx.core as mx

    if velocity is None:
        kept = {name: state[name] for name in ("cache_latent", "cache_velocity", "cache_rate")}
        drift = state["cache_drift"]
    else:
        kept, drift = {"cache_latent": latent, "cache_velocity": velocity}, mx.zeros((1, 1, 1, 1))
        if rule["since"] == 0:  # what `state` holds is of another expert, text or guidance
            return kept
        change = magnitude(velocity - state["cache_velocity"])
        move = mx.maximum(magnitude(latent - state["cache_latent"]), SMALLEST)
        kept["cache_rate"] = change / move / magnitude(velocity)
    return {**kept, "cache_drift": drift + kept["cache_rate"] * magnitude(moved - latent)}


def magnitude(array: "mx.array") -> "mx.array":
    """Mean of magnitudes, (1, 1, 1, 1)."""
    return array.abs().mean(keepdims=True)
