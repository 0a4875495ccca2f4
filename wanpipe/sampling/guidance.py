"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

import mlx.core as mx


def apply_guidance(cond: mx.array, uncond: mx.array | None, scale: float) -> mx.array:
    """Return uncond + scale * (cond - uncond), float32.

    Without `uncond`, which a scale of 1 does not need, returns `cond`.
    """
    cond = cond.astype(mx.float32)
    if uncond is None:
        return cond
    uncond = uncond.astype(mx.float32)
    return uncond + scale * (cond - uncond)
