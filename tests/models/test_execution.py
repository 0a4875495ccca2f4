"""Bounded evaluation, and running streams through blocks: what is evaluated and loaded when."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from wanpipe.models import execution
from wanpipe.models.execution import BoundedEval, run_blocks


@pytest.mark.parametrize(
    ("depth", "room", "expected"),
    [
        (1, 0, [[0], [1], [2], [3], [4]]),
        (3, 0, [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        (1, 8, [[0], [0, 1], [1, 2], [2, 3], [3, 4]]),  # a result has 4 bytes
    ],
)
def test_at_most_depth_evaluations_are_in_flight_or_room_bytes(
    depth: int, room: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight: list[int] = []
    arrays = [mx.array(n) for n in range(5)]
    numbers = {id(array): n for n, array in enumerate(arrays)}

    class Watched:
        @staticmethod
        def async_eval(array: mx.array) -> None:
            in_flight.append(numbers[id(array)])

        @staticmethod
        def eval(arrays: tuple[mx.array, ...]) -> None:
            in_flight.remove(numbers[id(arrays[0])])

    monkeypatch.setattr(execution, "mx", Watched)
    evaluate, seen = BoundedEval(depth, room), []
    for array in arrays:
        evaluate(array)
        seen.append(list(in_flight))
    assert seen == expected


def test_a_block_is_loaded_once_and_when_the_step_prefetches_it() -> None:
    log: list[str] = []

    def blocks() -> Iterator[str]:
        for name in "abc":
            log.append(f"load {name}")
            yield name

    def step(index: int, block: str, number: int, prefetch: Callable[[], None]) -> None:
        log.append(f"{index}{block}{number}")
        if block != "b":
            prefetch()
        log.append("end")

    run_blocks(blocks(), 2, step)
    expected = "load a 0a0 load b end 0a1 end 1b0 end 1b1 end load c 2c0 end 2c1 end"
    assert " ".join(log) == expected


def test_without_blocks_no_step_runs() -> None:
    run_blocks([], 2, lambda *_: pytest.fail("a step ran"))
