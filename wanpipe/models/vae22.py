"""The up and down path of the Wan2.2 VAE: stages with shortcuts that average or duplicate values.

Only the layout and the shortcuts; blocks come from `causal_vae`, the networks around from `vae`.
Official source: wan/modules/vae2_2.py, `Encoder3d`, `Decoder3d`, `AvgDown3D` and `DupUp3D`.
"""

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.causal_conv import Past
from wanpipe.models.causal_vae import Downsample, ResidualBlock, Upsample
from wanpipe.models.vae_sizes import TEMPORAL, WIDTHS


def average(x: mx.array, outputs: int, time: int, side: int) -> mx.array:
    """Shrink (T, H, W, C) by averages over blocks of `time` frames, `side` rows and `side` columns.

    A block's values are ordered channel, frame, row, column and averaged in runs, one run for each
    of the `outputs` channels. Missing frames in front are zeros. Official: `AvgDown3D`.
    """
    if time * side * side * x.shape[-1] == outputs:
        return x  # averages of one value each
    x = mx.pad(x, [(-x.shape[0] % time, 0), (0, 0), (0, 0), (0, 0)])
    T, H, W, C = x.shape
    x = x.reshape(T // time, time, H // side, side, W // side, side, C)
    x = x.transpose(0, 2, 4, 6, 1, 3, 5)
    x = x.reshape(T // time, H // side, W // side, outputs, -1)  # (T, H, W, C, values of a run)
    return x.mean(-1)


def duplicates(x: mx.array, outputs: int, time: int) -> mx.array:
    """View (T, H, W, C) as repeated over `time` frames, two rows and two columns: no copies.

    Of C / `outputs` channels that make one, the copies take turns, whole frames first, then rows:
    (T, time, H, 2, W, 2, O). Official: `DupUp3D`.
    """
    T, H, W, C = x.shape
    taken, turns = C // outputs, []
    for side in (time, 2, 2):
        turns.append(side if taken > 1 else 1)
        taken //= turns[-1]
    x = x.reshape(T, H, W, outputs, *turns).transpose(0, 4, 1, 5, 2, 6, 3)
    return mx.broadcast_to(x, (T, time, H, 2, W, 2, outputs))


class DownStage(nn.Module):
    """Two residual blocks and, if `shrink`, a down-sampling, beside averages of the input.

    Official: `Down_ResidualBlock`.
    """

    def __init__(self, inputs: int, outputs: int, shrink: bool, temporal: bool) -> None:
        super().__init__()
        blocks = [ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)]
        self.blocks = [*blocks, Downsample(outputs, temporal)] if shrink else blocks
        self.outputs, self.time, self.side = outputs, 1 + temporal, 1 + shrink

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        # evaluated first: it is smaller than x, which it would keep alive
        shortcut = past.evaluated(average(x, self.outputs, self.time, self.side))
        return past.run(self.blocks, x) + shortcut


class UpStage(nn.Module):
    """Three residual blocks and, if `grow`, an up-sampling beside duplicates of the input.

    Official: `Up_ResidualBlock`.
    """

    def __init__(self, inputs: int, outputs: int, grow: bool, temporal: bool) -> None:
        super().__init__()
        blocks = [ResidualBlock(width, outputs) for width in (inputs, outputs, outputs)]
        self.blocks = [*blocks, Upsample(outputs, outputs, temporal)] if grow else blocks
        self.outputs, self.time, self.grow = outputs, 1 + temporal, grow

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        if not self.grow:
            return past.run(self.blocks, x)
        # the first frame of a video stays single, so its surplus duplicate goes
        surplus = self.time - 1 if past.first else 0
        shortcut = duplicates(x, self.outputs, self.time)[:, surplus:]
        *blocks, upsample = self.blocks
        grown: mx.array = upsample(past.run(blocks, x), past, shortcut)
        return grown


def down_path(base: int) -> list[nn.Module]:
    """Lay out the stages from `base` channels at full size down to 4 * `base` at an eighth."""
    widths = [base, *(base * width for width in WIDTHS)]
    return [
        DownStage(widths[level], widths[level + 1], level < len(TEMPORAL), temporal)
        for level, temporal in enumerate((*TEMPORAL, False))
    ]


def up_path(base: int) -> list[nn.Module]:
    """Lay out the stages from 4 * `base` channels at an eighth up to `base` at full size."""
    widths = [base * width for width in (*WIDTHS, WIDTHS[-1])]
    return [
        UpStage(widths[level + 1], widths[level], level > 0, (False, *TEMPORAL)[level])
        for level in reversed(range(len(WIDTHS)))
    ]
