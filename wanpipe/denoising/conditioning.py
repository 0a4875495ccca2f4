"""The arrays that a run is conditioned on, read from its text, image and video entries."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from wanpipe.denoising.known import Known
from wanpipe.denoising.request import Request


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text embeddings, and arrays of an image or a video, all float32.

    `prompt` and `negative` are (L, D). I2V has `condition` (4+C, F, H, W), and Wan2.1 also `clip`
    (257 or 514, D). VACE has `context` (96, R+F, H, W). `known` are given latents, and `video`
    (C, F, H, W) is the latent of a video to change.
    """

    prompt: mx.array
    negative: mx.array
    condition: mx.array | None = None
    clip: mx.array | None = None
    context: mx.array | None = None
    known: Known | None = None
    video: mx.array | None = None

    @property
    def of_network(self) -> dict[str, mx.array]:
        """The arrays that the network takes, by name."""
        names = ("prompt", "negative", "condition", "clip", "context")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}

    def start(self, noise: mx.array, sigma: float, *, scaled: bool = False) -> mx.array:
        """Return the latent that the first step starts from: noise, or a video with noise.

        Noise alone is multiplied by `sigma` if `scaled`; officially only rCM does that. Source:
        diffusers, WanVideoToVideoPipeline.prepare_latents; rCM, wan2pt1_t2v_rcm_infer.py.
        """
        if self.video is None:
            return sigma * noise if scaled else noise
        return (1 - sigma) * self.video + sigma * noise

    def in_latent(self, latent: mx.array) -> mx.array:
        """Return a latent with the part that is known."""
        return latent if self.known is None else self.known.in_latent(latent)

    def in_velocity(self, velocity: mx.array, latent: mx.array, sigma: float) -> mx.array:
        """Return a velocity with that of the known part."""
        return velocity if self.known is None else self.known.in_velocity(velocity, latent, sigma)

    def timesteps(self, timestep: float, count: int) -> list[float]:
        """Return the timestep of a step, or of each of its `count` latent frames."""
        return [timestep] if self.known is None else self.known.timesteps(timestep, count)


def read_conditioning(request: Request) -> Conditioning:
    """Read the arrays of the text, image and video entries."""
    text = request.text.published()
    arrays: dict[str, Any] = {name: mx.array(text.read(name)) for name in ("prompt", "negative")}
    for entry in (request.image, request.video):
        if entry is not None:
            there = entry.published()
            arrays |= {name: mx.array(there.read(name)) for name in there.names}
    given, mask = arrays.pop("latent", None), arrays.pop("mask", None)
    if given is not None and not request.changes_video:
        arrays["known"] = Known.frames(given, request.latent_shape[0])
    elif given is not None:
        arrays["video"] = given
        if mask is not None:
            arrays["known"] = Known(latent=given, where=mask == 0, clean=False)
    return Conditioning(**arrays)
