"""The content-addressed cache: keys, entries, runs, and the store that finds and publishes them."""

from wanpipe.store.arrays import DamageError
from wanpipe.store.draft import Draft
from wanpipe.store.entry import Entry
from wanpipe.store.keys import key_of
from wanpipe.store.publish import Publisher
from wanpipe.store.recipe import Recipe, material
from wanpipe.store.runs import Run, Settings
from wanpipe.store.store import Store

__all__ = [
    "DamageError",
    "Draft",
    "Entry",
    "Publisher",
    "Recipe",
    "Run",
    "Settings",
    "Store",
    "key_of",
    "material",
]
