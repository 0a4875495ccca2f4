"""Known latents: positions of a video that are given, and keep their values while the rest is made.

One mechanism for the first frame of TI2V, for the first frames that a video continues, and for what
a mask keeps of a video to change. Knows nothing of entries or networks.
"""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class Known:
    """Given latents (C, F, H, W), and `where` they are known, (1, F, H, W) or (1, F, 1, 1), bool.

    TI2V was trained with known frames that are `clean`: they never have noise, and their timestep
    is 0. Other models know only one noise level in a video, so there the known part follows its
    straight line from the noise to the given latent.
    """

    latent: mx.array
    where: mx.array
    clean: bool

    @staticmethod
    def frames(first: mx.array, count: int) -> "Known":
        """Return the known first frames (C, K, H, W) of `count` latent frames, clean."""
        missing = count - first.shape[1]
        latent = mx.pad(first, [(0, 0), (0, missing), (0, 0), (0, 0)])
        where = mx.arange(count).reshape(1, -1, 1, 1) < first.shape[1]
        return Known(latent=latent, where=where, clean=True)

    def in_latent(self, latent: mx.array) -> mx.array:
        """Return a latent with the clean known part.

        Follows `WanTI2V.i2v` of wan/textimage2video.py.
        """
        return mx.where(self.where, self.latent, latent) if self.clean else latent

    def in_velocity(self, velocity: mx.array, latent: mx.array, sigma: float) -> mx.array:
        """Return the velocity at noise level `sigma` with that of the known part, where the clean
        latent is not predicted but given.
        """
        if self.clean:
            return velocity
        return mx.where(self.where, (latent - self.latent) / sigma, velocity)

    def timesteps(self, timestep: float, count: int) -> list[float]:
        """Return the timestep of a step, or of each of its `count` latent frames."""
        if not self.clean:
            return [timestep]
        return [0.0 if self.where[0, f].item() else timestep for f in range(count)]
