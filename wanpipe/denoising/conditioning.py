"""The arrays that a run is conditioned on, read from its text and image entries."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from wanpipe.denoising.request import Request

NAMES = {"condition": "condition", "clip": "clip", "latent": "first_frame"}  # of image entries


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text embeddings and image arrays, all float32.

    `prompt` and `negative` are (L, D). I2V has `condition` (4+C, F, H, W), and Wan2.1 also `clip`
    (257 or 514, D). TI2V has `first_frame` (C, 1, H, W).
    """

    prompt: mx.array
    negative: mx.array
    condition: mx.array | None = None
    clip: mx.array | None = None
    first_frame: mx.array | None = None

    def blend(self, latent: mx.array) -> mx.array:
        """Replace the first latent frame by the image's latent, if there is one (TI2V).

        Follows `WanTI2V.i2v` of wan/textimage2video.py.
        """
        if self.first_frame is None:
            return latent
        return mx.concatenate([self.first_frame, latent[:, 1:]], axis=1)


def read_conditioning(request: Request) -> Conditioning:
    """Read the arrays of the text and image entries."""
    text = request.text.published()
    arrays: dict[str, Any] = {name: mx.array(text.read(name)) for name in ("prompt", "negative")}
    if request.image is not None:
        image = request.image.published()
        arrays |= {NAMES[name]: mx.array(image.read(name)) for name in image.names}
    return Conditioning(**arrays)
