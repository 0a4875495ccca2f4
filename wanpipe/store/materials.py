"""Declares the material of every stage: the fields that define its entries, with types, ranges and
labels.

Keys, records and explanations read these declarations. To change what a stage depends on, change
its class here.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from wanpipe.runtime.documents import Count, Document, Finite, Hash, Length, Seed, Text
from wanpipe.sampling.nag import Nag

SCHEMA: Literal[1] = 1  # raised when the format of all entries or materials changes
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], Meta(title="compute dtype")]
Tokens = list[Annotated[int, Meta(ge=0, lt=1 << 31)]]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Material(Document, frozen=True, kw_only=True):
    """The fields that define an entry. The hash of their canonical JSON is its key.

    `title` of a field is its label for people. `extra` may have `same`, its label in a list of what
    two entries have in common, and `grid`, if it follows from the settings of a run.
    """

    schema: Annotated[Literal[1], Meta(title="form of entries")] = SCHEMA
    algorithm: Annotated[int, Meta(ge=1, lt=1 << 31, title="algorithm")] = 1


class Quantized(Document, frozen=True, kw_only=True):
    """Bits per weight and weights per scale of a quantized network."""

    bits: Literal[4, 8]
    group_size: Literal[32, 64, 128]


class QuantizedNetworks(Document, frozen=True, kw_only=True):
    """Which networks of a model are quantized, and how."""

    experts: Quantized | None
    text_encoder: Quantized | None


class Conversion(Material, frozen=True, kw_only=True, tag_field="stage", tag="convert"):
    """A converted model: the content of its source files, and how they are converted."""

    source: Annotated[dict[str, Hash], Meta(title="checkpoint files")]
    variant: Annotated[Text, Meta(title="variant")]
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Meta(title="dtype")]
    quantization: Annotated[QuantizedNetworks | None, Meta(title="quantization")]
    defaults: Annotated[dict[str, Any] | UnsetType, Meta(title="defaults")] = UNSET


class TextEmbedding(Material, frozen=True, kw_only=True, tag_field="stage", tag="encode-text"):
    """The embeddings of a prompt and a negative prompt, by their token ids."""

    prompt: Annotated[Tokens, Meta(title="prompt")]
    negative: Annotated[Tokens, Meta(title="negative prompt")]
    t5: Annotated[Hash, Meta(title="T5")]
    tokenizer: Annotated[Hash, Meta(title="tokenizer")]
    text_len: Annotated[Length, Meta(title="text length")]
    dtype: Dtype


class ImageEncoding(Material, frozen=True, kw_only=True, tag_field="stage", tag="encode-image"):
    """The conditioning of image-to-video, by the pixels after fitting.

    `pixels` is None with a last image alone. The fields of a last image are absent without one.
    """

    pixels: Annotated[Hash | None, Meta(title="picture")]
    clip_pixels: Annotated[Hash | None, Meta(title="picture for CLIP")]
    vae: Annotated[Hash, Meta(title="VAE")]
    clip: Annotated[Hash | None, Meta(title="CLIP")]
    width: Annotated[Length, Meta(title="width")]
    height: Annotated[Length, Meta(title="height")]
    num_frames: Annotated[Length, Meta(title="frames")]
    mode: Annotated[Literal["i2v", "ti2v"], Meta(title="mode")]
    dtype: Dtype
    last_pixels: Annotated[Hash | UnsetType, Meta(title="last picture")] = UNSET
    last_clip_pixels: Annotated[Hash | UnsetType, Meta(title="last picture for CLIP")] = UNSET

    def __post_init__(self) -> None:
        if self.pixels is None and self.last_pixels is UNSET:
            raise ValueError("an image entry is of a first or a last picture, or of both")


class VideoEncoding(Material, frozen=True, kw_only=True, tag_field="stage", tag="encode-video"):
    """What a video, a mask and reference images condition, by the pixels after fitting.

    `mode` is what the model makes of them: the context of VACE, a video to change ("v2v"), or the
    first frames of an image-to-video model ("i2v", "ti2v"), of which `known_frames` are given.
    `width`, `height` and `num_frames` are those of the video to make.
    """

    mode: Annotated[Literal["vace", "v2v", "i2v", "ti2v"], Meta(title="mode")]
    pixels: Annotated[Hash | None, Meta(title="video")]
    mask: Annotated[Hash | None, Meta(title="mask")]
    references: Annotated[list[Hash], Meta(max_length=1000, title="references")]
    clip_pixels: Annotated[Hash | None, Meta(title="picture for CLIP")]
    vae: Annotated[Hash, Meta(title="VAE")]
    clip: Annotated[Hash | None, Meta(title="CLIP")]
    width: Annotated[Length, Meta(title="width")]
    height: Annotated[Length, Meta(title="height")]
    num_frames: Annotated[Length, Meta(title="frames")]
    known_frames: Annotated[Count, Meta(title="known frames")]
    dtype: Dtype


class Noise(Document, frozen=True, kw_only=True):
    """The start noise: drawn by an algorithm from a seed, or given as an array by its digest."""

    algorithm: Text
    shape: Annotated[list[Length], Meta(min_length=1, max_length=8)]
    seed: Seed | UnsetType = UNSET
    digest: Hash | UnsetType = UNSET
    trim_first_frames: Count | UnsetType = UNSET


class StepNoise(Document, frozen=True, kw_only=True):
    """The noise that a step adds: a stream of the run's seed, which no other step uses."""

    algorithm: Text
    seed: Seed
    stream: Annotated[int, Meta(ge=1, lt=100_000)]


