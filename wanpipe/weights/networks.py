"""The networks of a process: the one that it loaded last, and the one that it reads ahead.

A command that makes several videos keeps the network that it loaded last, to load each once;
`wanpipe worker` does so between commands. While a network computes, the file of the next one is
read, where both fit into memory.
There is one place for each, emptied before another network takes memory, so that memory plans stay
true.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from wanpipe.weights.reader import Job, Reading

Network = TypeVar("Network")


@dataclass(frozen=True, kw_only=True)
class Upcoming:
    """A network that a command will load from a file.

    `bytes` is the memory that `read` takes beside the network before it; 0 if there is no room.
    """

    path: Path
    bytes: int
    read: Job


class _Place:
    """The network, and what it was loaded from; `on` once the process keeps networks."""

    on = False
    name: Any = None
    network: Any = None


class _Ahead:
    """What the command will load, in order, and what it reads of the first of these."""

    queue: ClassVar[deque[Upcoming]] = deque()
    reading: tuple[Path, Reading] | None = None


def keep() -> None:
    """Keep networks from now on."""
    _Place.on = True


@contextmanager
def scheduled(upcoming: Sequence[Upcoming]) -> Iterator[None]:
    """Keep networks meanwhile, and read these ahead, in this order."""
    before, _Place.on = _Place.on, True
    _Ahead.queue = deque(upcoming)
    try:
        if _Place.network is None:  # else it may be the first of these, and has its memory
            _begin()
        yield
    finally:
        _drop()
        _Ahead.queue = deque()
        _Place.on = before
        if not before:
            _Place.name = _Place.network = None


def clear() -> None:
    """Free the memory of the network that is kept, if there is one."""
    if _Place.network is not None:
        import mlx.core as mx

        _Place.name = _Place.network = None
        gc.collect()  # what used it may have left a circle of references
        mx.clear_cache()


def kept(name: Any, load: Callable[[], Network]) -> Network:
    """Return the network that is kept under `name`, or load it, and keep it instead of another.

    `name` must tell everything that the network depends on.
    """
    if _Place.network is None or _Place.name != name:
        clear()
        network = load()
        if not _Place.on:
            return network
        _Place.name, _Place.network = name, network
    found: Network = _Place.network
    return found


def take(path: Path) -> Reading | None:
    """Return what reads a file ahead, until the file is `loaded`; None if none does, or it failed.

    Another file that is read ahead is given up if the command takes this one instead.
    """
    if _Ahead.reading is not None:
        ahead, reading = _Ahead.reading
        if ahead == path and not reading.ended.is_set():
            _reserve(0)  # the plan of the network counts it from here on
            return reading
        if any(one.path == path for one in _Ahead.queue):
            _drop()
    return None


def loaded(path: Path) -> None:
    """Note that all numbers of a file have arrived, and begin to read the next one."""
    if any(one.path == path for one in _Ahead.queue):
        _drop()
        while _Ahead.queue.popleft().path != path:
            pass
        _begin()


def _begin() -> None:
    """Begin to read the next network, if it fits."""
    if _Ahead.queue and _Ahead.queue[0].bytes:
        network = _Ahead.queue[0]
        _reserve(network.bytes)
        _Ahead.reading = (network.path, Reading(network.read))


def _drop() -> None:
    """Give up what is read ahead; if all has arrived, there is nothing to give up."""
    if _Ahead.reading is not None:
        _Ahead.reading[1].give_up()
        _Ahead.reading = None
        _reserve(0)


def _reserve(count: int) -> None:
    """Count bytes that are read ahead beside the memory that a plan allows."""
    from wanpipe.backend.device import reserve

    reserve(count)
