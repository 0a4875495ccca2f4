"""Encodes prepared images as the official pipelines do: VAE condition, first-frame latent, CLIP
tokens.

Loads one network at a time. Knows nothing of files, canvases or entries.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from wanpipe.backend.device import mlx_dtype
from wanpipe.models.clip import CLIP
from wanpipe.models.vae import vae
from wanpipe.store import Store
from wanpipe.weights.load import load_network
from wanpipe.weights.model import Model

Ends = Sequence[np.ndarray | None]  # the first frames of a video, and the last one


def condition(model: Model, ends: Ends, num_frames: int, dtype: str, store: Store) -> mx.array:
    """Encode the I2V condition (4 + C, F, H, W) of the first frames and the last frame of a video.

    The first ones are (K, Y, X, 3) in [-1, 1], K = 4n+1, the last one is (1, Y, X, 3); one of them
    may be None. The mask channels are 1 for the latent frames of the first ones, and for the last
    one only the channel of its last frame is. The latent is that of the images, with gray frames
    in place of all others.
    Source: wan/image2video.py, WanI2V.generate; wan/first_last_frame2video.py, WanFLF2V.generate.
    """
    first, last = ends
    latent = encoder(model, dtype, store).encode(padded_video(ends, num_frames))
    mask = np.zeros((4, *latent.shape[1:]), dtype=np.float32)
    if first is not None:
        mask[:, : (len(first) + 3) // 4] = 1
    if last is not None:
        mask[3, -1] = 1
    return mx.concatenate([mx.array(mask), latent])


def padded_video(ends: Ends, num_frames: int) -> Iterator[mx.array]:
    """Yield one frame (1, Y, X, 3), then four at a time: the given ones, gray frames between them.

    Gray is the same array each time: the encoder recognizes constant input and computes it once.
    """
    first, last = ends
    given = last if first is None else first
    assert given is not None
    gray = mx.zeros((4, *given.shape[1:]))
    known = [gray[:1]] if first is None else list(vae.chunks(mx.array(first)))
    yield from known
    fours = (num_frames - 1) // 4 + 1 - len(known)
    for _ in range(fours if last is None else fours - 1):
        yield gray
    if last is not None:
        yield mx.concatenate([gray[:3], mx.array(last)])


def first_latent(model: Model, frames: np.ndarray, dtype: str, store: Store) -> mx.array:
    """Encode the first frames (K, Y, X, 3) alone (C, F, H, W), for TI2V.

    Source: wan/textimage2video.py, WanTI2V.i2v.
    """
    return encoder(model, dtype, store)(mx.array(frames))


def encoder(model: Model, dtype: str, store: Store) -> vae.Encoder:
    """Load the VAE's encoder."""
    network = vae.Encoder(model.config.vae)
    load_network(network, model.checked("vae_encoder", store), mlx_dtype(dtype))
    store.report.event("loaded", component="vae_encoder")
    return network


def clip_features(model: Model, images: Sequence[np.ndarray], dtype: str, store: Store) -> mx.array:
    """Encode prepared images (224, 224, 3) to CLIP's tokens (257, D) of each, joined."""
    network = CLIP(model.component("clip").config)
    load_network(network, model.checked("clip", store), mlx_dtype(dtype))
    store.report.event("loaded", component="clip")
    return mx.concatenate([network(mx.array(pixels)) for pixels in images])
