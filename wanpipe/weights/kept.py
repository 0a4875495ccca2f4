"""Keeps the network that a process loaded last, for the next video that takes the same one.

Off by default. A command that makes several videos switches it on, to load each network once, and
`wanpipe worker` leaves it on.
There is one place, emptied before another network takes memory, so that memory plans stay true.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Network = TypeVar("Network")


class _Place:
    """The network, and what it was loaded from; `on` once the process keeps networks."""

    on = False
    name: Any = None
    network: Any = None


def keep() -> None:
    """Keep networks from now on."""
    _Place.on = True


@contextmanager
def keeping() -> Iterator[None]:
    """Keep networks meanwhile."""
    before, _Place.on = _Place.on, True
    try:
        yield
    finally:
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
