"""Takes streams of tokens through a row of transformer blocks, each block for all streams at once,
and paces the evaluation.

Knows neither what a block computes nor where its weights come from.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TypeVar

import mlx.core as mx

from wanpipe.runtime import interrupt

Block = TypeVar("Block")
Pace = Callable[..., None]


class Paced:
    """Begins to evaluate the arrays it is given, a stretch of work, then waits until no more than
    `ahead` stretches are under way.

    So the device works on one while the next are prepared, and what lies in memory is what a few of
    them make, however long the graph is. Where stretches are short more must be under way: a host
    that has slept takes longer to wake than the device for one. A signal ends the work between two.
    """

    def __init__(self, ahead: int = 1) -> None:
        self.ahead = ahead
        self.running: deque[tuple[mx.array, ...]] = deque()

    def __call__(self, *arrays: mx.array) -> None:
        interrupt.check()
        mx.async_eval(*arrays)
        self.running.append(arrays)
        while len(self.running) > self.ahead:
            mx.eval(self.running.popleft())


def unpaced(*arrays: mx.array) -> None:
    """Leave the evaluation to the caller."""


def through(
    blocks: Iterable[Block],
    count: int,
    step: Callable[[int, Block, int, Callable[[], object]], None],
) -> None:
    """Advance `count` streams by every block: `step(index, block, number, ask)` takes stream
    `number` through block `index`.

    It calls `ask` when the device has enough to do for a while and needs the block before no more:
    that takes the next block, so that the wait for it is hidden behind the computation.
    """
    rest = iter(blocks)
    block, index = next(rest, None), 0
    while block is not None:
        ask = cache(partial(next, rest, None))  # asks once, and gives the same again
        for number in range(count):
            step(index, block, number, ask)
        block, index = ask(), index + 1
