"""run --like: the options that make a video again, from what is recorded of it.

The record may be a stranger's, in the metadata of a video: it is checked as options are, and no
path in it is opened.
"""

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field, structs

from wanpipe.denoising.loras import FIELDS as LORA_OPTIONS
from wanpipe.denoising.loras import given_for, locate, option
from wanpipe.denoising.settings import schedule_of
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import HIGH
from wanpipe.pipeline.inputs import Inputs
from wanpipe.pipeline.lineage import Source, lineage_of, read_lineage
from wanpipe.runtime.documents import (
    Count,
    DocumentError,
    Finite,
    Hash,
    Seed,
    Text,
    convert,
)
from wanpipe.runtime.units import quote
from wanpipe.sampling import SOLVERS
from wanpipe.store import Entry, Settings, Store
from wanpipe.store.schema import ROLES
from wanpipe.weights.model import Model, current_directory, open_model

# what the settings of a run have, as options
SETTINGS = (
    "width",
    "height",
    "num_frames",
    "steps",
    "guide_scale",
    "nag",
    "nag_tau",
    "nag_alpha",
    "shift",
    "scheduler",
    "timesteps",
    "trim_first_frames",
    "step_cache",
    "strength",
    "context_scale",
)
SAMPLING = ("prompts", "negative_prompt", "no_negative_prompt", "seeds", "noise", *SETTINGS)
LORAS = tuple(LORA_OPTIONS.values())
# the options that name files; fields of a record have the names of these
FILES = ("image", "last_image", "video", "mask", "references")
VIDEO = ("keyframes", "outpaint", "extend")  # what else is said of a video
Name = Annotated[str, Meta(max_length=1000)]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a lineage that are read; others are ignored."""

    denoise: Hash
    decode: Hash | None = None
    variant: Name = ""
    dtype: Name = ""
    experts: dict[Name, Hash] = {}
    step: Count | None = None
    seed: Seed | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    fps: Finite | None = None
    encode_image: Hash | None = field(name="encode-image", default=None)
    encode_video: Hash | None = field(name="encode-video", default=None)
    image: Name | None = None
    last_image: Name | None = None
    fit: Literal["stretch", "cover", "pad", "official"] | None = None
    video: Name | None = None
    mask: Name | None = None
    references: Annotated[list[Name], Meta(max_length=1000)] = []
    after: Name | None = None
    branches_from: Hash | None = None
    vae_tiny: Hash | None = None


@dataclass(frozen=True, kw_only=True)
class Like:
    """What a video was made from, as far as it is recorded. `name` is how it was given."""

    name: str
    record: Record
    settings: Settings
    store: Store

    @staticmethod
    def read(reference: str, store: Store) -> "Like":
        """Read the record of a video, a run, a step or frames.

        Raises UsageError for a record without settings, or one that cannot be.
        """
        lineage = find_lineage(reference, store)
        if "width" not in lineage:
            raise UsageError(f"no settings are recorded for {reference}; give the options instead")
        names = {one.name for one in structs.fields(Settings)}
        try:
            record = convert(lineage, Record)
            settings = convert({one: lineage[one] for one in lineage.keys() & names}, Settings)
        except DocumentError as error:
            raise UsageError(f"the record of {reference} cannot be used: {error}") from error
        if settings.scheduler not in SOLVERS:
            raise UsageError(
                f"the record of {reference} names a scheduler that wanpipe does not have, "
                f"{quote(settings.scheduler)}; use --scheduler {', '.join(SOLVERS)} without --like"
            )
        if record.branches_from is not None:
            raise UsageError(
                f"{reference} branches from step {record.branches_from[:8]} of another run, so it "
                f"is not made from noise; use `wanpipe denoise --from {record.branches_from[:8]}` "
                f"with what it changes, which `wanpipe show {shlex.quote(reference)}` lists"
            )
        return Like(name=reference, record=record, settings=settings, store=store)

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the options of run: those asked for, completed with the recorded ones.

        Raises UsageError if something is neither given nor recorded.
        """
        record, given = self.record, {name for name, value in asked.items() if is_given(value)}
        found = {**self.sampling(given), **self.loras(given)}
        if "prompts" not in given and record.prompt is None:
            raise UsageError(f"no prompt is recorded for {self.name}; use --prompt")
        found["prompts"] = (record.prompt,)
        if not given & {"negative_prompt", "no_negative_prompt"}:
            found["negative_prompt"] = record.negative_prompt or None
            found["no_negative_prompt"] = record.negative_prompt == ""
        if not given & {"seeds", "noise"}:
            if record.seed is None:
                raise UsageError(
                    f"{self.name} was made from the noise in a file; give it with --noise, or use "
                    "--seed"
                )
            found["seeds"] = (record.seed,)
        if self.is_same_image(asked) and not given & {"width", "height", "fit"}:
            found["fit"] = record.fit
        found["fps"] = record.fps
        if record.after is not None and "after" not in given:
            self.store.report.remark(
                f"{self.name} was joined to {quote(record.after)}; give --after FILE to join this "
                "one too"
            )
        if record.vae_tiny is not None and not given & {"vae_tiny", "tiny"}:
            self.store.report.remark(
                f"{self.name} was decoded by a tiny VAE; give --vae-tiny FILE to use it again"
            )
        return asked | {name: value for name, value in found.items() if name not in given}

    def sampling(self, given: set[str]) -> dict[str, Any]:
        """Return the recorded settings as options, except those that the given ones replace."""
        found = self.settings.options()
        if given & {"steps", "timesteps"}:  # each decides the other
            found = {name: found[name] for name in found.keys() - {"steps", "timesteps"}}
        steps = schedule_of(self.settings).steps
        if self.record.step is not None and self.record.step + 1 < steps:
            self.store.report.remark(
                f"{self.name} shows step {self.record.step + 1} of {steps}; all steps are made"
            )
        return found

    def loras(self, given: set[str]) -> dict[str, tuple[tuple[Path, float], ...]]:
        """Return the recorded LoRAs as options. Raises UsageError for one whose file no run in this
        cache knows, CheckpointError for one whose file is gone or has changed.
        """
        found: dict[str, tuple[tuple[Path, float], ...]] = {}
        for lora in self.settings.loras:
            if given_for(lora) not in LORA_OPTIONS:
                raise UsageError(
                    f"the record of {self.name} has a LoRA for {quote(str(lora.expert))}, which is "
                    "no transformer; give the options instead"
                )
            name = LORA_OPTIONS[given_for(lora)]
            if name in given:
                continue
            runs = self.store.runs.recorded(containing=lora.hash)
            files = next((run.loras for run in runs if lora.hash in run.loras), None)
            if files is None:
                raise UsageError(
                    f"{self.name} was made with LoRA {quote(lora.name)}, which no run in "
                    f"{self.store.root} has used; give it with {option(given_for(lora))} PATH "
                    f"{lora.strength:g}"
                )
            pair = (locate(lora, files, self.store), lora.strength)
            second = lora.half is True and lora.expert != HIGH
            if not (second and pair in found.get(name, ())):  # one file is given for both experts
                found[name] = (*found.get(name, ()), pair)
        return found

    def is_same_image(self, asked: dict[str, Any]) -> bool:
        """Whether the images given have the names of the recorded ones, so that they are fitted in
        the same way.
        """
        names = [asked[name] and asked[name].name for name in ("image", "last_image")]
        return any(names) and names == [self.record.image, self.record.last_image]

    def find_model(self) -> Path:
        """Return the directory of the model it was made with, the latest used one.

        Raises UsageError if no such model was used with this cache.
        """
        for model in self.models():
            return model.directory
        experts = ", ".join(key[:8] for key in self.record.experts.values())
        raise UsageError(
            f"{self.name} was made with {quote(self.record.variant)} ({experts or 'no hash'}), "
            f"which is not known in {self.store.root}; use --model or --checkpoint-dir"
        )

    def models(self) -> Iterator[Model]:
        """Yield the models that were used with this cache and have the recorded transformers."""
        record, store = self.record, self.store
        places = [run.model.directory for run in store.runs.of(record.denoise)]
        known = store.models.all()
        places += [one.directory for one in known if one.experts == record.experts]
        for place in dict.fromkeys(places):
            with suppress(CheckpointError):  # gone or damaged
                model = open_model(current_directory(place, store))
                experts = {name: model.hash(name) for name in model.config.experts}
                if record.experts in ({}, experts):
                    yield model

    def condition(self, asked: dict[str, Any]) -> Entry | None:
        """Return the entry of the image or video it was made from; None if there is none, or if
        `asked`, the complete options, name other files.

        Raises UsageError if the files are needed, but not given.
        """
        if any(is_given(asked[name]) for name in (*FILES, *VIDEO)):
            return None
        record = self.record
        for role, key in (("image", record.encode_image), ("video", record.encode_video)):
            if key is None:
                continue
            entry = self.store.find(ROLES[role], key)
            if entry is not None and fits(entry, asked):
                return entry
            if not (files := self.files()):
                return None  # VACE makes a video from nothing, too
            why = "is not in the cache" if entry is None else "has another size or length"
            raise UsageError(
                f"{self.name} was made from {files}, and its entry {ROLES[role]}/{key[:8]} {why}; "
                "give the files again, with their options"
            )
        return None

    def files(self) -> str:
        """Name the files that it was made from, with their options."""
        words = {"references": "--reference", "last_image": "--last-image"}
        if self.record.encode_video is not None:
            words["image"] = "--keyframe"
        found = []
        for name in FILES:
            value = getattr(self.record, name)
            for one in value if isinstance(value, list) else filter(None, [value]):
                found.append(f"{words.get(name, f'--{name}')} {quote(one)}")
        return " ".join(found)

    def compare(self, frames: Entry, asked: dict[str, Any]) -> None:
        """Report if the video should be the same, given the options asked for and the entry of its
        frames, but has another key.
        """
        given = {name for name, value in asked.items() if is_given(value)}
        files = given & {*FILES, *VIDEO} and not self.is_same_image(asked)
        if files or given & {*SAMPLING, *LORAS, "fit", "exif"}:
            return
        record, step = self.record, frames.inputs["step"]
        if step != record.denoise and self.is_whole():
            self.store.report.remark(
                f"step {step[:8]} is not {record.denoise[:8]}, that of {self.name}: an input, the "
                "model, the type of its weights, the device or wanpipe is another one"
            )
        elif (
            record.decode not in (None, frames.key)
            and self.is_whole()
            and not given & {"tiling", "tiny", "vae_tiny"}
            and record.vae_tiny is None  # `complete` told
        ):
            self.store.report.remark(
                f"frames {frames.key[:8]} are not {str(record.decode)[:8]}, those of {self.name}: "
                "they are decoded by another VAE, or with another --tiling"
            )

    def is_whole(self) -> bool:
        """Whether it shows the last step."""
        return self.record.step in (None, schedule_of(self.settings).steps - 1)


