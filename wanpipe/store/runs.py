"""Runs: what a user asked for, as small mutable records beside the immutable entries.

Runs that compute the same step share it, so what only a run knows (its settings, model, prompts,
LoRA files, videos) is saved here and found from any of its steps.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, UnsetType, field, structs

from wanpipe.errors import StoreError
from wanpipe.runtime.disk import atomic_write
from wanpipe.runtime.documents import (
    Count,
    Document,
    DocumentError,
    Finite,
    Hash,
    Length,
    Seed,
    Text,
    convert,
    decode,
    encode,
    first_line,
    read_regular,
    to_builtins,
)
from wanpipe.sampling.nag import Nag
from wanpipe.store.entry import read_record
from wanpipe.store.index import Index, Summary
from wanpipe.store.keys import is_key, is_prefix, key_of
from wanpipe.store.materials import Noise, Step

RUNS, MODELS = ".runs", ".models"
Steps = Annotated[int, Meta(ge=1, le=100_000)]


class Lora(Document, frozen=True, kw_only=True):
    """A LoRA in use: name of its file, what stands for it in keys (the content hash, unless more
    than that changes its result), and the expert it is for; None: all. `half` marks one half of a
    file with a LoRA for each expert, given for both.
    """

    name: Text
    hash: Hash
    strength: Finite
    expert: Text | None = None
    half: bool | UnsetType = UNSET


CHANGING = ("guide_scale", "loras", "step_cache", "context_scale", "nag")  # within a run
DERIVED = ("reference_frames",)  # follows from the video entry
NAG_OPTIONS = {"scale": "nag", "tau": "nag_tau", "alpha": "nag_alpha"}


class Settings(Document, frozen=True, kw_only=True):
    """The settings of a run, without what it starts from.

    `guide_scale` is (low noise, high noise); `num_frames` is what the video will have, without the
    trimmed ones; `timesteps` is an explicit grid before the shift. `strength` is the part of the
    steps that change a video. `context_scale` is that of VACE, and `reference_frames` counts its
    latent frames of reference images. `nag` is normalized attention guidance.
    """

    width: Length
    height: Length
    num_frames: Length
    steps: Steps
    guide_scale: tuple[Finite, Finite]
    shift: Finite
    scheduler: Text
    timesteps: tuple[Finite, ...] | None = None
    trim_first_frames: Annotated[int, Meta(ge=0, le=100_000)] = 0
    step_cache: Finite | None = None
    loras: tuple[Lora, ...] = ()
    strength: Finite | UnsetType = UNSET
    context_scale: Finite | UnsetType = UNSET
    reference_frames: Count | UnsetType = UNSET
    nag: Nag | UnsetType = UNSET

    @property
    def size(self) -> tuple[int, int, int]:
        """Width and height in pixels, and frames before the first ones are trimmed."""
        return self.width, self.height, self.num_frames + 4 * self.trim_first_frames

    def options(self) -> dict[str, Any]:
        """Return the options of a run that give these settings, by name, but for LoRAs and what
        follows from a video.
        """
        found: dict[str, Any] = to_builtins(self)
        for name in ("loras", *DERIVED):
            found.pop(name, None)
        low, high = self.guide_scale
        found["guide_scale"] = (low,) if low == high else (low, high)
        found |= {NAG_OPTIONS[name]: value for name, value in found.pop("nag", {}).items()}
        return {name: value for name, value in found.items() if value is not None}

    def loras_for(self, expert: str) -> list[Lora]:
        """Return the LoRAs of an expert, in the order in which they are added."""
        return [lora for lora in self.loras if lora.expert in (None, expert)]


class ModelReference(Document, frozen=True, kw_only=True):
    """The model of a run: its key, and where it was last used."""

    key: Hash | None
    directory: Text
    variant: Text = ""
    dtype: Text = ""
    experts: dict[str, Hash] = field(default_factory=dict)


class Video(Document, frozen=True, kw_only=True):
    """A video that was written of a run: its path, the entry of its frames, frames per second."""

    path: Text
    frames: Hash
    fps: Finite


class Run(Document, frozen=True, kw_only=True):
    """One run. Its key follows from `start`, `inputs`, `settings`, `dtype` and the model.

    `inputs` are keys of entries by role, such as its text. `start` is the noise, or the step that
    the run branches from. `steps` are the keys of all its steps, computed or not; the first has
    number `first`. `loras` are the paths of LoRA files by content hash.
    """

    schema: Literal[1] = 1
    key: Hash
    start: Noise | Hash
    first: Count = 0
    steps: Annotated[list[Hash], Meta(min_length=1, max_length=100_000)]
    inputs: dict[str, Hash]
    settings: Settings
    dtype: Text
    model: ModelReference
    seed: Seed | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    fps: Finite | None = None
    loras: dict[Hash, Text] = field(default_factory=dict)
    videos: list[Video] = field(default_factory=list)
    created: Text = ""

    @property
    def last(self) -> str:
        """Key of the last step."""
        return self.steps[-1]

    @property
    def step_count(self) -> int:
        """The number of steps from the start to the last one, with those before a branch."""
        return self.first + len(self.steps)

    def number(self, step: str) -> int:
        """Number of one of its steps, from 0."""
        return self.first + self.steps.index(step)


def with_key(run: Run) -> Run:
    """Return a run with its key, the hash of its contents."""
    identity = {
        name: to_builtins(getattr(run, name)) for name in ("start", "inputs", "settings", "dtype")
    }
    model = {"key": run.model.key, "experts": run.model.experts}
    key = key_of({"schema": 1, "run": identity, "model": model})
    return structs.replace(run, key=key)


Kind = TypeVar("Kind", Run, ModelReference)


def parse(data: bytes, kind: type[Kind], key: str) -> Kind:
    """Return the record in the bytes of a file. Raises DocumentError if it is invalid, or not the
    one of this key.
    """
    record = decode(data, kind)
    if record.key != key or (isinstance(record, Run) and with_key(record).key != key):
        raise DocumentError("it does not have the key of what it says")
    return record


@dataclass(frozen=True)
class Records(Generic[Kind]):
    """Mutable records of one kind in the cache at `root`, each a JSON file named by its key. The
    modification time of a file is its last use.
    """

    root: Path
    folder: str
    kind: type[Kind]

    def path(self, key: str) -> Path:
        """Return the path of a record, which may not exist."""
        return self.root / self.folder / f"{key}.json"

    def list_keys(self) -> list[str]:
        """Return the keys of all records, valid or not."""
        folder = self.root / self.folder
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 (ten thousands)
        keys = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(key for key in keys if is_key(key))

    def get(self, key: str) -> Kind:
        """Read one record. Raises StoreError if it is missing or invalid."""
        try:
            return parse(read_regular(self.path(key)), self.kind, key)
        except (OSError, DocumentError) as error:
            raise StoreError(f"{self.path(key)} cannot be read ({first_line(error)})") from error

    def all(self, containing: str = "") -> list[Kind]:
        """Return all valid records whose text contains `containing`, the latest used first;
        `wanpipe cache verify` reports invalid ones.
        """
        found = []
        for key in self.list_keys():
            with suppress(StoreError, DocumentError, FileNotFoundError):
                path = self.path(key)
                if not containing or containing.encode() in read_regular(path):
                    found.append((path.stat().st_mtime, key, self.get(key)))
        return [record for _, _, record in sorted(found, key=lambda one: one[:2], reverse=True)]

    def save(self, record: Kind) -> None:
        """Write a record, or only its time of use if nothing else changed."""
        assert record.key is not None
        path = self.path(record.key)
        if path.is_file():
            try:
                if self.get(record.key) == record:
                    os.utime(path)
                    return
            except StoreError:
                pass  # an invalid record is written again
        atomic_write(path, encode(record))


class Runs(Records[Run]):
    """The runs of the cache at `root`; with its `index`, those of wanpipe 0.1.0 too, whose settings
    are in their steps.
    """

    def __init__(self, root: Path, index: Index | None = None) -> None:
        super().__init__(root, RUNS, Run)
        self.index = index

    def recorded(self, containing: str = "") -> list[Run]:
        """Return the runs that have a record, the latest used first."""
        return super().all(containing)

    def all(self, containing: str = "") -> list[Run]:
        """Return every run, the latest used first, those without a record last."""
        runs = self.recorded()
        rows = self.index.read() if self.index else {}
        return runs + legacy_runs(rows, runs, self.root)

    def of(self, step: str) -> list[Run]:
        """Return the runs that contain a step, the latest used first."""
        runs = self.recorded(containing=step)
        return [run for run in runs or self.all() if step in run.steps]

    def latest(self, step: str) -> Run | None:
        """Return the latest used run that contains a step, None if there is none."""
        return next(iter(self.of(step)), None)

    def last(self, run: Run) -> Path:
        """Return the path of the last step of a run that exists. Raises StoreError if none does."""
        for key in reversed(run.steps):
            path = self.root / "denoise" / key
            if path.is_dir():
                return path
        raise StoreError(f"run {run.key[:8]} has no step in {self.root}; start it again")

    def with_prefix(self, prefix: str) -> list[str]:
        """Return the keys that start with `prefix`."""
        if is_key(prefix):
            return [prefix] if self.path(prefix).is_file() else []
        return (
            [key for key in self.list_keys() if key.startswith(prefix)] if is_prefix(prefix) else []
        )

    def save(self, record: Run) -> None:
        """Write a record, or only its time of use. Keeps its creation time and videos."""
        with suppress(StoreError):
            old = self.get(record.key)
            record = structs.replace(record, created=old.created, videos=old.videos)
        super().save(record)

    def add_video(self, key: str, video: Video) -> None:
        """Add a video to a run; it replaces one of the same path."""
        run = self.get(key)
        if run.videos[-1:] != [video]:
            others = [one for one in run.videos if one.path != video.path]
            atomic_write(self.path(key), encode(structs.replace(run, videos=[*others, video])))


def now() -> str:
    """Return the current time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def legacy_runs(rows: Mapping[str, Summary], known: Iterable[Run], root: Path) -> list[Run]:
    """Return the runs of wanpipe 0.1.0, whose settings are in their steps and which have no record;
    the latest first.
    """
    recorded = {step for run in known for step in run.steps}
    steps = {row.key: row for row in rows.values() if row.stage == "denoise" and row.legacy}
    left = {key: row for key, row in steps.items() if key not in recorded}
    followed = {row.parent for row in left.values()}
    taken: set[str] = set()
    found = []
    for end in sorted(left.values(), key=lambda row: (row.key in followed, -(row.step or 0))):
        if end.key in taken:
            continue
        chain = [end]
        while (row := left.get(chain[-1].parent or "")) is not None:
            if row.key in taken or (row.legacy, row.inputs) != (end.legacy, end.inputs):
                break
            if row.step != (chain[-1].step or 0) - 1:  # a damaged index file could make a cycle
                break
            chain.append(row)
        taken |= {row.key for row in chain}
        try:
            found.append((end.time, legacy_run(chain[::-1], rows, root)))
        except (StoreError, DocumentError):
            continue  # reading the step itself reports it
    return [run for _, run in sorted(found, key=lambda one: (one[0], one[1].key), reverse=True)]


def legacy_run(chain: Sequence[Summary], rows: Mapping[str, Summary], root: Path) -> Run:
    """Return the run of consecutive steps of the same settings. Raises StoreError or
    DocumentError.
    """
    end, first = chain[-1], chain[0]
    record = read_record(root / first.id)
    material = record.material
    assert isinstance(material, Step)
    assert end.legacy is not None
    text = rows.get(f"encode-text/{end.inputs.get('text')}")
    keys = [row.key for row in chain]
    frames = (row for row in rows.values() if row.stage == "decode" and row.legacy)
    rates = [row.legacy.fps for row in frames if row.legacy and row.inputs.get("step") in keys]
    noise = material.noise
    run = convert(
        {
            "key": "0" * 32,
            "start": first.parent if isinstance(noise, UnsetType) else to_builtins(noise),
            "first": first.step or 0,
            "steps": keys,
            "inputs": end.inputs,
            "settings": end.legacy.settings,
            "dtype": material.dtype,
            "model": {"key": None, "directory": end.legacy.model or ""},
            "seed": end.legacy.seed,
            "prompt": text.prompt if text else None,
            "loras": end.legacy.lora_files,
            "fps": rates[0] if rates else None,
            "created": end.time,
        },
        Run,
    )
    return with_key(run)
