"""Where a result comes from: the entries behind it, followed back to prompt and model, as plain
data, which a video carries.
"""

from typing import Any

import msgspec

from wanpipe.runtime.documents import plain
from wanpipe.store import Run, Store
from wanpipe.store.runs import ModelReference
from wanpipe.store.schema import ROLES
from wanpipe.weights.model import Model

LIMIT = 1 << 20  # bytes of a video's comment


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What a video says of itself in its comment. What a later wanpipe adds is no error."""

    wanpipe: dict[str, Any]


def lineage_of(step: str, run: Run | None, model: Model | None, store: Store) -> dict[str, Any]:
    """Tell how the step of a key came to be: settings, seed, prompts and keys of its inputs, as its
    run has them, and variant and hashes of the model.
    """
    made_by = run.model if run else ModelReference(key=None, directory="")
    if model is not None:
        made_by = reference(model)
    lineage: dict[str, Any] = {
        "variant": made_by.variant,
        "dtype": made_by.dtype,
        "experts": made_by.experts,
        "denoise": step,
    }
    if run is None:
        return lineage
    lineage |= {"step": run.number(step), "seed": run.seed, **plain(run.settings)}
    lineage |= {ROLES[role]: key for role, key in run.inputs.items()}
    texts = {"prompt": run.prompt, "negative_prompt": run.negative_prompt}
    lineage |= {name: text for name, text in texts.items() if text is not None}
    if "image" in run.inputs:
        image = store.find(ROLES["image"], run.inputs["image"])
        if image is not None and image.made.image is not None:
            lineage["image"] = image.made.image
    return lineage


def reference(model: Model) -> ModelReference:
    """A model as runs name it."""
    return ModelReference(
        key=model.config.key,
        directory=str(model.directory.resolve()),
        variant=model.config.variant,
        dtype=model.config.dtype,
        experts={name: model.hash(name) for name in model.config.experts},
    )
