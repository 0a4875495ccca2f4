"""The store under any sequence of use: nothing that was published is lost or changes, but what gc
took; whatever is killed leaves entries whole or absent, and nothing behind.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.store.builders import arrays, fill, forbidden, step_recipe, text
from wanpipe.cache.archive import export, import_
from wanpipe.cache.gc import Limits, Plan, remove
from wanpipe.cache.verify import find_damaged
from wanpipe.errors import StoreError
from wanpipe.store import Draft, Entry, Store

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")  # where a kill may come
numbers = strategies.integers(0, 4)


class Killed(BaseException):
    """Raise where a process is killed."""


class Cache(RuleBasedStateMachine):
    """One cache, used by one process after another; `there` is what must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "cache"
        elsewhere = Store(self.folder / "elsewhere")
        self.words = text(elsewhere)
        self.expected: dict[int, dict[str, bytes]] = {}
        for number in range(5):
            entry = elsewhere.get_or_create(self.recipe(number), fill(number))
            self.expected[number] = arrays(entry)
            export([entry], self.folder / f"{number}.zip", elsewhere)
        self.there: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def recipe(self, number: int) -> Any:
        return step_recipe(self.words, 0, None, seed=number)

    @rule(number=numbers)
    def get_or_create(self, number: int) -> None:
        fills = forbidden if number in self.there else fill(number)
        assert (
            arrays(Store(self.root).get_or_create(self.recipe(number), fills))
            == self.expected[number]
        )
        self.there.add(number)

    @rule(number=numbers)
    def force(self, number: int) -> None:
        entry = Store(self.root, force=True).get_or_create(self.recipe(number), fill(number))
        assert arrays(entry) == self.expected[number]
        self.there.add(number)

    @rule(number=numbers, forced=strategies.booleans())
    def fail(self, number: int, forced: bool) -> None:
        def failing(draft: Draft) -> dict[str, Any]:
            fill(number)(draft)
            raise StoreError("the disk is gone")

        store = Store(self.root, force=forced)
        try:
            store.get_or_create(self.recipe(number), failing)
        except StoreError as error:
            assert str(error) == "the disk is gone"
        else:
            assert number in self.there
            assert not forced

    @rule(number=numbers, moment=strategies.integers(0, 40), forced=strategies.booleans())
    def kill_at_work(self, number: int, moment: int, forced: bool) -> None:
        store = Store(self.root, force=forced)
        killed = self.kill(moment, lambda: store.get_or_create(self.recipe(number), fill(number)))
        if not killed or Store(self.root).has("denoise", self.recipe(number).key):
            self.there.add(number)

    @rule(number=numbers, moment=strategies.integers(0, 60))
    def kill_an_import(self, number: int, moment: int) -> None:
        file = self.folder / f"{number}.zip"
        killed = self.kill(moment, lambda: import_(file, Store(self.root)))
        if not killed or Store(self.root).has("denoise", self.recipe(number).key):
            self.there.add(number)

    def kill(self, moment: int, work: Callable[[], object]) -> bool:
        """Do work and leave the disk as it is before the `moment`-th operation; whether it came
        to that.
        """
        left, snapshot = moment, self.folder / "snapshot"

        def counting(real: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                # zarr writes in threads of its own, which would change the disk while it is copied
                left -= threading.current_thread() is threading.main_thread()
                if left < 0:
                    if not snapshot.exists() and self.root.exists():
                        stop()
                        shutil.copytree(self.root, snapshot)
                    raise Killed
                return real(*arguments, **options)

            return counted

        patches = [patch.object(os, call, counting(getattr(os, call))) for call in CALLS]

        def stop() -> None:
            for one in patches:
                one.stop()

        for one in patches:
            one.start()
        try:
            work()
        except Killed:
            if snapshot.exists():
                shutil.rmtree(self.root, ignore_errors=True)
                snapshot.rename(self.root)
            return True
        finally:
            stop()
        return False

    @rule(number=numbers)
    def take_in(self, number: int) -> None:
        import_(self.folder / f"{number}.zip", Store(self.root))
        self.there.add(number)

    @precondition(lambda self: self.there)
    @rule(keep=strategies.integers(0, 3))
    def collect(self, keep: int) -> None:
        store = Store(self.root)
        sizes = sorted(row.bytes for row in store.index.read().values() if row.stage == "denoise")
        gone = remove(store, Plan(store, Limits(max_bytes=sum(sizes[:keep]))).removed)
        keys = {row.key for row in gone}
        self.there -= {number for number in self.there if self.recipe(number).key in keys}

    @invariant()
    def everything_is_there_and_sound(self) -> None:
        store = Store(self.root)
        assert list(find_damaged(store)) == []
        for number in self.there:
            entry = store.peek("denoise", self.recipe(number).key)
            assert isinstance(entry, Entry), number
            assert arrays(entry) == self.expected[number]
        there = {row.key for row in store.index.read().values() if row.stage == "denoise"}
        assert there == {self.recipe(number).key for number in self.there}

    @invariant()
    def the_next_process_leaves_nothing_of_the_dead(self) -> None:
        if (self.root / ".tmp").is_dir():
            Store(self.root).scratch.remove_stale()
            assert not list((self.root / ".tmp").iterdir())


TestCache = Cache.TestCase
TestCache.settings = settings(
    max_examples=12, stateful_step_count=12, derandomize=True, deadline=None
)
