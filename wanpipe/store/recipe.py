"""What an entry will be before it exists. Its key follows from it alone."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from wanpipe.runtime.documents import convert, plain
from wanpipe.runtime.text import storable
from wanpipe.store.keys import key_of
from wanpipe.store.schema import SCHEMA, STAGES, Material, Stage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an entry will be before it exists: its material gives the key, `inputs` the entries it
    is made from.

    `step` and `parent` number a denoising step and name the one before it; `made` holds notes for
    the record. A `resumable` one keeps its unfinished draft, for a `fill` that can continue it.
    """

    material: Any  # one of schema.AnyMaterial; who makes it knows which
    inputs: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    parent: str | None = None
    made: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False

    @cached_property
    def stage(self) -> str:
        """Name of the stage."""
        return str(self.whole["stage"])

    @property
    def declared(self) -> Stage:
        """Declaration of the stage."""
        return STAGES[self.stage]

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The material as it is hashed and stored."""
        return dict(plain(self.material))

    @cached_property
    def key(self) -> str:
        """The key of the entry."""
        return key_of(self.whole)

    @property
    def number(self) -> int:
        """Number of a denoising step, from 0."""
        assert self.step is not None, f"{self.stage} has no steps"
        return self.step

    def event(self) -> dict[str, Any]:
        """The fields by which events name this entry."""
        return {"stage": self.stage, "key": self.key, "step": self.step}


def material(stage: str, **fields: Any) -> Any:
    """The material of a stage, each number cast to its declared type: 5 becomes 5.0 where a float
    is declared. Raises DocumentError for what does not fit the declaration.
    """
    kind: type[Material] = STAGES[stage].material
    return convert({"stage": stage, **fields}, kind)


def record_of(recipe: Recipe, made: dict[str, Any]) -> dict[str, Any]:
    """The record of an entry, less what its draft adds (digest, files, seal)."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    step = {} if recipe.step is None else {"step": recipe.step, "parent": recipe.parent}
    return {
        "schema": SCHEMA,
        "stage": recipe.stage,
        "key": recipe.key,
        "material": recipe.whole,
        "inputs": recipe.inputs,
        **step,
        "made": storable({"time": moment, **recipe.made, **made}),
    }