def find_lineage(reference: str, store: Store) -> dict[str, Any]:
    """Return the lineage of a video, a run, a step or frames. Raises UsageError."""
    path = Path(reference)
    if path.is_file() or (path.is_dir() and any(path.glob("*.png"))):
        return read_lineage(path)
    if path.suffix and not path.exists():
        raise UsageError(f"no video at {path}; give a video that wanpipe wrote, or a run")
    if run := store.find_run(reference):
        return lineage_of(run.last, run, None, store)
    entry = store.peek_reference(reference)
    if entry.stage not in ("denoise", "decode"):
        raise UsageError(
            f"--like takes a video, a run, a step or frames, got an entry of {entry.stage}"
        )
    inputs = Inputs(step=entry) if entry.stage == "denoise" else Inputs(frames=entry)
    return Source.of(None, inputs, store).lineage()


def is_given(value: Any) -> bool:
    """Whether an option was given, from its value."""
    return value is not None and value is not False and value != ()


def fits(entry: Entry, asked: dict[str, Any]) -> bool:
    """Whether the entry of an image or video is for the size and length asked for."""
    made, frames = entry.material, asked["num_frames"] + 4 * asked["trim_first_frames"]
    size = (made.width, made.height) == (asked["width"], asked["height"])
    return size and (made.mode == "ti2v" or made.num_frames == frames)
