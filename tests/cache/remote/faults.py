"""Pushes that fail in every way, and what must be true of the remote after each."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from tests.buckets import Proxy, Server
from tests.store.builders import arrays, chain, fill, recipe, text
from wanpipe.cache.remote import bucket as module
from wanpipe.cache.remote.bucket import Bucket
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import find_unsound, list_remote, push_missing
from wanpipe.errors import StoreError
from wanpipe.runtime.documents import MAX_BYTES
from wanpipe.store import Store
from wanpipe.store.schema import STAGES


@contextmanager
def reached_at(server: Server, endpoint: str = "") -> Iterator[None]:
    """Let obstore find a server, or what stands before it, and give up soon where it fails."""
    variables = server.environment(endpoint or server.endpoint)
    with patch.dict(os.environ, variables), patch.object(module, "RETRIES", 0):
        yield


def check_sound(server: Server, folder: Path) -> None:
    """Every entry that the remote shows is whole."""
    with reached_at(server):
        assert list(find_unsound(Bucket(server.place(folder)), Store(folder / "checked"))) == []


def check_complete(server: Server, store: Store, folder: Path) -> None:
    """One push over a sound connection sends the rest, and another cache gets the same bytes."""
    other = Store(folder / "other")
    with reached_at(server):
        with opened(server.place(folder), "none", store):
            list(push_missing(store.remote, store, [], "steps"))  # type: ignore[arg-type]
        bucket = Bucket(server.place(folder))
        names = list_remote(bucket, list(STAGES))
        sealed = [name for name in names if bucket.read(f"{name}/zarr.json", MAX_BYTES)]
        assert sorted(sealed) == sorted(store.index.list_ids())
        with opened(server.place(folder), "none", other):
            assert all(other.find(*name.split("/")) for name in names)
    for name in names:
        mine, theirs = (cache.peek(*name.split("/")) for cache in (store, other))
        assert mine is not None and theirs is not None
        assert arrays(mine) == arrays(theirs)


def faulty_pushes(server: Server, folder: Path, faults: int, seed: int) -> int:
    """Push new entries through a proxy until so many faults happened; return their number."""
    proxy, store = Proxy(server.endpoint, seed), Store(folder / "cache")
    try:
        number = 0
        while proxy.faults < faults:
            number += 1
            proxy.left = 3
            chain(store, text(store, f"cat {number}"), 2, seed=number)
            # the fault is told in one line
            with (
                reached_at(server, proxy.endpoint),
                opened(server.place(folder), "none", store),
                suppress(StoreError),
            ):
                list(push_missing(store.remote, store, [], "steps"))  # type: ignore[arg-type]
            check_sound(server, folder)
    finally:
        proxy.close()
    check_complete(server, store, folder)
    return proxy.faults


def killed_pushes(server: Server, folder: Path, kills: int, seed: int) -> int:
    """Kill `wanpipe cache push` at random moments; return how many were still at work."""
    proxy, store = Proxy(server.endpoint, seed), Store(folder / "cache")
    chance, ended = random.Random(seed), 0
    words = [sys.executable, "-m", "wanpipe", "cache", "push", "--push", "steps"]
    try:
        number = 0
        while ended < kills:
            for _ in range(6):  # more than one push sends before it is killed
                number += 1
                store.get_or_create(recipe(number), fill(number))
            process = subprocess.Popen(
                [*words, "--cache", str(store.root), "--remote", server.place(folder)],
                env={**os.environ, **server.environment(proxy.endpoint)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(0.35 + chance.uniform(0, 0.35))
            process.send_signal(signal.SIGKILL)
            ended += process.wait() == -signal.SIGKILL
            check_sound(server, folder)
    finally:
        proxy.close()
    with patch("wanpipe.cache.remote.push.STALE_SECONDS", -1.0):
        check_complete(server, store, folder)
    return ended
