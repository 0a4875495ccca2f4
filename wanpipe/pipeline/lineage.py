"""The lineage of a result: the entries, prompts and model that it was made from.

A video has it in its metadata.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from wanpipe.errors import UsageError
from wanpipe.pipeline.inputs import Inputs
from wanpipe.runtime.documents import DocumentError, decode, to_builtins
from wanpipe.store import Entry, Run, Store
from wanpipe.store.runs import ModelReference
from wanpipe.store.schema import ROLES
from wanpipe.weights.model import Model

FILES = {"image": ("image", "last_image", "fit"), "video": ("image", "video", "mask", "references")}
FieldName = Annotated[str, Meta(max_length=100)]


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The comment of a video. Fields that a later wanpipe adds are accepted."""

    wanpipe: Annotated[dict[FieldName, Any], Meta(max_length=1000)]


def read_lineage(path: Path) -> dict[str, Any]:
    """Read the lineage in a video's metadata. Nothing in it is checked but its form: it may be a
    stranger's. Raises UsageError if the video has none, or WanpipeError if it cannot be read.
    """
    from wanpipe.media import video

    comment = video.read_metadata(path).get("comment", "")
    try:
        return decode(comment, Lineage).wanpipe
    except DocumentError as error:
        raise UsageError(
            f"{path} has no record of how it was made; give a video that wanpipe wrote"
        ) from error


def lineage_of(step: str, run: Run | None, model: Model | None, store: Store) -> dict[str, Any]:
    """Describe how a step was made, given its key.

    Settings, seed, prompts and input keys come from its run, variant and hashes from the model.
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
    lineage |= {"step": run.number(step), "seed": run.seed, **to_builtins(run.settings)}
    if isinstance(run.start, str):
        lineage["branches_from"] = run.start
    lineage |= {ROLES[role]: key for role, key in run.inputs.items()}
    texts = {"prompt": run.prompt, "negative_prompt": run.negative_prompt}
    lineage |= {name: text for name, text in texts.items() if text is not None}
    for role in FILES.keys() & run.inputs.keys():
        entry = store.find(ROLES[role], run.inputs[role])
        if entry is not None:
            names = {name: getattr(entry.made, name) for name in FILES[role]}
            lineage |= {name: file for name, file in names.items() if file is not None}
    return lineage


def reference(model: Model) -> ModelReference:
    """Return the reference to a model in the records of runs."""
    return ModelReference(
        key=model.config.key,
        directory=str(model.directory.resolve()),
        variant=model.config.variant,
        dtype=model.config.dtype,
        experts={name: model.hash(name) for name in model.config.experts},
    )


@dataclass(frozen=True)
class Source:
    """The step that frames come from: its key, its entry if given, its run, the model, and the
    video entry if given, which a plan may still have to make.
    """

    key: str
    home: Store
    step: Entry | None
    run: Run | None
    model: Model | None
    given: Entry | None = None

    @staticmethod
    def of(model: Model | None, inputs: Inputs, store: Store) -> "Source":
        """Find the run of the inputs: the latest one made by `model`, or else the latest one."""
        entry = inputs.frames or inputs.step
        assert entry is not None
        home, run, step = Store(entry.root, store.report), inputs.run, inputs.step
        key = entry.key if inputs.frames is None else entry.inputs["step"]
        if run is None:
            runs = home.runs.of(key)
            fitting = [one for one in runs if model and one.model.key == model.config.key]
            run = next(iter([*fitting, *runs]), None)
        return Source(key, home, step, run, model, inputs.video)

    def rate(self, asked: float | None) -> float:
        """Return frames per second: those asked for, or else the run's or the model's. Raises
        UsageError if neither knows.
        """
        if asked is not None:
            return asked
        fps = self.run.fps if self.run else None
        if fps is None and self.model is not None:
            fps = self.model.config.defaults.fps
        if fps is None:
            raise UsageError("no run knows the frames per second of these frames; use --fps")
        return fps

    @property
    def trim(self) -> int:
        """Latent frames to trim, from the run, or else from the material of the noise."""
        if self.run is not None:
            return self.run.settings.trim_first_frames
        noise = self.step.material.noise if self.step else UNSET
        trim = UNSET if isinstance(noise, UnsetType) else noise.trim_first_frames
        return 0 if isinstance(trim, UnsetType) else trim

    @property
    def video(self) -> Entry | None:
        """The video entry that the step was made from. Raises StoreError if it is gone."""
        if self.given is not None:
            return self.given
        made_by = self.run or self.step
        key = made_by.inputs.get("video") if made_by else None
        return None if key is None else self.home.resolve(key)

    @property
    def reference_frames(self) -> int:
        """Latent frames of reference images, from the run, or else from the video of the step."""
        if self.run is not None:
            return self.run.settings.reference_frames or 0
        video = self.video
        return 0 if video is None else len(video.material.references)

    @property
    def known_frames(self) -> int:
        """Frames that the step has in common with the video that it continues.

        Raises UsageError if it continues none, or if more than these frames are trimmed.
        """
        video = self.video
        if video is None or not video.material.known_frames:
            raise UsageError(
                f"--after joins a video to the one that it continues, but step {self.key[:8]} "
                "continues none; leave it out"
            )
        known, trimmed = video.material.known_frames, 4 * self.trim
        if trimmed > known:
            raise UsageError(
                f"--after joins two videos at their {known} common frames, but {trimmed} frames "
                f"of step {self.key[:8]} are trimmed; leave it out"
            )
        common: int = known - trimmed
        return common

    def lineage(self) -> dict[str, Any]:
        """Describe how the step was made."""
        return lineage_of(self.key, self.run, self.model, self.home)
