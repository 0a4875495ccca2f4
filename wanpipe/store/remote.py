"""What a store asks of the remote tier, if it has one. `wanpipe.cache.remote.tier` is one."""

from collections.abc import Sequence
from typing import Protocol

from wanpipe.store.entry import Entry


class Remote(Protocol):
    """A place that has entries too, under the same stage and key."""

    def has(self, stage: str, key: str) -> bool:
        """Return whether it has an entry."""

    def expect(self, stage: str, keys: Sequence[str]) -> None:
        """Look up many keys at once, so that `has` answers for them without a request each."""

    def pull(self, stage: str, key: str) -> bool:
        """Copy an entry into the cache, checked. Return whether the cache has it now."""

    def complete(self, prefix: str) -> list[str]:
        """Return stage/key of every entry whose key starts with a prefix."""

    def published(self, entry: Entry) -> None:
        """Take note of an entry that was published in the cache. Does not wait."""
