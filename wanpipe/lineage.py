"""Where a result comes from: the entries behind it, followed back to prompt and model, as plain
data.
"""

from typing import Any

from wanpipe.model import Model
from wanpipe.store import Entry, Store


def lineage_of(step: Entry, model: Model, store: Store) -> dict[str, Any]:
    """Tell how a step came to be: settings, seed, prompt, keys of its inputs, variant and hashes of
    the model.
    """
    lineage: dict[str, Any] = {
        "variant": model.config.variant,
        "dtype": model.config.dtype,
        "experts": {name: model.hash(name) for name in model.config.experts},
        "denoise": step.key,
        "step": step.record["step"],
        "seed": step.made.get("seed"),
        **step.made["settings"],
        **{f"encode-{role}": key for role, key in step.inputs.items()},
    }
    text = store.find("encode-text", step.inputs["text"])
    if text is not None:
        lineage |= {name: text.made[name] for name in ("prompt", "negative_prompt")}
    image = store.find("encode-image", step.inputs["image"]) if "image" in step.inputs else None
    if image is not None:
        lineage["image"] = image.made["image"]
    return lineage
