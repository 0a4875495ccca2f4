"""The down and up paths of both VAEs: the layers between full size and the latent's.

Wan2.1 has a sequence of residual blocks and resampling layers, Wan2.2 stages whose shortcuts
average or duplicate values. Blocks come from `blocks`; `vae` adds the other layers of the
encoder and the decoder. Source: wan/modules/vae.py, `Encoder3d` and `Decoder3d`, and
wan/modules/vae2_2.py, also `AvgDown3D` and `DupUp3D`.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.config import DIM_MULT, TEMPORAL_DOWNSAMPLE
from wanpipe.models.vae.blocks import Downsample, ResidualBlock, Upsample
from wanpipe.models.vae.causal_conv import CausalCache


def down_path_21(base: int) -> list[nn.Module]:
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


def up_path_21(base: int) -> list[nn.Module]:
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


def avg_down(x: mx.array, outputs: int, factor_t: int, factor_s: int) -> mx.array:
    """Average blocks of `factor_t` frames, `factor_s` rows and `factor_s` columns of (T, H, W, C).

    The values of a block are ordered channel, frame, row, column; each of the `outputs` channels is
    the mean of a run of them. Zeros pad missing frames at the front. Source: `AvgDown3D`.
    """
    if factor_t * factor_s * factor_s * x.shape[-1] == outputs:
        return x  # each mean has one value
    x = mx.pad(x, [(-x.shape[0] % factor_t, 0), (0, 0), (0, 0), (0, 0)])
    T, H, W, C = x.shape
    x = x.reshape(T // factor_t, factor_t, H // factor_s, factor_s, W // factor_s, factor_s, C)
    x = x.transpose(0, 2, 4, 6, 1, 3, 5)
    x = x.reshape(T // factor_t, H // factor_s, W // factor_s, outputs, -1)  # (T, H, W, O, run)
    return x.mean(-1)


def dup_up(x: mx.array, outputs: int, factor_t: int) -> mx.array:
    """View (T, H, W, C) as duplicated over `factor_t` frames, two rows and two columns.

    Returns a view (T, factor_t, H, 2, W, 2, O). Each output channel has C / O input channels, which
    the duplicates use in turn: over frames first, then over rows. Source: `DupUp3D`.
    """
    T, H, W, C = x.shape
    remaining, turns = C // outputs, []
    for side in (factor_t, 2, 2):
        turns.append(side if remaining > 1 else 1)
        remaining //= turns[-1]
    x = x.reshape(T, H, W, outputs, *turns).transpose(0, 4, 1, 5, 2, 6, 3)
    return mx.broadcast_to(x, (T, factor_t, H, 2, W, 2, outputs))


class DownStage(nn.Module):
    """Two residual blocks, downsampling if `shrink`, and an averaged shortcut.

    Source: `Down_ResidualBlock`.
    """

    def __init__(self, inputs: int, outputs: int, shrink: bool, temporal: bool) -> None:
        super().__init__()
        blocks = [ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)]
        self.blocks = [*blocks, Downsample(outputs, temporal)] if shrink else blocks
        self.outputs, self.factor_t, self.factor_s = outputs, 1 + temporal, 1 + shrink

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        # evaluated first: it is smaller than x, which it would keep alive
        shortcut = cache.evaluate(avg_down(x, self.outputs, self.factor_t, self.factor_s))
        return cache.run(self.blocks, x) + shortcut


class UpStage(nn.Module):
    """Three residual blocks and, if `grow`, upsampling with a duplicated shortcut.

    Source: `Up_ResidualBlock`.
    """

    def __init__(self, inputs: int, outputs: int, grow: bool, temporal: bool) -> None:
        super().__init__()
        blocks = [ResidualBlock(width, outputs) for width in (inputs, outputs, outputs)]
        self.blocks = [*blocks, Upsample(outputs, outputs, temporal)] if grow else blocks
        self.outputs, self.factor_t, self.grow = outputs, 1 + temporal, grow

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        if not self.grow:
            return cache.run(self.blocks, x)
        # the first frame of a video is not doubled: drop its other duplicates
        surplus = self.factor_t - 1 if cache.first else 0
        shortcut = dup_up(x, self.outputs, self.factor_t)[:, surplus:]
        *blocks, upsample = self.blocks
        y: mx.array = upsample(cache.run(blocks, x), cache, shortcut)
        return y


def down_path_22(base: int) -> list[nn.Module]:
    """Return the stages from `base` channels at full size to 4 * `base` at an eighth."""
    widths = [base, *(base * factor for factor in DIM_MULT)]
    return [
        DownStage(widths[level], widths[level + 1], level < len(TEMPORAL_DOWNSAMPLE), temporal)
        for level, temporal in enumerate((*TEMPORAL_DOWNSAMPLE, False))
    ]


def up_path_22(base: int) -> list[nn.Module]:
    """Return the stages from 4 * `base` channels at an eighth to `base` at full size."""
    widths = [base * factor for factor in (*DIM_MULT, DIM_MULT[-1])]
    return [
        UpStage(widths[level + 1], widths[level], level > 0, (False, *TEMPORAL_DOWNSAMPLE)[level])
        for level in reversed(range(len(DIM_MULT)))
    ]


Path = Callable[[int], list[Any]]  # of the base width
DOWN: dict[str, Path] = {"2.1": down_path_21, "2.2": down_path_22}
UP: dict[str, Path] = {"2.1": up_path_21, "2.2": up_path_22}
