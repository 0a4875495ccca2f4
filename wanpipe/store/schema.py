"""Declares every stage once: its material, its arrays, its inputs, and how its entries are
described and collected.

Keys, records, explanations, listings, gc and import all read these declarations. To add a stage,
add one `Material` to `materials`, one `StageSpec` here, and its module in `stages/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from wanpipe.runtime.documents import Count, Document, FileName, Finite, Hash, Seed, Text
from wanpipe.store.materials import (
    AnyMaterial,
    Conversion,
    Decoding,
    ImageEncoding,
    Material,
    Step,
    TextEmbedding,
    VideoEncoding,
)

Json = Any  # of notes, which decide nothing
# Standard deviations in a channel. The lowest of the demo's videos, in 2 to 20 steps, are 0.6 in a
# latent and 16 levels in a frame; a dot 20 pixels wide on white at 832x480 has 7. Rounding to
# bfloat16 gives 0.004, and noise of one level 0.8.
LEAST_IN_LATENT, LEAST_IN_FRAME = 0.1, 2.0


class Statistics(Document, frozen=True, kw_only=True):
    """Statistics of a published array."""

    min: Finite
    max: Finite
    mean: Finite
    std: Finite


class Made(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an entry was made: notes for people, which decide nothing, so unknown ones are ignored.

    `bits_by` names what changes bits but is in no key by policy. `concerns` say what looks wrong in
    its arrays. The fields below it are those of
    wanpipe 0.1.0, which had no records of runs; only `runs.legacy_runs` reads them.
    """

    time: Text
    seconds: Finite = 0.0
    wanpipe: Text = ""
    mlx: Text = ""
    device: Text = ""
    devices: Count = 1
    peak_bytes: Count = 0
    flops: Finite | None = None
    network_ran: bool | None = None
    model: Text | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    image: Text | None = None
    last_image: Text | None = None
    video: Text | None = None
    mask: Text | None = None
    references: list[Text] | None = None
    fit: Text | None = None
    checkpoint: Text | None = None
    from_model: Text | None = None
    statistics: dict[str, Statistics] = {}
    bits_by: dict[str, str | int | bool | None] | None = None
    concerns: list[Text] = []
    settings: dict[str, Json] | None = None
    seed: Seed | None = None
    lora_files: dict[Hash, Text] | None = None
    fps: Finite | None = None

    @property
    def files(self) -> str:
        """The names of the files that were encoded: a.png, or a.png to b.png, or a.mp4 with mask
        m.png and reference r.png; a last image alone is "to b.png".
        """
        last = None if self.last_image is None else f"to {self.last_image}"
        extras = [] if self.mask is None else [f"mask {self.mask}"]
        extras += [f"reference {name}" for name in self.references or ()]
        with_extras = "with " * (self.video is not None) + " and ".join(extras) if extras else None
        names = (self.image, last, self.video, with_extras)
        return " ".join(name for name in names if name is not None)


ArrayName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}(/[a-z][a-z0-9_]{0,31})?$")]


