"""Streams through a row of blocks: what is evaluated when, and which block is asked for when."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from wanpipe.models import blocks
from wanpipe.models.blocks import Paced, through


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [(1, [[0], [1], [2], [3], [4]]), (3, [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]])],
)
def test_no_more_stretches_are_under_way_than_asked_for(
    ahead: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    arrays = [mx.array(n) for n in range(5)]
    numbers = {id(array): n for n, array in enumerate(arrays)}

    class Watched:
        @staticmethod
        def async_eval(array: mx.array) -> None:
            running.append(numbers[id(array)])

        @staticmethod
        def eval(stretch: tuple[mx.array, ...]) -> None:
            running.remove(numbers[id(stretch[0])])

    monkeypatch.setattr(blocks, "mx", Watched)
    pace, seen = Paced(ahead), []
    for array in arrays:
        pace(array)
        seen.append(list(running))
    assert seen == expected


def test_a_block_is_asked_for_once_and_where_the_step_says() -> None:
    heard: list[str] = []

    def row() -> Iterator[str]:
        for name in "abc":
            heard.append(f"read {name}")
            yield name

    def step(index: int, block: str, number: int, ask: Callable[[], None]) -> None:
        heard.append(f"{index}{block}{number}")
        if block != "b":
            ask()
        heard.append("on")

    through(row(), 2, step)
    assert " ".join(heard) == ("read a 0a0 read b on 0a1 on 1b0 on 1b1 on read c 2c0 on 2c1 on")


def test_a_row_without_blocks_is_no_work() -> None:
    through([], 2, lambda *_: pytest.fail("there is no block"))
