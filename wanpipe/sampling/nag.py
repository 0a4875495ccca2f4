"""Normalized attention guidance (NAG): a negative prompt that acts within cross-attention.

It needs no second pass through the network, so it works at guidance 1. Loads no MLX at import.

Source: Chen et al. 2025, "Normalized Attention Guidance" (arXiv 2505.21179), and its code for Wan,
ChenDarYen/Normalized-Attention-Guidance, src/attention_wan_nag.py, `NAGWanAttnProcessor2_0`, which
guides the attention to the text tokens, not that to image tokens. As there, guidance by a second
pass may be used too; then NAG changes the pass of the prompt only. Differences from that code:
- The negative prompt is the same for both.
- Values are float32, not those of the compute dtype.
"""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from wanpipe.runtime.documents import Document

if TYPE_CHECKING:
    import mlx.core as mx

# as in the authors' code, and in the node WanVideoNAG of ComfyUI-KJNodes, whose scale is 11
TAU, ALPHA = 2.5, 0.25
MAX_SCALE, MAX_TAU = 100.0, 10.0
TINY = 1e-7  # keeps the official division finite


class Nag(Document, frozen=True, kw_only=True):
    """How far attention moves away from the negative prompt (`scale`), how much longer than that of
    the prompt it may become (`tau`), and its part in the result (`alpha`).
    """

    scale: Annotated[float, Meta(ge=1, le=MAX_SCALE)]
    tau: Annotated[float, Meta(gt=0, le=MAX_TAU)] = TAU
    alpha: Annotated[float, Meta(ge=0, le=1)] = ALPHA


def guide(positive: "mx.array", negative: "mx.array", nag: Nag) -> "mx.array":
    """Guide the attention to the prompt (..., D) away from that to the negative prompt.

    The guided attention is scale * positive - (scale - 1) * negative. Where its L1 norm is more
    than tau times that of the positive one, it is shortened to that. The result is alpha times it,
    plus 1 - alpha times the positive one, in the dtype of `positive`.
    """
    import mlx.core as mx

    z, other = positive.astype(mx.float32), negative.astype(mx.float32)
    guided = nag.scale * z - (nag.scale - 1) * other
    limit, norm = (mx.abs(x).sum(-1, keepdims=True) for x in (nag.tau * z, guided))
    guided = guided * mx.where(norm > limit, limit / (norm + TINY), 1.0)
    return (nag.alpha * guided + (1 - nag.alpha) * z).astype(positive.dtype)
