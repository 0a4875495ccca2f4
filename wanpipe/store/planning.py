"""A store that plans: it finds what is there and tells what would be computed, and why, but
computes nothing.
"""

from collections.abc import Callable
from typing import Any

from wanpipe.store.entry import Draft, Entry
from wanpipe.store.store import Recipe, Store, nearest, record_of


class PlanStore(Store):
    """Stands in for a `Store` under --dry-run: `obtain` returns entries that are not there, with
    their key and path.
    """

    dry = True
    planned: frozenset[str] = frozenset()

    def obtain(self, recipe: Recipe, fill: Callable[[Draft], dict[str, Any]]) -> Entry:
        """Tell whether the entry is there; if not, how it differs from the nearest one that is."""
        path = self.path(recipe.stage, recipe.key)
        follows = bool(self.planned & {recipe.extra.get("parent"), *recipe.inputs.values()})
        if not self.wants(recipe):
            self.report.event("planned", **recipe.event(), path=str(path), status="already there")
        else:
            self.planned |= {recipe.key}
            reason = "" if follows else nearest(recipe, self.comparable(recipe))
            self.report.event(
                "planned",
                **recipe.event(),
                path=str(path),
                status="to compute",
                reason=reason,
                follows=follows,
            )
        return Entry(path, record_of(recipe, {}))

    def comparable(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Records that a missing entry may be compared with: of its stage, and of its step where it
        is one.
        """
        step = recipe.extra.get("step")
        return [record for record in self.records(recipe.stage) if record.get("step") == step]
