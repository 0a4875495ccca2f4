"""The up and down path of the Wan2.1 VAE: residual blocks and resampling in one row.

Only the layout; the blocks are those of `causal_vae`, the networks around them those of `vae`.
Official source: wan/modules/vae.py, `Encoder3d` and `Decoder3d`.
"""

import mlx.nn as nn

from wanpipe.models.causal_vae import Downsample, ResidualBlock, Upsample
from wanpipe.models.vae_sizes import TEMPORAL, WIDTHS


def down_path(base: int) -> list[nn.Module]:
    """Lay out the layers from `base` channels at full size down to 4 * `base` at an eighth."""
    layers: list[nn.Module] = []
    inputs = base
    for level, width in enumerate(WIDTHS):
        outputs = base * width
        layers += [ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)]
        inputs = outputs
        if level < len(TEMPORAL):
            layers.append(Downsample(inputs, TEMPORAL[level]))
    return layers


def up_path(base: int) -> list[nn.Module]:
    """Lay out the layers from 4 * `base` channels at an eighth up to `base` at full size."""
    layers: list[nn.Module] = []
    inputs = base * WIDTHS[-1]
    for level in reversed(range(len(WIDTHS))):
        outputs = base * WIDTHS[level]
        layers += [ResidualBlock(width, outputs) for width in (inputs, outputs, outputs)]
        inputs = outputs
        if level > 0:
            layers.append(Upsample(outputs, outputs // 2, TEMPORAL[level - 1]))
            inputs = outputs // 2
    return layers
