"""Where a result comes from: the entries behind it, followed back to prompt and model, as plain
data, which a video carries.
"""

from typing import Any

import msgspec

from wanpipe.documents import plain
from wanpipe.model import Model
from wanpipe.store import Entry, Run, Store
from wanpipe.store.runs import ModelReference
from wanpipe.store.schema import ROLES

LIMIT = 1 << 20  # bytes of a video's comment


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What a video says of itself in its comment. What a later wanpipe adds is no error."""

    wanpipe: dict[str, Any]


def lineage_of(step: Entry, run: Run | None, model: Model | None, store: Store) -> dict[str, Any]:
    """Tell how a step came to be: settings, seed, prompt, keys of its inputs, variant and hashes of
    the model.
    """
    made_by = run.model if run else ModelReference(key=None, directory="")
    if model is not None:
        made_by = reference(model)
    lineage: dict[str, Any] = {
        "variant": made_by.variant,
        "dtype": made_by.dtype,
        "experts": made_by.experts,
        "denoise": step.key,
        "step": step.step,
        "seed": run.seed if run else None,
        **(plain(run.settings) if run else {}),
        **{ROLES[role]: key for role, key in step.inputs.items()},
    }
    if run is not None:
        texts = {"prompt": run.prompt, "negative_prompt": run.negative_prompt}
        lineage |= {name: text for name, text in texts.items() if text is not None}
        lineage["encode-text"] = run.text
    image = store.find("encode-image", step.inputs["image"]) if "image" in step.inputs else None
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
