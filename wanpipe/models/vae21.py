"""The down and up path of the Wan2.1 VAE: a sequence of residual blocks and resampling layers.

Blocks come from `vae_blocks`; `vae` adds the other layers of the encoder and the decoder.
Source: wan/modules/vae.py, `Encoder3d` and `Decoder3d`.
"""

import mlx.nn as nn

from wanpipe.models.config import DIM_MULT, TEMPORAL_DOWNSAMPLE
from wanpipe.models.vae_blocks import Downsample, ResidualBlock, Upsample


def down_path(base: int) -> list[nn.Module]:
    """Return the layers from `base` channels at full size to 4 * `base` at an eighth."""
    layers: list[nn.Module] = []
    inputs = base
    for level, factor in enumerate(DIM_MULT):
        outputs = base * factor
        layers += [ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)]
        inputs = outputs
        if level < len(TEMPORAL_DOWNSAMPLE):
            layers.append(Downsample(inputs, TEMPORAL_DOWNSAMPLE[level]))
    return layers


def up_path(base: int) -> list[nn.Module]:
    """Return the layers from 4 * `base` channels at an eighth to `base` at full size."""
    layers: list[nn.Module] = []
    inputs = base * DIM_MULT[-1]
    for level in reversed(range(len(DIM_MULT))):
        outputs = base * DIM_MULT[level]
        layers += [ResidualBlock(width, outputs) for width in (inputs, outputs, outputs)]
        inputs = outputs
        if level > 0:
            layers.append(Upsample(outputs, outputs // 2, TEMPORAL_DOWNSAMPLE[level - 1]))
            inputs = outputs // 2
    return layers
