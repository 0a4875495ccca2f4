"""Encodes a prepared image as the official pipelines do: VAE condition, first-frame latent, CLIP
tokens.

Loads one network at a time. Knows nothing of files, canvases or entries.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from wanpipe.backend.device import mlx_dtype
from wanpipe.models import vae
from wanpipe.models.clip import CLIP
from wanpipe.store import Store
from wanpipe.weights.load import load_network
from wanpipe.weights.model import Model


def condition(
    model: Model, pixels: np.ndarray, num_frames: int, dtype: str, store: Store
) -> mx.array:
    """Encode the I2V condition (4 + C, F, H, W) of `pixels` (Y, X, 3) in [-1, 1].

    The mask channels are 1 for the first latent frame. The latent is that of the image, followed
    by gray frames. Source: wan/image2video.py, WanI2V.generate.
    """
    latent = encoder(model, dtype, store).encode(padded_video(pixels, num_frames))
    _, F, H, W = latent.shape
    first = mx.ones((4, 1, H, W))
    mask = mx.concatenate([first, mx.zeros((4, F - 1, H, W))], axis=1)
    return mx.concatenate([mask, latent])


def padded_video(pixels: np.ndarray, num_frames: int) -> Iterator[mx.array]:
    """Yield the image (1, Y, X, 3), then gray frames, four at a time.

    It is the same array each time: the encoder recognizes constant input and computes it once.
    """
    first = mx.array(pixels)[None]
    yield first
    gray = mx.zeros((4, *pixels.shape))
    for _ in range((num_frames - 1) // 4):
        yield gray


def first_frame(model: Model, pixels: np.ndarray, dtype: str, store: Store) -> mx.array:
    """Encode the image alone (C, 1, H, W), for TI2V.

    Source: wan/textimage2video.py, WanTI2V.i2v.
    """
    return encoder(model, dtype, store)(mx.array(pixels)[None])


def encoder(model: Model, dtype: str, store: Store) -> vae.Encoder:
    """Load the VAE's encoder."""
    network = vae.Encoder(model.config.vae)
    load_network(network, model.checked("vae_encoder", store), mlx_dtype(dtype))
    store.report.event("loaded", component="vae_encoder")
    return network


def clip_features(model: Model, pixels: np.ndarray, dtype: str, store: Store) -> mx.array:
    """Encode prepared pixels (224, 224, 3) to CLIP's tokens (257, D)."""
    network = CLIP(model.component("clip").config)
    load_network(network, model.checked("clip", store), mlx_dtype(dtype))
    store.report.event("loaded", component="clip")
    return network(mx.array(pixels))