class Solver(Document, frozen=True, kw_only=True):
    """The solver of a step and its order."""

    name: Text
    order: Annotated[int, Meta(ge=1, le=9)]


class StepCacheRule(Document, frozen=True, kw_only=True):
    """The rule by which a step may reuse a velocity (`sampling.easy_cache.rule`)."""

    method: Text
    threshold: Fraction
    warm_up: Count
    since: Count


class Step(Material, frozen=True, kw_only=True, tag_field="stage", tag="denoise"):
    """One denoising step: the step before it or the noise, and everything that affects it.

    `text` is the key of the text entry; at guidance 1 without `nag` the key of its material without
    `negative`. `video` is absent where a step does not use it: of a video to change, only the first
    step does, unless a mask keeps a part. `context_scale` is that of VACE. `step_noise` is what a
    solver adds that draws noise at every step.
    """

    text: Annotated[Hash, Meta(title="text", extra={"same": "text"})]
    image: Annotated[Hash | None, Meta(title="image", extra={"same": "image"})]
    noise: Annotated[Noise | UnsetType, Meta(title="noise", extra={"same": "seed"})] = UNSET
    parent: Annotated[Hash | UnsetType, Meta(title="step before")] = UNSET
    expert: Annotated[Hash, Meta(title="transformer", extra={"same": "model"})]
    loras: Annotated[list[tuple[Hash, Finite]], Meta(title="LoRAs")]
    guide_scale: Annotated[Finite, Meta(title="guidance")]
    timestep: Annotated[Finite, Meta(title="timestep", extra={"grid": True})]
    sigma: Annotated[Fraction, Meta(title="noise level", extra={"grid": True})]
    sigma_next: Annotated[Fraction, Meta(title="next noise level", extra={"grid": True})]
    solver: Annotated[Solver, Meta(title="solver", extra={"grid": True})]
    dtype: Dtype
    step_cache: Annotated[StepCacheRule | UnsetType, Meta(title="step cache")] = UNSET
    video: Annotated[Hash | UnsetType, Meta(title="video", extra={"same": "video"})] = UNSET
    context_scale: Annotated[Finite | UnsetType, Meta(title="context scale")] = UNSET
    step_noise: Annotated[StepNoise | UnsetType, Meta(title="noise of the step")] = UNSET
    nag: Annotated[Nag | UnsetType, Meta(title="NAG")] = UNSET

    def __post_init__(self) -> None:
        if (self.noise is UNSET) == (self.parent is UNSET):
            raise ValueError("a step follows another step or the noise, exactly one of the two")

    @property
    def guidance(self) -> str:
        """Guidance, and NAG if there is any, for people."""
        scale = f"guidance {self.guide_scale}"
        return scale if isinstance(self.nag, UnsetType) else f"{scale}, NAG {self.nag.scale:g}"

    @property
    def uses_negative(self) -> bool:
        """Whether the step uses the negative prompt."""
        return self.guide_scale != 1.0 or self.nag is not UNSET


class Tiles(Document, frozen=True, kw_only=True):
    """Tiles of a spatial decode, in pixels."""

    tile: Length
    overlap: Length
    margin: Count


class Decoding(Material, frozen=True, kw_only=True, tag_field="stage", tag="decode"):
    """The frames of a step, decoded by a VAE.

    The latent frames of reference images are dropped before decoding. With a tiny `decoder`, `vae`
    is the content hash of its file.
    """

    step: Annotated[Hash, Meta(title="step")]
    vae: Annotated[Hash, Meta(title="VAE")]
    tiling: Annotated[Tiles | None, Meta(title="tiling")]
    trim_first_frames: Annotated[Count, Meta(title="trimmed frames")]
    dtype: Dtype
    reference_frames: Annotated[Count | UnsetType, Meta(title="reference frames")] = UNSET
    decoder: Annotated[Literal["tiny"] | UnsetType, Meta(title="decoder")] = UNSET


AnyMaterial = Conversion | TextEmbedding | ImageEncoding | VideoEncoding | Step | Decoding
