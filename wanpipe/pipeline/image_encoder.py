"""Encodes a prepared image as the official image-to-video pipelines do: VAE condition, first-frame
latent, CLIP tokens.

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
    """Encode the I2V condition (4 + C, F, H, W): a mask that is 1 for the first latent frame, then
    the latent of the image
    followed by grey frames. `pixels` (Y, X, 3) in [-1, 1].

    Source: wan/image2video.py, WanI2V.generate.
    """
    latent = encoder(model, dtype, store).encode(clip_of(pixels, num_frames))
    _, F, H, W = latent.shape
    first = mx.ones((4, 1, H, W))
    mask = mx.concatenate([first, mx.zeros((4, F - 1, H, W))], axis=1)
    return mx.concatenate([mask, latent])


def clip_of(pixels: np.ndarray, num_frames: int) -> Iterator[mx.array]:
    """Yield the image, then grey frames four at a time, the very same array: the clip never exists
    whole, and what the encoder finds settled it does not compute again.
    """
    first = mx.array(pixels)[None]
    yield first
    grey = mx.zeros((4, *pixels.shape))
    for _ in range((num_frames - 1) // 4):
        yield grey


def first_frame(model: Model, pixels: np.ndarray, dtype: str, store: Store) -> mx.array:
    """Encode the image alone (C, 1, H, W), as TI2V keeps it. Source: wan/textimage2video.py,
    WanTI2V.i2v.
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
