"""The content-addressed cache: keys, entries, and the store that finds and publishes them."""

from wanpipe.store.entry import DamageError, Draft, Entry
from wanpipe.store.keys import key_of
from wanpipe.store.store import Recipe, Store

__all__ = ["DamageError", "Draft", "Entry", "Recipe", "Store", "key_of"]
