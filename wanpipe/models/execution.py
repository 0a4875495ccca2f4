"""Runs streams of tokens through a sequence of blocks, with a bounded queue of evaluations.

Does not know what a block computes, or where its weights come from.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import cache, partial
from typing import TypeVar

import mlx.core as mx

from wanpipe.runtime import interrupt

Block = TypeVar("Block")
Evaluate = Callable[..., None]
Prefetch = Callable[[], object]


class BoundedEval:
    """Evaluate arrays asynchronously, with at most `depth` evaluations in flight, or more if their
    results, each the last array of a call, have at most `room` bytes together.

    The device computes one evaluation while the host builds the next, and memory holds the
    intermediates of a few evaluations, however long the graph is. Short evaluations need a greater
    depth, because a sleeping host takes longer to wake than the device takes to compute one.
    Raises a pending interrupt before it starts an evaluation.
    """

    def __init__(self, depth: int = 1, room: int = 0) -> None:
        self.depth, self.room = depth, room
        self.in_flight: deque[tuple[mx.array, ...]] = deque()

    def __call__(self, *arrays: mx.array) -> None:
        interrupt.check()
        mx.async_eval(*arrays)
        self.in_flight.append(arrays)
        while len(self.in_flight) > self.depth and self._bytes() > self.room:
            mx.eval(self.in_flight.popleft())

    def _bytes(self) -> int:
        """Bytes of the results in flight."""
        return sum(arrays[-1].nbytes for arrays in self.in_flight)


def defer_eval(*arrays: mx.array) -> None:
    """Leave the evaluation to the caller."""


def run_blocks(
    blocks: Iterable[Block],
    count: int,
    step: Callable[[int, Block, int, Prefetch], None],
) -> None:
    """Run `count` streams through `blocks`, all streams through one block before the next block.

    `step(index, block, number, prefetch)` runs stream `number` through block `index`. It calls
    `prefetch` once enough work is queued; that loads the next block, which overlaps I/O with
    compute. An error ends the iteration through `blocks`.
    """

    def each() -> Generator[Block, None, None]:
        yield from blocks

    with closing(each()) as rest:
        block, index = next(rest, None), 0
        while block is not None:
            prefetch = cache(partial(next, rest, None))  # loads once, then returns the same block
            for number in range(count):
                step(index, block, number, prefetch)
            block, index = prefetch(), index + 1
