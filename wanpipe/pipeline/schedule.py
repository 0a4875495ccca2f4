"""Decides which network is read while another one computes, and makes plans in order so.

A network is read ahead if it has room beside the whole memory plan of the one before it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from functools import cache
from importlib import import_module
from itertools import pairwise
from threading import Thread
from typing import TYPE_CHECKING, Any

from wanpipe.pipeline.budget import ITEMSIZE
from wanpipe.pipeline.plan import Plan, Work
from wanpipe.runtime.worker import quick_switches
from wanpipe.store import Store
from wanpipe.weights import networks
from wanpipe.weights.networks import Upcoming
from wanpipe.weights.reader import Ended, Job

if TYPE_CHECKING:
    import mlx.core as mx


def make(plans: Sequence[Plan[Any]], store: Store) -> None:
    """Make plans in order. Each network is loaded once, and read ahead if there is room."""
    works = [work for plan in plans for work in plan.work]
    with quick_switches():
        if works:
            prepare()
        with networks.scheduled(upcoming(works, store)):
            for plan in plans:
                plan.make()


@cache
def prepare() -> None:
    """Load what computing will need, while Zarr is imported and the buffers of weights are locked.

    The GPU's libraries are loaded in the thread that computes, before another one uses the GPU:
    CUDA fails at times if two threads load them.
    """
    from wanpipe.backend import pinned
    from wanpipe.backend.warm_up import warm_up
    from wanpipe.weights import reader

    reader.thread().submit(pinned.lock_buffers)
    Thread(target=import_module, args=("zarr",), name="import").start()
    warm_up()


def upcoming(works: Sequence[Work], store: Store) -> list[Upcoming]:
    """Return the networks of these works in order; one that stays loaded is there once."""
    return [
        Upcoming(
            path=work.model.file(work.component),
            bytes=ahead(before, work),
            read=reading(work, store),
        )
        for before, work in pairwise([None, *works])
        if work is not None and in_file(work) and not stays(before, work)
    ]


def bytes_ahead(works: Sequence[Work]) -> list[int]:
    """Return for each of these works the bytes of the network that is read meanwhile, or 0."""
    return [ahead(work, after) for work, after in pairwise([*works, None])]


def ahead(before: Work | None, work: Work | None) -> int:
    """Return the bytes of a network that is read during the work before it, or 0 if it is not."""
    if work is None or not work.whole or stays(before, work):
        return 0
    size = loaded_bytes(work)
    if before is None:
        return size
    from wanpipe.backend.device import recommended_memory

    limits = [one for one in (before.memory, work.memory) if one is not None]
    allowed = min(limits, default=recommended_memory())
    return size if before.plan.peak + size <= allowed else 0


def stays(before: Work | None, work: Work) -> bool:
    """Return whether a network is loaded for the work before already."""
    if before is None:
        return False
    return (before.model.directory, before.component) == (work.model.directory, work.component)


def in_file(work: Work) -> bool:
    """Return whether a network is one of the model; a tiny VAE is not."""
    return work.component in work.model.config.components


def loaded_bytes(work: Work) -> int:
    """Return the most bytes of a network's weights in memory."""
    from wanpipe.backend.device import compute_dtype

    config, file = work.model.config, work.model.component(work.component)
    wider = ITEMSIZE[compute_dtype(config.dtype)] // ITEMSIZE[config.dtype]
    return file.bytes * max(1, wider)


def reading(work: Work, store: Store) -> Job:
    """Return what checks the file of a network and reads it, in the order in which it is used."""

    def read(ended: Ended) -> "Iterator[tuple[str, mx.array]]":
        from wanpipe.backend.device import compute_dtype, mlx_dtype
        from wanpipe.weights.load import read_whole

        def progress(done: int, total: int) -> None:
            if ended():
                raise CancelledError

        path, config = work.model.checked(work.component, store, progress), work.model.config
        blocks = config.dit.block_names if work.component in config.experts else []
        yield from read_whole(path, mlx_dtype(compute_dtype(config.dtype)), blocks, ended)

    return read