class Record(Document, frozen=True, kw_only=True):
    """The record of an entry: `attrs["wanpipe"]` of its Zarr group."""

    schema: Literal[1]
    stage: Text
    key: Hash
    material: AnyMaterial
    inputs: dict[str, Hash]
    digest: dict[ArrayName, Hash]
    files: dict[FileName, Hash]
    made: Made
    seal: Hash
    step: Annotated[int, Meta(ge=0, lt=100_000)] | UnsetType = UNSET
    parent: Hash | UnsetType | None = UNSET
    references: Count | UnsetType = UNSET  # of a context of VACE

    def __post_init__(self) -> None:
        if self.stage not in STAGES or not isinstance(self.material, STAGES[self.stage].material):
            raise ValueError("the material is of another stage")


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """An array of a stage: `axes` names its dimensions; `rows` are those of a chunk, None: all.

    With `varies`, one that is constant in every channel is refused. One whose standard deviation is
    below `least` in every channel, of frames in every frame, is a concern.
    """

    axes: str
    dtype: Literal["float32", "uint8"] = "float32"
    rows: int | None = None
    required: bool = True
    varies: bool = False
    least: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: what its entries contain and how other modules treat them.

    `role` is the role of its entries as inputs; `inputs` are roles; `arrays` are by name, where
    "solver/*" matches any below solver/; gc removes entries of a lower `gc_rank` first; `describe`
    summarizes a record.
    """

    name: str
    material: type[Material]
    role: str
    gc_rank: int
    arrays: Mapping[str, ArraySpec] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    describe: Callable[[Any], str] = lambda record: ""
    exportable: bool = True

    def array(self, name: str) -> ArraySpec:
        """Return the specification of an array. Raises KeyError for an unknown name."""
        return self.arrays[name if name in self.arrays else f"{name.split('/')[0]}/*"]


def field_metas(kind: type[Material]) -> dict[str, Meta]:
    """Return the Meta of every field of a material."""
    hints = get_type_hints(kind, include_extras=True)
    own = [item.name for item in msgspec.structs.fields(kind)]
    found = {}
    for name in sorted(own, key=("schema", "algorithm").__contains__):
        titled = [meta for meta in getattr(hints[name], "__metadata__", ()) if meta.title]
        found[name] = titled[-1] if titled else Meta(title=name)
    return found


STAGES = {
    stage.name: stage
    for stage in (
        StageSpec(
            name="convert",
            material=Conversion,
            role="model",
            gc_rank=5,
            describe=lambda record: f"{record.material.variant}, {record.material.dtype}",
            exportable=False,
        ),
        StageSpec(
            name="encode-text",
            material=TextEmbedding,
            role="text",
            gc_rank=4,
            arrays={"prompt": ArraySpec(axes="LD"), "negative": ArraySpec(axes="LD")},
        ),
        StageSpec(
            name="encode-image",
            material=ImageEncoding,
            role="image",
            gc_rank=3,
            arrays={
                "condition": ArraySpec(axes="CFHW", required=False),
                "clip": ArraySpec(axes="LD", required=False),
                "latent": ArraySpec(axes="CFHW", required=False),
            },
            describe=lambda record: (
                f"{record.made.files}, {record.material.width}x{record.material.height}"
            ),
        ),
        StageSpec(
            name="encode-video",
            material=VideoEncoding,
            role="video",
            gc_rank=3,
            arrays={
                "context": ArraySpec(axes="CFHW", required=False),
                "latent": ArraySpec(axes="CFHW", required=False),
                "mask": ArraySpec(axes="CFHW", required=False),
                "condition": ArraySpec(axes="CFHW", required=False),
                "clip": ArraySpec(axes="LD", required=False),
            },
            describe=lambda record: (
                f"{record.made.files or record.material.mode}, "
                f"{record.material.width}x{record.material.height}"
            ),
        ),
        StageSpec(
            name="denoise",
            material=Step,
            role="step",
            gc_rank=2,
            arrays={
                "latent": ArraySpec(axes="CFHW", varies=True),
                "x0": ArraySpec(axes="CFHW", varies=True, least=LEAST_IN_LATENT),
                "solver/*": ArraySpec(axes="CFHW", required=False),
            },
            inputs=("text", "image", "video"),
            describe=lambda record: record.material.guidance,
        ),
        StageSpec(
            name="decode",
            material=Decoding,
            role="frames",
            gc_rank=0,
            arrays={
                "frames": ArraySpec(
                    axes="TYXC", dtype="uint8", rows=4, varies=True, least=LEAST_IN_FRAME
                )
            },
            inputs=("step",),
            describe=lambda record: "" if record.material.decoder is UNSET else "tiny VAE",
        ),
    )
}
ROLES = {stage.role: stage.name for stage in STAGES.values()}
INTERIOR_RANK = 1  # gc_rank of steps that other steps follow


def check_arrays(stage: StageSpec, names: set[str]) -> str:
    """Return the error in the names of an entry's arrays, "" if they fit the stage."""
    unknown = sorted(name for name in names if not _is_declared(stage, name))
    missing = sorted(
        name for name, one in stage.arrays.items() if one.required and name not in names
    )
    if unknown or missing or (stage.arrays and not names):
        return f"{stage.name} has unknown arrays {unknown} and lacks {missing}"
    return ""


def _is_declared(stage: StageSpec, name: str) -> bool:
    try:
        stage.array(name)
    except KeyError:
        return False
    return True


def check_references(record: Record) -> str:
    """Return how a record contradicts its material, "" if it does not."""
    stage, material = STAGES[record.stage], record.material
    wrong = set(record.inputs) - set(stage.inputs)
    needed = {role for role in stage.inputs if getattr(material, role) not in (None, UNSET)}
    if missing := needed - set(record.inputs):
        return f"inputs {sorted(missing)} are missing"
    for role in set(record.inputs) - wrong:
        # at guidance 1 without NAG, a step's text is not the key of the whole text entry
        skipped = role == "text" and isinstance(material, Step) and not material.uses_negative
        if not skipped and getattr(material, role) != record.inputs[role]:
            wrong.add(role)
    if wrong:
        return f"inputs {sorted(wrong)} are not those of the material"
    if isinstance(material, Step):
        parent = None if material.parent is UNSET else material.parent
        if record.step is UNSET or record.parent != parent or (record.step == 0) != (not parent):
            return "number and parent of the step are not those of the material"
    elif record.step is not UNSET or record.parent is not UNSET:
        return "only steps have a number and a parent"
    count: int | UnsetType = UNSET
    if isinstance(material, VideoEncoding) and material.mode == "vace":
        count = len(material.references)
    if record.references != count:
        return "the number of references is not that of the material"
    return check_arrays(stage, set(record.digest))
