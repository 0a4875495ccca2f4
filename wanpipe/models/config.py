"""Model configs: dimensions of the networks, and config.json of a converted model.

Each document validates its own values and how they agree. Reads no file but config.json, and loads
no array library.
"""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, field

from wanpipe.errors import CheckpointError
from wanpipe.models import geometry
from wanpipe.models.variants import VARIANTS, Defaults, Task, Version
from wanpipe.runtime.documents import (
    Count,
    Document,
    DocumentError,
    FileName,
    Hash,
    decode,
    read_regular,
)

SCHEMA: Literal[1] = 1
Patch = tuple[Literal[1], Literal[2], Literal[2]]
HIGH, LOW = "high_noise_model", "low_noise_model"
EXPERTS = ("model", LOW, HIGH)
PATCH: Patch = (1, 2, 2)  # latent frames, rows and columns per token
IMAGE_SIDE: Literal[224] = 224  # pixels per side of an image for CLIP
IMAGE_TOKENS = 257  # that CLIP makes of an image
CHANNELS = {"2.1": 16, "2.2": 48}  # latent channels of each VAE
# Architecture of both VAEs: `dim_mult` and `temperal_downsample` of the official code
DIM_MULT = (1, 2, 4, 4)  # channels of each level, in units of the base width
TEMPORAL_DOWNSAMPLE = (False, True, True)  # whether the next level halves the frame rate
TINY_BLOCKS, TINY_GROWTH = 3, (1, 2, 2)  # of each level of TAEHV: blocks, and frames made of one

LastImage = Literal["no", "optional", "required"]
Dtype = Literal["bfloat16", "float16", "float32"]
Size = Annotated[int, Meta(gt=0, le=1 << 20)]
Layers = Annotated[int, Meta(gt=0, le=256)]
Layer = Annotated[int, Meta(ge=0, lt=256)]


