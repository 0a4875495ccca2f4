"""What a store asks of the remote tier, if it has one. `wanpipe.remote.tier` is the tier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from wanpipe.store.entry import Entry

if TYPE_CHECKING:
    from wanpipe.store.store import Store


class Remote(Protocol):
    """A place that has entries too, under the same stage and key."""

    def has(self, stage: str, key: str) -> bool:
        """Return whether it has an entry."""

    def expect(self, stage: str, keys: Sequence[str]) -> None:
        """Look up many keys at once, so that `has` answers for them without a request each."""

    def pull(self, store: "Store", stage: str, key: str) -> bool:
        """Copy an entry into the store, checked. Return whether the store has it now."""

    def complete(self, prefix: str) -> list[str]:
        """Return stage/key of every entry whose key starts with a prefix."""

    def published(self, store: "Store", entry: Entry) -> None:
        """Take note of an entry that the store has published. Does not wait."""
