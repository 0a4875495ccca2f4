"""What --from brings to a stage: entries, each recognised by the stage that made it, and checked
against the model.

Everything is refused here, by names and hashes alone, before any weight is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanpipe.errors import StoreError, UsageError
from wanpipe.model import Model
from wanpipe.store import Entry, Store

if TYPE_CHECKING:
    import numpy as np

    from wanpipe.denoiser import Prompting

ROLES = {"encode-text": "text", "encode-image": "image", "denoise": "step", "decode": "frames"}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Entries by role; what a step was made from is found beside it unless given anew."""

    text: Entry | None = None
    image: Entry | None = None
    step: Entry | None = None
    frames: Entry | None = None

    @property
    def entries(self) -> list[Entry]:
        """All of them, the latest stage first."""
        found = (self.frames, self.step, self.image, self.text)
        return [entry for entry in found if entry is not None]


def collect(references: Sequence[str], accepted: Sequence[str], store: Store) -> Sources:
    """Resolve --from for a stage that takes the `accepted` roles, each at most once. Raises
    UsageError or StoreError.
    """
    found: dict[str, Entry] = {}
    for reference in references:
        entry = store.resolve(reference)
        role = ROLES.get(entry.stage, entry.stage)
        if role not in accepted:
            wanted = ", ".join(stage for stage, name in ROLES.items() if name in accepted)
            raise UsageError(
                f"--from takes entries of {wanted} here, got one of {entry.stage} ({reference})"
            )
        if role in found:
            raise UsageError(
                f"--from takes one entry of {entry.stage}, got {found[role].key[:8]} and "
                f"{entry.key[:8]}"
            )
        found[role] = entry
    return Sources(**found)


def with_inputs(sources: Sources, store: Store) -> Sources:
    """Add the text and image that the step was made from, where they are not given anew."""
    step = sources.step
    if step is None:
        return sources
    home = Store(step.path.parent.parent, store.report)
    found: dict[str, Entry | None] = {"text": sources.text, "image": sources.image}
    for role, key in step.inputs.items():
        stage = f"encode-{role}"
        if found[role] is None:
            found[role] = home.find(stage, key) or store.find(stage, key)
            if found[role] is None:
                raise StoreError(
                    f"the step {step.key[:8]} was made from {stage}/{key[:8]}, which is gone; give "
                    "another with --from"
                )
    return Sources(step=step, **found)


def check(sources: Sources, model: Model) -> Entry:
    """Return the text entry. Raises UsageError where text or image is missing, not wanted, or made
    by other networks.
    """
    text, image, variant = sources.text, sources.image, model.config.variant
    if text is None:
        raise UsageError(
            "no text entry is given; make one with `wanpipe encode-text` and name it with --from"
        )
    if text.material["t5"] != model.hash("t5_encoder"):
        raise UsageError(
            f"text entry {text.key[:8]} was made by another T5 than that of {model.directory}; "
            "encode the prompt with this model"
        )
    task = model.config.task
    if image is None and task == "i2v":
        raise UsageError(
            f"{variant} needs an image; make an entry with `wanpipe encode-image` and name it with "
            "--from"
        )
    if image is None:
        return text
    if task == "t2v":
        raise UsageError(
            f"{variant} takes no image, got image entry {image.key[:8]}; use an I2V or TI2V model"
        )
    if image.material["vae"] != model.hash("vae_encoder"):
        raise UsageError(
            f"image entry {image.key[:8]} was made by another VAE than that of {model.directory}; "
            "encode it with this model"
        )
    return text


def read_prompting(sources: Sources) -> "Prompting":
    """Read the arrays that a run is conditioned on."""
    import mlx.core as mx

    from wanpipe.denoiser import Prompting

    assert sources.text is not None
    arrays: dict[str, Any] = {
        name: mx.array(sources.text.read(name)) for name in ("prompt", "negative")
    }
    if sources.image is not None:
        roles = {"condition": "condition", "clip": "clip", "latent": "first_frame"}
        for name in sources.image.names:
            arrays[roles[name]] = mx.array(sources.image.read(name))
    return Prompting(**arrays)


def read_noise(path: Path, shape: tuple[int, ...]) -> "np.ndarray":
    """Read --noise: a .npy of float numbers shaped like the latent (C, F, H, W). Raises UsageError
    for anything else.
    """
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"noise {path} cannot be read as .npy: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UsageError(f"noise {path} must be floats of shape {shape}, got {found}")
    if not np.isfinite(array).all():
        raise UsageError(f"noise {path} must be finite, got NaN or infinite values")
    return np.ascontiguousarray(array, dtype=np.float32)
