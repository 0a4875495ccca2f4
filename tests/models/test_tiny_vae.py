"""The tiny VAE against the reference, and its stream of frames."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import golden
from tests.tiny_vae import KINDS, draw_latent, draw_weights, write_tiny_vae
from wanpipe.models.vae.tiny import Decoder
from wanpipe.store import Store
from wanpipe.weights.tiny_vae import open_tiny_vae


def load(folder: Path, kind: str, widths: tuple[int, ...]) -> Decoder:
    path = write_tiny_vae(folder / "tiny.safetensors", draw_weights(kind, widths))
    store = Store(folder / "cache")
    return open_tiny_vae(path, store).load(mx.float32, store)


def decode(network: Decoder, latent: np.ndarray) -> np.ndarray:
    """All frames (T, Y, X, 3) of a latent (C, F, H, W), in [-1, 1]."""
    return np.concatenate([np.array(piece) for piece in network.frames(mx.array(latent))])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    """Both compute in float32, in another order; frames in [0, 1] differ by about 1e-6."""
    network = load(tmp_path, kind, (256, 128, 64, 64))
    frames = golden(f"tiny-vae/{kind}")["frames"]
    ours = (decode(network, draw_latent(kind)) + 1) / 2
    assert ours.shape == frames.shape
    assert frames.std() > 0.1  # else any gray would do
    print(np.abs(ours - frames).max())
    assert np.abs(ours - frames).max() <= 1e-5