class DiTConfig(Document, frozen=True, kw_only=True):
    """Dimensions of one expert. `clip_dim` is the width of CLIP tokens (Wan2.1 I2V only).

    FLF2V has `clip_positions`: one learned position for each CLIP token of its two images. VACE has
    `vace_layers`, after each of which one VACE block runs, and `vace_in_dim`, the channels of its
    context.
    """

    dim: Size
    ffn_dim: Size
    heads: Size
    layers: Layers
    in_dim: Size
    out_dim: Size
    freq_dim: Size = 256
    text_dim: Size = 4096
    text_len: Size = 512
    eps: Annotated[float, Meta(gt=0, le=1)] = 1e-6
    clip_dim: Size | None = None
    patch: Patch = PATCH
    clip_positions: Literal[514] | UnsetType = UNSET  # of `IMAGE_TOKENS` for each image
    vace_layers: tuple[Layer, ...] | UnsetType = UNSET
    vace_in_dim: Size | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(
                f"dim {self.dim} must split into heads of even width, got {self.heads} heads"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if (self.vace_layers is UNSET) != (self.vace_in_dim is UNSET):
            raise ValueError("vace_layers and vace_in_dim must be given together")
        if self.vace_layers is not UNSET:
            self._check_vace_layers(self.vace_layers)

    def _check_vace_layers(self, layers: tuple[int, ...]) -> None:
        """Raise ValueError for layers that no VACE block can follow in order.

        Officially they need not rise, but all that were published do.
        """
        rising = all(one < other for one, other in pairwise(layers))
        if layers[:1] != (0,) or not rising or layers[-1] >= self.layers:
            raise ValueError(
                f"vace_layers must rise from 0 and stay below {self.layers} layers, got "
                f"{list(layers)}"
            )

    @property
    def vace_count(self) -> int:
        """How many VACE blocks there are."""
        return 0 if self.vace_layers is UNSET else len(self.vace_layers)

    @property
    def block_names(self) -> list[str]:
        """Names of all blocks in the order in which they run: VACE's after its main block."""
        numbers = (
            {} if self.vace_layers is UNSET else {at: n for n, at in enumerate(self.vace_layers)}
        )
        names = []
        for layer in range(self.layers):
            names.append(f"blocks.{layer}")
            if layer in numbers:
                names.append(f"vace_blocks.{numbers[layer]}")
        return names

    @property
    def clip_tokens(self) -> int:
        """CLIP tokens that cross-attention attends to: of no image, one, or two (FLF2V)."""
        usual = 0 if self.clip_dim is None else IMAGE_TOKENS
        return usual if self.clip_positions is UNSET else self.clip_positions


class T5Config(Document, frozen=True, kw_only=True):
    """Dimensions of the umT5 encoder."""

    vocab: Size
    dim: Size
    attention_dim: Size
    ffn_dim: Size
    heads: Size
    layers: Layers
    buckets: Annotated[int, Meta(ge=4, le=256)] = 32

    def __post_init__(self) -> None:
        if self.attention_dim % self.heads:
            raise ValueError(
                f"attention_dim {self.attention_dim} must split into heads, got {self.heads} heads"
            )


class CLIPConfig(Document, frozen=True, kw_only=True):
    """Dimensions of CLIP's vision tower (officially ViT-H/14). Its last block is never used."""

    dim: Size
    ffn_dim: Size
    heads: Size
    layers: Layers
    patch: Annotated[int, Meta(gt=0, le=IMAGE_SIDE)] = 14
    size: Literal[224] = IMAGE_SIDE

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must split into heads, got {self.heads} heads")
        if self.size % self.patch:
            raise ValueError(f"patch must divide {self.size}, got {self.patch}")


class VAEConfig(Document, frozen=True, kw_only=True):
    """Dimensions of the causal VAE. `version` selects the Wan2.1 or the Wan2.2 architecture."""

    version: Version
    encoder_dim: Size
    decoder_dim: Size
    z_dim: Size

    def __post_init__(self) -> None:
        if self.z_dim != CHANNELS[self.version]:
            raise ValueError(
                f"z_dim must be {CHANNELS[self.version]} in version {self.version}, "
                f"got {self.z_dim}"
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent position along frames, rows and columns."""
        return (4, 8, 8) if self.version == "2.1" else (4, 16, 16)

    @property
    def patch_size(self) -> int:
        """Pixels along a side of one input position of the encoder (`patchify`)."""
        return self.stride[1] // 8


class TinyVAEConfig(Document, frozen=True, kw_only=True):
    """Dimensions of the decoder of TAEHV: the channels of its three levels, then of its output.

    An output position has `patch_size` pixels along each side.
    """

    z_dim: Size
    widths: tuple[Size, Size, Size, Size]
    patch_size: Size

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent position along frames, rows and columns."""
        return (4, 8 * self.patch_size, 8 * self.patch_size)


class Quantization(Document, frozen=True, kw_only=True):
    """Affine quantization of the blocks' matrices: one scale and bias per `group_size` weights."""

    bits: Annotated[int, Meta(ge=4, le=8, multiple_of=4)]
    group_size: Annotated[int, Meta(ge=32, le=128, multiple_of=32)]


ConfigT = TypeVar("ConfigT")  # the dimensions of a network, or None


class Component(Document, Generic[ConfigT], frozen=True, kw_only=True):
    """One file of a model: its content hash (xxh3_128) and size.

    For a network, also the number of parameters and the dimensions.
    """

    file: FileName
    hash: Hash
    bytes: Count
    parameters: Count = 0
    config: ConfigT


class Components(Document, frozen=True, kw_only=True):
    """The files of a model, in the order of config.json."""

    tokenizer: Component[None]
    t5_encoder: Component[T5Config]
    vae: Component[VAEConfig]
    vae_encoder: Component[VAEConfig] | UnsetType = UNSET
    clip: Component[CLIPConfig] | UnsetType = UNSET
    model: Component[DiTConfig] | UnsetType = UNSET
    low_noise_model: Component[DiTConfig] | UnsetType = UNSET
    high_noise_model: Component[DiTConfig] | UnsetType = UNSET


class ModelConfig(Document, frozen=True, kw_only=True):
    """A model's config.json. `key` identifies the source and the options of the conversion."""

    schema: Literal[1]  # SCHEMA
    key: Hash
    variant: str
    dtype: Dtype
    quantization: Quantization | None
    defaults: Defaults
    files: Components = field(name="components")

    def __post_init__(self) -> None:
        for contradiction in self.contradictions():
            raise ValueError(contradiction)

    def contradictions(self) -> Iterator[str]:
        """Describe each contradiction in one line."""
        if self.variant not in VARIANTS:
            yield f"variant must be one of {', '.join(VARIANTS)}, got {self.variant}"
            return
        variant, files = VARIANTS[self.variant], self.files
        for name, component in self.components.items():
            if component.file != (expected := component_file(name)):
                yield f"the file of {name} must be {expected}, got {component.file}"
                return
        experts = EXPERTS[:1] if variant.defaults.boundary is None else EXPERTS[1:]
        if self.experts != experts:
            found = " and ".join(self.experts) or "none"
            yield f"{self.variant} must have {' and '.join(experts)}, got {found}"
            return
        if len(experts) == 2 and self.defaults.boundary is None:
            yield f"{self.variant} must have a boundary, got null"
        if any(self.components[name].config != self.dit for name in experts):
            yield "low_noise_model and high_noise_model must have the same dimensions"
        if self.task != "t2v" and files.vae_encoder is UNSET:
            yield f"{self.variant} must have a vae_encoder, got none"
        if files.vae_encoder is not UNSET and files.vae_encoder.config != self.vae:
            yield "vae and vae_encoder must have the same dimensions"
        version = "2.2" if self.task == "ti2v" else "2.1"
        if self.vae.version != version:
            yield f"{self.variant} must have the VAE of Wan{version}, got Wan{self.vae.version}"
        clip = None if files.clip is UNSET else files.clip.config.dim
        in_dim = condition_channels(self.vae.z_dim) if self.task == "i2v" else 0
        pairs: tuple[tuple[str, int | None, int | None], ...] = (
            ("out_dim", self.dit.out_dim, self.vae.z_dim),
            ("in_dim", self.dit.in_dim, in_dim + self.vae.z_dim),
            ("text_dim", self.dit.text_dim, self.t5.dim),
            ("clip_dim", self.dit.clip_dim, clip if self.task == "i2v" else None),
        )
        for dimension, ours, theirs in pairs:
            if ours != theirs:
                yield f"{dimension} must be {theirs} to match the other components, got {ours}"
        context = context_channels(self.vae.z_dim) if self.task == "vace" else UNSET
        if self.dit.vace_in_dim != context:
            wanted = "absent" if context is UNSET else context
            given = "none" if self.dit.vace_in_dim is UNSET else self.dit.vace_in_dim
            yield f"vace_in_dim must be {wanted} in {self.variant}, got {given}"
        if (self.dit.clip_positions is UNSET) == (variant.model_type == "flf2v"):
            yield f"clip_positions must be in FLF2V and in no other model, got {self.variant}"
        if self.quantization is not None and self.quantization.group_size == 96:
            yield "group_size must be 32, 64 or 128, got 96"

    @property
    def components(self) -> dict[str, Component[Any]]:
        """The components of this model by name."""
        every = {name: getattr(self.files, name) for name in Components.__struct_fields__}
        return {name: component for name, component in every.items() if component is not UNSET}

    @property
    def task(self) -> Task:
        """The input of the model: text (t2v), an image and text (i2v), either (ti2v), or text and
        VACE's context (vace).
        """
        return VARIANTS[self.variant].task

    @property
    def last_image(self) -> LastImage:
        """Whether the model takes a last image; those without CLIP do with ordinary weights."""
        if self.dit.clip_positions is not UNSET:
            return "required"
        return "optional" if self.task == "i2v" and self.dit.clip_dim is None else "no"

    @property
    def experts(self) -> tuple[str, ...]:
        """Component names of the transformers: ("model",), or the low- and high-noise experts."""
        return tuple(name for name in EXPERTS if getattr(self.files, name) is not UNSET)

    @property
    def dit(self) -> DiTConfig:
        """Dimensions of the experts, which are the same for both."""
        config: DiTConfig = self.components[self.experts[0]].config
        return config

    @property
    def t5(self) -> T5Config:
        """Dimensions of the text encoder."""
        return self.files.t5_encoder.config

    @property
    def vae(self) -> VAEConfig:
        """Dimensions of the VAE."""
        return self.files.vae.config

    @property
    def side_multiple(self) -> int:
        """The number that width and height must be multiples of: 16 or 32 pixels."""
        return geometry.side_multiple(self.vae.stride, self.dit.patch)


def component_file(name: str) -> str:
    """Return the name of a component's file."""
    return "tokenizer.json" if name == "tokenizer" else f"{name}.safetensors"


def condition_channels(z_dim: int) -> int:
    """Return the channels appended to the latent in image-to-video: mask (4) and image latent."""
    return 4 + z_dim


def context_channels(z_dim: int) -> int:
    """Return the channels of VACE's context: two latents, and a mask of 8x8 pixels."""
    return 2 * z_dim + 64


class Header(Struct):
    """The fields that identify the config.json of a model, and its schema."""

    schema: Any = None
    components: Any = None


def read_model_config(directory: Path) -> ModelConfig:
    """Read `directory`/config.json.

    Raises CheckpointError if it is missing, invalid, or has another schema.
    """
    path = directory / "config.json"
    try:
        data = read_regular(path)
        header = decode(data, Header)
        if header.components is not None and header.schema == SCHEMA:
            return decode(data, ModelConfig)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no model at {directory}: config.json is missing; make one with `wanpipe convert`"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise CheckpointError(
            f"{path} is not a valid model config: {error}; convert the checkpoint again"
        ) from error
    if header.components is None:
        raise CheckpointError(
            f"{directory} is not a converted model; convert the checkpoint with `wanpipe convert "
            f"--checkpoint-dir {shlex.quote(str(directory))}`"
        )
    raise CheckpointError(
        f"{path} has schema {ascii(header.schema)[:40]}, but this wanpipe reads {SCHEMA}; "
        "convert the checkpoint again"
    )
