"""Random weights of a tiny autoencoder, under the names of TAEHV's files, and those files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from wanpipe.checkpoints.rules import taehv
from wanpipe.models.config import TINY_GROWTH

Tensors = dict[str, np.ndarray]
WIDTHS = (256, 128, 64, 64)  # of the real ones
NARROW = (8, 6, 4, 4)
KINDS = {"taew2_1": (16, 1), "taew2_2": (48, 2)}  # latent channels, pixels along a patch
SIZES = {"taew2_1": (3, 2, 3), "taew2_2": (2, 2, 2)}  # of the latents that the reference decoded


def draw_weights(kind: str, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> Tensors:
    """Draw the decoder of a kind, so that most of what it makes of a normal latent is in [0, 1].

    The first matrix that makes frames is for two, as in a file for a network that makes more.
    """
    z_dim, patch = KINDS[kind]
    generator = np.random.default_rng(seed)
    tensors: Tensors = {}

    def conv(name: str, inputs: int, outputs: int, side: int = 3, gain: float = 1.0) -> None:
        values = generator.standard_normal((outputs, inputs, side, side), np.float32)
        tensors[f"{name}.weight"] = values * np.float32(gain / np.sqrt(inputs * side**2))

    def bias(name: str, middle: float = 0.0) -> None:
        outputs = len(tensors[f"{name}.weight"])
        values = generator.standard_normal(outputs, np.float32) * np.float32(0.1)
        tensors[f"{name}.bias"] = values + np.float32(middle)

    conv(taehv.INPUT, z_dim, widths[0])
    bias(taehv.INPUT)
    for number, (blocks, matrix, last) in enumerate(taehv.LEVELS):
        width, rows = widths[number], widths[number] * (TINY_GROWTH[number] + (number == 0))
        for block in blocks:
            for index, inputs in ((0, 2 * width), (2, width), (4, width)):
                conv(f"decoder.{block}.conv.{index}", inputs, width)
                bias(f"decoder.{block}.conv.{index}")
        conv(f"decoder.{matrix}.conv", width, rows, 1)
        conv(f"decoder.{last}", width, widths[number + 1])
    conv(taehv.OUTPUT, widths[3], 3 * patch**2, gain=0.8)
    bias(taehv.OUTPUT, 0.5)
    return tensors


def draw_latent(kind: str) -> np.ndarray:
    """Draw the latent (C, F, H, W) that the reference decoded."""
    shape = (KINDS[kind][0], *SIZES[kind])
    return 1.5 * np.random.default_rng(1).standard_normal(shape, np.float32)


def write_tiny_vae(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write a .safetensors file, with a tensor of the encoder that every such file has."""
    save_file({"encoder.0.bias": np.zeros(64, np.float32), **tensors}, path)
    return path
