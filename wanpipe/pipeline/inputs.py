"""The entries that a stage gets by --from, checked against the model before weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import UNSET

from wanpipe.errors import StoreError, UsageError
from wanpipe.models.config import ModelConfig
from wanpipe.store import Entry, Run, Store
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.weights.model import Model

# what a model needs beside a text, by its task, and how to make it
NEEDED = {
    "i2v": "needs an image; make an entry with `wanpipe encode-image`, and name it with --from",
    "vace": "needs a context; make an entry with `wanpipe encode-video`, and name it with --from",
}
# the modes of video entries that a model takes, by its task, and what a mode is for
MODES = {"t2v": ("v2v",), "i2v": ("i2v",), "ti2v": ("ti2v", "v2v"), "vace": ("vace",)}
PURPOSES = {
    "v2v": "to be changed by a text-to-video model",
    "vace": "as the context of VACE",
    "i2v": "to be continued by an I2V model",
    "ti2v": "to be continued by a TI2V model",
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Entries by role, and the run that `step` continues.

    The text, image and video of that run are used unless others are given. `more_texts` are those
    of further videos.
    """

    text: Entry | None = None
    more_texts: tuple[Entry, ...] = ()
    image: Entry | None = None
    video: Entry | None = None
    step: Entry | None = None
    frames: Entry | None = None
    run: Run | None = None

    @property
    def entries(self) -> list[Entry]:
        """All entries, the latest stage first."""
        found = (self.frames, self.step, self.video, self.image, self.text, *self.more_texts)
        return [entry for entry in found if entry is not None]


def resolve_inputs(references: Sequence[str], accepted: Sequence[str], store: Store) -> Inputs:
    """Resolve --from for a stage that accepts these roles, each at most once but for texts.

    A run stands for its last step. If a step is given too, the run is the one to continue.
    Raises UsageError or StoreError.
    """
    found: dict[str, Entry] = {}
    texts: dict[str, Entry] = {}
    run: Run | None = None
    for reference in references:
        if "step" in accepted and (meant := store.find_run(reference)):
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
        if role == "text":
            texts.setdefault(entry.key, entry)
            continue
        if role in found:
            raise UsageError(
                f"--from takes one entry of {entry.stage}, got {found[role].key[:8]} and "
                f"{entry.key[:8]}"
            )
        found[role] = entry
    if run is not None and "step" not in found and "frames" not in found:
        found["step"] = store.resolve(str(store.runs.last(run)))
    text, *more = texts.values() or (None,)
    inputs = Inputs(**found, text=text, more_texts=tuple(filter(None, more)), run=run)
    return inputs if inputs.step is None else with_run(inputs, store)


def with_run(inputs: Inputs, store: Store) -> Inputs:
    """Add the latest run that the step belongs to, with a remark if there are several.

    Raises UsageError if a run is given that the step does not belong to.
    """
    step, run = inputs.step, inputs.run
    assert step is not None
    if run is not None:
        if step.key not in run.steps:
            raise UsageError(
                f"step {step.key[:8]} is not one of run {run.key[:8]}; give one of the two"
            )
        return inputs
    runs = Store(step.root, store.report).runs.of(step.key)
    if len(runs) > 1:
        others = ", ".join(other.key[:8] for other in runs[1:4])
        store.report.remark(
            f"step {step.key[:8]} belongs to {len(runs)} runs; taking the latest, "
            f"{runs[0].key[:8]}. Add --from RUN to take another: {others}"
        )
    return replace(inputs, run=runs[0] if runs else None)


