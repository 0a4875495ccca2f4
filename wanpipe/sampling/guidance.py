"""Classifier-free guidance. Knows one formula, and no networks."""

import mlx.core as mx


def guided(cond: mx.array, uncond: mx.array | None, scale: float) -> mx.array:
    """Push the velocity away from the negative prompt's: uncond + scale * (cond - uncond).

    Computes in float32. Without `uncond` (a scale of 1 needs none) it is `cond`.
    """
    cond = cond.astype(mx.float32)
    if uncond is None:
        return cond
    uncond = uncond.astype(mx.float32)
    return uncond + scale * (cond - uncond)
