"""What --from brings to a stage: entries, each recognised by the stage that made it, and checked
against the model.

Everything is refused here, by names and hashes alone, before any weight is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanpipe.errors import StoreError, UsageError
from wanpipe.store import Entry, Run, Store
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Entries by role, and the run that a step is continued in; its text and image are found beside
    it unless given anew.
    """

    text: Entry | None = None
    image: Entry | None = None
    step: Entry | None = None
    frames: Entry | None = None
    run: Run | None = None

    @property
    def entries(self) -> list[Entry]:
        """All of them, the latest stage first."""
        found = (self.frames, self.step, self.image, self.text)
        return [entry for entry in found if entry is not None]


def collect(references: Sequence[str], accepted: Sequence[str], store: Store) -> Sources:
    """Resolve --from for a stage that takes the `accepted` roles, each at most once. A run stands
    for its last step, or tells the run of a step that is given too. Raises UsageError or
    StoreError.
    """
    found: dict[str, Entry] = {}
    run: Run | None = None
    for reference in references:
        if "step" in accepted and (meant := store.run_of(reference)):
            if run is not None:
                raise UsageError(f"--from takes one run, got {run.key[:8]} and {meant.key[:8]}")
            run = meant
            continue
        entry = store.resolve(reference)
        role = STAGES[entry.stage].role
        if role not in accepted:
            wanted = ", ".join(ROLES[name] for name in accepted)
            raise UsageError(
                f"--from takes entries of {wanted} here, got one of {entry.stage} ({reference})"
            )
        if role in found:
            raise UsageError(
                f"--from takes one entry of {entry.stage}, got {found[role].key[:8]} and "
                f"{entry.key[:8]}"
            )
        found[role] = entry
    if run is not None and "step" not in found and "frames" not in found:
        found["step"] = store.resolve(str(store.runs.last(run)))
    sources = Sources(**found, run=run)
    return sources if sources.step is None else with_run(sources, store)


def with_run(sources: Sources, store: Store) -> Sources:
    """Add the run that the step belongs to: the latest, which a remark tells where there are
    several. Raises UsageError for a step of another run than the one given.
    """
    step, run = sources.step, sources.run
    assert step is not None
    if run is not None:
        if step.key not in run.steps:
            raise UsageError(
                f"step {step.key[:8]} is not one of run {run.key[:8]}; give one of the two"
            )
        return sources
    runs = Store(step.root, store.report).runs.of(step.key)
    if len(runs) > 1:
        others = ", ".join(other.key[:8] for other in runs[1:4])
        store.report.remark(
            f"step {step.key[:8]} belongs to {len(runs)} runs; taking the latest, "
            f"{runs[0].key[:8]}. Add --from RUN to take another: {others}"
        )
    return replace(sources, run=runs[0] if runs else None)


def with_inputs(sources: Sources, store: Store) -> Sources:
    """Add the text and image of the run, where they are not given anew. Raises StoreError where
    they, or the run of the step, are gone.
    """
    step, run = sources.step, sources.run
    if step is None:
        return sources
    if run is None:
        raise StoreError(
            f"no run in {step.root} knows step {step.key[:8]}, so its settings are not known; "
            "start again with `wanpipe denoise --from TEXT`"
        )
    home = Store(step.root, store.report)
    found: dict[str, Any] = {}
    for role, key in run.inputs.items():
        if getattr(sources, role) is None:
            entry = home.find(ROLES[role], key) or store.find(ROLES[role], key)
            if entry is None:
                raise StoreError(
                    f"run {run.key[:8]} was made from {ROLES[role]}/{key[:8]}, which is gone; give "
                    "another with --from"
                )
            found[role] = entry
    return replace(sources, **found)


def check(sources: Sources, model: Model) -> Entry:
    """Return the text entry. Raises UsageError where text or image is missing, not wanted, or made
    by other networks.
    """
    text, image, variant = sources.text, sources.image, model.config.variant
    if text is None:
        raise UsageError(
            "no text entry is given; make one with `wanpipe encode-text` and name it with --from"
        )
    if text.material.t5 != model.hash("t5_encoder"):
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
    if image.material.vae != model.hash("vae_encoder"):
        raise UsageError(
            f"image entry {image.key[:8]} was made by another VAE than that of {model.directory}; "
            "encode it with this model"
        )
    return text


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What a run is conditioned on, float32: text rows (L, D), and where an image takes part its
    arrays.

    `condition` (20, F, H, W) and `clip` (257, D) are those of I2V, `first_frame` (48, 1, H, W) that
    of TI2V.
    """

    prompt: "mx.array"
    negative: "mx.array"
    condition: "mx.array | None" = None
    clip: "mx.array | None" = None
    first_frame: "mx.array | None" = None

    def blend(self, latent: "mx.array") -> "mx.array":
        """Put the image's latent in place of the first frame where there is one (TI2V)."""
        import mlx.core as mx

        if self.first_frame is None:
            return latent
        return mx.concatenate([self.first_frame, latent[:, 1:]], axis=1)


def read_prompting(sources: Sources) -> Prompting:
    """Read the arrays that a run is conditioned on."""
    import mlx.core as mx

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
