"""The VAE: encodes a video to a normalized latent, chunk by chunk, and decodes it back.

Memory is bounded by one chunk (four frames), whatever the length of the video. Convolutions run in
the dtype of the weights, norms in float32; inputs and outputs are float32.
Source: `WanVAE_` and its wrappers in wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2).
"""

from collections.abc import Iterable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from wanpipe.models.config import DIM_MULT, VAEConfig
from wanpipe.models.layers import Linear
from wanpipe.models.vae.blocks import Middle
from wanpipe.models.vae.causal_conv import CausalCache, CausalConv, Norm
from wanpipe.models.vae.paths import DOWN, UP

# fmt: off
# Mean and standard deviation of each latent channel; source: `WanVAE`, `Wan2_2_VAE`.
MEAN = {
    "2.1": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    "2.2": (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
        -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
        -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
        -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
}
STD = {
    "2.1": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
    "2.2": (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
        0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
        0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
        0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
}
# fmt: on


class _VAEBase(nn.Module):
    """The normalization of the latent and the patch size, which encoder and decoder share."""

    input: CausalConv

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        # underscores: not parameters
        self._mean, self._scale = mx.array(MEAN[config.version]), 1 / mx.array(STD[config.version])
        self._z_dim = config.z_dim
        self._patch = config.patch_size

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of the convolutions."""
        return self.input.weight.dtype


class Decoder(_VAEBase):
    """Decode a normalized latent to frames, one latent frame at a time (`Decoder3d`)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.latent = Linear(config.z_dim, config.z_dim)
        self.input = CausalConv(config.z_dim, DIM_MULT[-1] * config.decoder_dim)
        self.middle = Middle(DIM_MULT[-1] * config.decoder_dim)
        self.up = UP[config.version](config.decoder_dim)
        doubling = [i for i, layer in enumerate(self.up) if getattr(layer, "factor_t", 1) == 2]
        self._slow = 1 + max(doubling)  # layers up to the last that doubles the frame rate
        self.norm = Norm(config.decoder_dim)
        self.output = CausalConv(config.decoder_dim, 3 * self._patch**2)

    def frames(self, latent: mx.array, at_once: int = 2) -> Iterator[mx.array]:
        """Decode a latent (C, F, H, W) to frames (T, Y, X, 3), float32 in [-1, 1].

        Yields one frame for the first latent frame and four for each other one, evaluated. The
        layers after the last doubling of frames take `at_once` (1, 2 or 4) frames together: fewer
        need less memory and more time.
        """
        z = latent.astype(mx.float32).transpose(1, 2, 3, 0) / self._scale + self._mean
        cache = CausalCache()
        for f in range(len(z)):
            yield self.chunk(z[f : f + 1], cache, at_once)

    def chunk(self, z: mx.array, cache: CausalCache, at_once: int = 2) -> mx.array:
        """Decode one latent frame (1, H, W, C) with the `cache` of the frames before it."""
        z = self.latent(z.astype(self.dtype))
        x = cache.run([self.middle, *self.up[: self._slow]], self.input(z, cache))
        pieces = [x[t : t + at_once] for t in range(0, len(x), at_once)]
        del x  # the name would keep the array in memory while the next layers run
        fast = [*self.up[self._slow :], self._to_pixels]
        decoded = [cache.nested.run(fast, pieces.pop(0)) for _ in range(len(pieces))]
        return cache.finish(mx.concatenate(decoded))

    def _to_pixels(self, x: mx.array, cache: CausalCache) -> mx.array:
        x = self.output(x, cache, self.norm).astype(mx.float32)
        return mx.clip(unpatchify(x, self._patch), -1, 1)


class Encoder(_VAEBase):
    """Encode frames to the normalized mean of their latent: one frame, then fours (`Encoder3d`)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.input = CausalConv(3 * self._patch**2, config.encoder_dim)
        self.down = DOWN[config.version](config.encoder_dim)
        self.middle = Middle(DIM_MULT[-1] * config.encoder_dim)
        self.norm = Norm(DIM_MULT[-1] * config.encoder_dim)
        self.output = CausalConv(DIM_MULT[-1] * config.encoder_dim, 2 * config.z_dim)
        self.latent = Linear(2 * config.z_dim, 2 * config.z_dim)

    def __call__(self, video: mx.array) -> mx.array:
        """Encode frames (T, Y, X, 3) in [-1, 1] to (C, F, H, W), float32.

        Frames after the last full group of four are dropped.
        """
        return self.encode(chunks(video))

    def encode(self, video: Iterable[mx.array]) -> mx.array:
        """Encode a video given in chunks, one frame and then fours, without holding all of it.

        While the chunk is the same array as before, layers with constant output are skipped.
        """
        cache = CausalCache()
        latents = [self.chunk(frames, cache) for frames in video]
        return mx.concatenate(latents).transpose(3, 0, 1, 2)  # (C, F, H, W)

    def chunk(self, frames: mx.array, cache: CausalCache) -> mx.array:
        """Encode one chunk (T, Y, X, 3) with the `cache` of the chunks before it."""
        layers = [self._from_pixels, *self.down, self.middle, self._to_latent]
        return cache.finish(cache.run_cached(layers, frames))

    def _from_pixels(self, frames: mx.array, cache: CausalCache) -> mx.array:
        return self.input(patchify(frames, self._patch).astype(self.dtype), cache)

    def _to_latent(self, x: mx.array, cache: CausalCache) -> mx.array:
        x = self.output(x, cache, self.norm)
        # the other channels are the log variance, which inference does not use
        mean = self.latent(x)[..., : self._z_dim].astype(mx.float32)
        return (mean - self._mean) * self._scale


def chunks(video: mx.array) -> Iterator[mx.array]:
    """Split frames (T, Y, X, 3) into the chunks of the encoder: one frame, then full fours."""
    yield video[:1]
    for t in range(1, len(video) - 3, 4):
        yield video[t : t + 4]


def patchify(x: mx.array, side: int) -> mx.array:
    """Move `side` x `side` pixels of (T, Y, X, C) to channels, ordered channel, column, row."""
    T, Y, X, C = x.shape
    x = x.reshape(T, Y // side, side, X // side, side, C).transpose(0, 1, 3, 5, 4, 2)
    return x.reshape(T, Y // side, X // side, C * side * side)  # (T, Y/side, X/side, C*side*side)


def unpatchify(x: mx.array, side: int) -> mx.array:
    """Move channels back to `side` x `side` pixels; the inverse of `patchify`."""
    T, H, W, C = x.shape
    x = x.reshape(T, H, W, C // side**2, side, side).transpose(0, 1, 5, 2, 4, 3)
    return x.reshape(T, H * side, W * side, C // side**2)  # (T, Y, X, C/side/side)


def to_uint8(frames: mx.array) -> mx.array:
    """Convert frames in [-1, 1] to uint8, rounded to nearest, ties to even."""
    return mx.round((frames + 1) * 127.5).astype(mx.uint8)


def video_uint8(pieces: Iterable[mx.array]) -> np.ndarray:
    """Concatenate the pieces (T, Y, X, 3) of a video as uint8."""
    return np.concatenate([np.array(to_uint8(piece)) for piece in pieces])
