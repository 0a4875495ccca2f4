"""Shares the tokens of a video among the devices of a group: each computes a part of them.

Only attention needs what the others have: keys and values of all tokens are gathered in each
block, in the dtype of attention. Everything else is computed by token. The parts are equal: tokens
of zeros fill the last one, and are dropped from what is gathered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from wanpipe.backend.group import ALONE, Group


@dataclass(frozen=True)
class TokenShare:
    """This device's part of the tokens. Alone, it is all of them, and nothing is copied."""

    group: Group = ALONE

    def cut(self, x: mx.array) -> mx.array:
        """Return this device's part (G, l, ...) of tokens x (G, L / G, ...).

        Every latent frame with a timestep of its own, of G, is cut into as many parts.
        """
        count = self.group.size
        if count == 1:
            return x
        size = self.size(x.shape[1])
        first = self.group.rank * size
        mine = x[:, first : first + size]
        padding = [(0, 0), (0, size - mine.shape[1]), *[(0, 0)] * (x.ndim - 2)]
        return mx.pad(mine, padding)

    def size(self, length: int) -> int:
        """Return how many of `length` tokens each device has, with those of zeros."""
        return -(-length // self.group.size)

    def join(self, rows: mx.array, shape: Sequence[int]) -> mx.array:
        """Return the rows (L, D) of all tokens from those of each device.

        `shape` is that of the tokens before they were cut: (G, L / G).
        """
        count = self.group.size
        if count == 1:
            return rows
        parts, length = shape
        size, width = self.size(length), rows.shape[-1]
        # on the stream of the computation: two H100 gather the keys of a block in 0.23 ms, and lose
        # more than that by waiting for another stream
        whole = self.group.gather(rows)
        whole = whole.reshape(count, parts, size, width).swapaxes(0, 1)
        return whole.reshape(parts, count * size, width)[:, :length].reshape(-1, width)  # (L, D)


WHOLE = TokenShare()
