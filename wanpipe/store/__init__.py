"""The content-addressed cache: keys, entries, and the store that finds and publishes them."""

from wanpipe.store.draft import Draft
from wanpipe.store.entry import DamageError, Entry
from wanpipe.store.keys import key_of
from wanpipe.store.recipe import Recipe
from wanpipe.store.store import Store

__all__ = ["DamageError", "Draft", "Entry", "Recipe", "Store", "key_of"]
