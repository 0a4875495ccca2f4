"""The recipe of an entry, which defines its key before it is computed."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from wanpipe.runtime.documents import convert, to_builtins
from wanpipe.runtime.text import storable
from wanpipe.store.keys import key_of
from wanpipe.store.materials import SCHEMA, Material
from wanpipe.store.schema import STAGES, StageSpec


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A planned entry: its material gives the key, `inputs` are the entries it is made from.

    `step` is the number of a denoising step and `parent` the key of the step before it;
    `references` counts those of a context of VACE; `made` holds notes for the record. A `resumable`
    recipe keeps its unfinished draft, for a `fill` that can continue it.
    """

    material: Any  # one of schema.AnyMaterial; who makes it knows which
    inputs: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    parent: str | None = None
    references: int | None = None
    made: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False

    @cached_property
    def stage(self) -> str:
        """Name of the stage."""
        return str(self.material_dict["stage"])

    @property
    def stage_spec(self) -> StageSpec:
        """Specification of the stage."""
        return STAGES[self.stage]

    @cached_property
    def material_dict(self) -> dict[str, Any]:
        """The material as a dict, as it is hashed and stored."""
        return dict(to_builtins(self.material))

    @cached_property
    def key(self) -> str:
        """The key of the entry."""
        return key_of(self.material_dict)

    @property
    def number(self) -> int:
        """Number of a denoising step, from 0."""
        assert self.step is not None, f"{self.stage} has no steps"
        return self.step

    def event(self) -> dict[str, Any]:
        """Return the fields by which events name this entry."""
        return {"stage": self.stage, "key": self.key, "step": self.step}


def material(stage: str, **fields: Any) -> Any:
    """Build the material of a stage, each number cast to its declared type: 5 becomes 5.0 for a
    float. Raises DocumentError for fields that do not fit the declaration.
    """
    kind: type[Material] = STAGES[stage].material
    return convert({"stage": stage, **fields}, kind)


def build_record(recipe: Recipe, made: dict[str, Any]) -> dict[str, Any]:
    """Build the record of an entry without what its draft adds (digest, files, seal)."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    own: dict[str, Any] = {}
    if recipe.step is not None:
        own = {"step": recipe.step, "parent": recipe.parent}
    elif recipe.references is not None:
        own = {"references": recipe.references}
    return {
        "schema": SCHEMA,
        "stage": recipe.stage,
        "key": recipe.key,
        "material": recipe.material_dict,
        "inputs": recipe.inputs,
        **own,
        "made": storable({"time": moment, **recipe.made, **made}),
    }
