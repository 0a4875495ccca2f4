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

from tests.buckets import Proxy, environment
from tests.store.builders import arrays, chain, fill, recipe, text
from wanpipe.cache.remote import bucket as module
from wanpipe.cache.remote.bucket import Bucket
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import find_unsound, list_remote, push_missing
from wanpipe.errors import StoreError
from wanpipe.runtime.documents import MAX_BYTES
from wanpipe.store import Store
from wanpipe.store.schema import STAGES


def url_of(folder: Path) -> str:
    """The place in the bucket of what is tried in a folder: servers in one process share it."""
    return f"s3://films/{folder.name}"


@contextmanager
def reached_at(endpoint: str) -> Iterator[None]:
    """Let obstore find the S3 server at an endpoint, and give up soon where it fails."""
    with patch.dict(os.environ, environment(endpoint)), patch.object(module, "RETRIES", 0):
        yield


def check_sound(endpoint: str, folder: Path) -> None:
    """Every entry that the remote shows is whole."""
    with reached_at(endpoint):
        assert list(find_unsound(Bucket(url_of(folder)), Store(folder / "checked"))) == []


def check_complete(endpoint: str, store: Store, folder: Path) -> None:
    """One push over a sound connection sends the rest, and another cache gets the same bytes."""
    other = Store(folder / "other")
    with reached_at(endpoint):
        with opened(url_of(folder), "none", store):
            list(push_missing(store.remote, store, [], "steps"))  # type: ignore[arg-type]
        bucket = Bucket(url_of(folder))
        names = list_remote(bucket, list(STAGES))
        sealed = [name for name in names if bucket.read(f"{name}/zarr.json", MAX_BYTES)]
        assert sorted(sealed) == sorted(store.index.list_ids())
        with opened(url_of(folder), "none", other):
            assert all(other.find(*name.split("/")) for name in names)
    for name in names:
        mine, theirs = (cache.peek(*name.split("/")) for cache in (store, other))
        assert mine is not None and theirs is not None
        assert arrays(mine) == arrays(theirs)


def faulty_pushes(endpoint: str, folder: Path, faults: int, seed: int) -> int:
    """Push new entries through a proxy until so many faults happened; return their number."""
    proxy, store = Proxy(endpoint, seed), Store(folder / "cache")
    try:
        number = 0
        while proxy.faults < faults:
            number += 1
            proxy.left = 3
            chain(store, text(store, f"cat {number}"), 2, seed=number)
            # the fault is told in one line
            with (
                reached_at(proxy.endpoint),
                opened(url_of(folder), "none", store),
                suppress(StoreError),
            ):
                list(push_missing(store.remote, store, [], "steps"))  # type: ignore[arg-type]
            check_sound(endpoint, folder)
    finally:
        proxy.close()
    check_complete(endpoint, store, folder)
    return proxy.faults


def killed_pushes(endpoint: str, folder: Path, kills: int, seed: int) -> int:
    """Kill `wanpipe cache push` at random moments; return how many were still at work."""
    proxy, store = Proxy(endpoint, seed), Store(folder / "cache")
    chance, ended = random.Random(seed), 0
    words = [sys.executable, "-m", "wanpipe", "cache", "push", "--push", "steps"]
    try:
        number = 0
        while ended < kills:
            for _ in range(6):  # more than one push sends before it is killed
                number += 1
                store.get_or_create(recipe(number), fill(number))
            process = subprocess.Popen(
                [*words, "--cache", str(store.root), "--remote", url_of(folder)],
                env={**os.environ, **environment(proxy.endpoint)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(0.35 + chance.uniform(0, 0.35))
            process.send_signal(signal.SIGKILL)
            ended += process.wait() == -signal.SIGKILL
            check_sound(endpoint, folder)
    finally:
        proxy.close()
    with patch("wanpipe.cache.remote.push.STALE_SECONDS", -1.0):
        check_complete(endpoint, store, folder)
    return ended
