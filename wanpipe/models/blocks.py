"""Takes streams of tokens through a row of transformer blocks, each block for all streams at once.

Knows neither what a block computes nor where its weights come from.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import mlx.core as mx

Block = TypeVar("Block")


def through(
    blocks: Iterable[Block],
    streams: Sequence[mx.array],
    step: Callable[[int, Block, int, mx.array], Sequence[mx.array]],
    lazy: bool = False,
) -> list[mx.array]:
    """Advance every stream by every block, and return the streams after the last.

    `step(index, block, number, stream)` gives stream `number` after block `index`, and with it
    whatever else is to be evaluated. One evaluation runs while the next is prepared, never more, so
    memory does not grow with the number of blocks; `lazy` leaves all evaluation to the caller. The
    next block is asked for as soon as nothing needs the one before any more: if asking starts to
    read it, the disk works behind the computation, and no third one is in memory.
    """
    streams, running = list(streams), mx.array(0.0)
    rest = iter(blocks)
    block, index = next(rest, None), 0
    while block is not None:
        following = None
        for number in range(len(streams)):
            streams[number], *more = step(index, block, number, streams[number])
            if not lazy:
                mx.async_eval(streams[number], *more)
                mx.eval(running)
                running = streams[number]
            if number == 0:
                following = next(rest, None)
        block, index = following, index + 1
    return streams