def with_entries_of_run(inputs: Inputs, store: Store) -> Inputs:
    """Add the text, image and video of the run that the step continues, unless others are given.

    Raises StoreError if they are gone, or if no run knows the step.
    """
    step, run = inputs.step, inputs.run
    if step is None:
        return inputs
    if run is None:
        raise StoreError(
            f"no run in {step.root} knows step {step.key[:8]}, so its settings are not known; "
            "start again with `wanpipe denoise --from TEXT`"
        )
    home = Store(step.root, store.report)
    found: dict[str, Any] = {}
    for role, key in run.inputs.items():
        if getattr(inputs, role) is None:
            entry = home.find(ROLES[role], key) or store.find(ROLES[role], key)
            if entry is None:
                raise StoreError(
                    f"run {run.key[:8]} was made from {ROLES[role]}/{key[:8]}, which is gone; give "
                    "another with --from"
                )
            found[role] = entry
    return replace(inputs, **found)


def check_inputs(inputs: Inputs, model: Model) -> Entry:
    """Return the first text entry.

    Raises UsageError if an entry is missing, not needed, or from other networks.
    """
    text, config = inputs.text, model.config
    for one in inputs.more_texts:
        check_text(one, model)
    if text is None:
        raise UsageError(
            "no text entry is given; make one with `wanpipe encode-text` and name it with --from"
        )
    check_text(text, model)
    if inputs.image is not None and inputs.video is not None:
        raise UsageError(
            f"a video is made from an image or from a video, got image entry "
            f"{inputs.image.key[:8]} and video entry {inputs.video.key[:8]}; give one"
        )
    given = inputs.image or inputs.video
    if given is None and config.task in NEEDED:
        raise UsageError(f"{config.variant} {NEEDED[config.task]}")
    if given is None:
        return text
    if given is inputs.image:
        check_takes_image(config)
    else:
        check_takes_video(config, given.material.mode)
    check_networks(given, model)
    if given is inputs.image:
        made = given.material
        check_images(config, made.pixels is not None, made.last_pixels is not UNSET)
    return text


def check_text(text: Entry, model: Model) -> None:
    """Raise UsageError for a text that was encoded by another network than the model's."""
    if text.material.t5 != model.hash("t5_encoder"):
        raise UsageError(
            f"text entry {text.key[:8]} was made by another T5 than that of {model.directory}; "
            "encode the prompt with this model"
        )


def check_networks(entry: Entry, model: Model) -> None:
    """Raise UsageError if an image or a video was encoded by other networks than the model's."""
    what, made = STAGES[entry.stage].role, entry.material
    clip = model.hash("clip") if model.takes_clip else None
    for made_by, ours, network in (
        (made.vae, model.hash("vae_encoder"), "VAE"),
        (made.clip, clip, "CLIP"),
    ):
        if made_by != ours:
            raise UsageError(
                f"{what} entry {entry.key[:8]} was made by another {network} than that of "
                f"{model.directory}; encode it with this model"
            )


def check_takes_image(config: ModelConfig) -> None:
    """Raise UsageError for a model that takes no image."""
    if config.task == "t2v":
        raise UsageError(
            f"{config.variant} is a text-to-video model, so it takes no image; use an I2V, TI2V "
            "or VACE model"
        )
    if config.task == "vace":
        raise UsageError(
            f"{config.variant} takes no image from encode-image; encode it with `wanpipe "
            "encode-video --reference IMAGE`, or as a frame with --keyframe 0 IMAGE"
        )


def check_takes_video(config: ModelConfig, mode: str) -> None:
    """Raise UsageError for a video that was encoded for another kind of model."""
    if mode not in MODES[config.task]:
        raise UsageError(
            f"{config.variant} cannot use a video that was encoded {PURPOSES[mode]}; encode it "
            "with this model"
        )


def check_images(config: ModelConfig, first: bool, last: bool) -> None:
    """Raise UsageError for a first or last image that an image-to-video model cannot do with."""
    if last and config.last_image == "no":
        raise UsageError(
            f"{config.variant} takes no last image; use Wan2.1-FLF2V-14B-720P or Wan2.2-I2V-A14B"
        )
    if config.last_image == "required" and not (first and last):
        given, other = ("first", "--last-image") if first else ("last", "--image")
        raise UsageError(
            f"{config.variant} needs a first and a last image, got only the {given} one; give the "
            f"other with {other}, or use Wan2.2-I2V-A14B"
        )
