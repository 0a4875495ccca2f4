"""What an entry will be before it exists. Its key follows from it alone."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from wanpipe.store.keys import SCHEMA, key_of


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an entry will be before it exists: its material gives the key, `inputs` the entries it
    is made from.

    A `resumable` one keeps its unfinished draft, for a `fill` that can go on with it.
    `extra` goes into the record beside them (`step` and `parent` of a denoising step), `made` under
    `made`.
    """

    stage: str
    algorithm: int
    material: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The material as it is hashed and stored."""
        head = {"schema": SCHEMA, "stage": self.stage, "algorithm": self.algorithm}
        return {**head, **self.material}

    @cached_property
    def key(self) -> str:
        """The key of the entry."""
        return key_of(self.whole)

    def event(self) -> dict[str, Any]:
        """The fields by which events name this entry."""
        return {"stage": self.stage, "key": self.key, "step": self.extra.get("step")}


def record_of(recipe: Recipe, made: dict[str, Any]) -> dict[str, Any]:
    """The record of an entry, less what its draft adds (digest, statistics, seal)."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "stage": recipe.stage,
        "key": recipe.key,
        "material": recipe.whole,
        "inputs": recipe.inputs,
        **recipe.extra,
        "made": {"time": moment, **recipe.made, **made},
    }
