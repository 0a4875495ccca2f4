"""Takes streams of tokens through a row of transformer blocks, each block for all streams at once,
and paces the evaluation.

Knows neither what a block computes nor where its weights come from.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import mlx.core as mx

Block = TypeVar("Block")
Pace = Callable[..., None]


class Paced:
    """Begins to evaluate the arrays it is given, then waits for those it was given before.

    So a device works on one stretch while the next is prepared, never more: what lies in memory is
    what two stretches make, however long the graph is.
    """

    def __init__(self) -> None:
        self.running: Sequence[mx.array] = ()

    def __call__(self, *arrays: mx.array) -> None:
        mx.async_eval(*arrays)
        mx.eval(*self.running)
        self.running = arrays


def unpaced(*arrays: mx.array) -> None:
    """Leave the evaluation to the caller."""


def through(
    blocks: Iterable[Block],
    streams: Sequence[mx.array],
    step: Callable[[int, Block, int, mx.array, Pace], mx.array],
    lazy: bool = False,
) -> list[mx.array]:
    """Advance every stream by every block, and return the streams after the last.

    `step(index, block, number, stream, pace)` gives stream `number` after block `index`; it may
    call `pace` with what it makes on the way. `lazy` leaves all evaluation to the caller. The next
    block is asked for as soon as nothing needs the one before any more: if asking starts to read
    it, the disk works behind the computation, and no third one is in memory.
    """
    streams, pace = list(streams), unpaced if lazy else Paced()
    rest = iter(blocks)
    block, index = next(rest, None), 0
    while block is not None:
        following = None
        for number in range(len(streams)):
            streams[number] = step(index, block, number, streams[number], pace)
            pace(streams[number])
            if number == 0:
                following = next(rest, None)
        block, index = following, index + 1
    return streams
