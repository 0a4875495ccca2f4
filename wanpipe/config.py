"""What a model is: dimensions of its networks, defaults of its family, and the config.json that
names its components.

Knows nothing of files but config.json, and loads no array library. Unknown keys are errors, never
ignored.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from wanpipe import geometry
from wanpipe.errors import CheckpointError

SCHEMA = 1
Task = Literal["t2v", "i2v", "ti2v"]
EXPERTS = ("model", "low_noise_model", "high_noise_model")


class Strict:
    """Mixin of dataclasses that are read from JSON: every key must be a field, every field without
    default a key.
    """

    @classmethod
    def from_json(cls, data: Any, subject: str) -> Self:
        """Build from a decoded JSON object. Raises CheckpointError that lists unknown and missing
        keys.
        """
        if not isinstance(data, dict):
            raise CheckpointError(f"{subject} must be a JSON object, got {type(data).__name__}")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        missing = [
            name
            for name, field in fields.items()
            if name not in data and field.default is dataclasses.MISSING
        ]
        unknown = sorted(set(data) - set(fields))
        if missing or unknown:
            raise CheckpointError(f"{subject} has unknown keys {unknown} and lacks keys {missing}")
        values = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The plain data that `from_json` reads again."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]


LONG = 1e12  # operations of a product: 1.4 ms of an H100


@dataclass(frozen=True, kw_only=True)
class DiTConfig(Strict):
    """Dimensions of one expert. `clip_dim` is the width of CLIP's tokens (Wan2.1 I2V only)."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_dim: int
    out_dim: int
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    clip_dim: int | None = None
    patch: tuple[int, int, int] = (1, 2, 2)

    @staticmethod
    def portion(tokens: int) -> int:
        """How many of so many tokens feed forward at a time: a quarter, where that fills a GPU."""
        return -(-tokens // 4) if tokens >= 8192 else tokens

    def ahead(self, tokens: int) -> int:
        """How many stretches of work are begun ahead with so many tokens: one, where a product
        takes longer than a host that has slept takes to wake and to begin what follows.
        """
        return 1 if 2 * tokens * self.dim**2 > LONG else 3


@dataclass(frozen=True, kw_only=True)
class T5Config(Strict):
    """Dimensions of the umT5 encoder."""

    vocab: int
    dim: int
    attention_dim: int
    ffn_dim: int
    heads: int
    layers: int
    buckets: int = 32


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(Strict):
    """Dimensions of CLIP's vision tower (ViT-H/14 officially); its last block is never used."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    patch: int = 14
    size: int = 224


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Strict):
    """Dimensions of the causal VAE; `version` picks the Wan2.1 or the Wan2.2 architecture."""

    version: Literal["2.1", "2.2"]
    encoder_dim: int
    decoder_dim: int
    z_dim: int

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent along time, rows and columns."""
        return (4, 8, 8) if self.version == "2.1" else (4, 16, 16)


@dataclass(frozen=True, kw_only=True)
class Defaults(Strict):
    """What a run of this model uses where the user says nothing. `guide_scale` is (low noise, high
    noise).
    """

    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guide_scale: tuple[float, float]
    shift: float
    negative_prompt: str
    boundary: float | None = None  # fraction of 1000 from which on the high-noise expert acts


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of the Wan family: how it is called, what it takes, its defaults as the official
    configs have them.
    """

    name: str
    version: Literal["2.1", "2.2"]
    task: Task
    defaults: Defaults


NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def _variant(
    name: str,
    size: tuple[int, int],
    steps: int,
    guide: float | tuple[float, float],
    shift: float,
    **more: Any,
) -> Variant:
    _, task, *_ = name.split("-")
    low, high = guide if isinstance(guide, tuple) else (guide, guide)
    values = {"num_frames": 81, "fps": 16, "negative_prompt": NEGATIVE, **more}
    defaults = Defaults(
        width=size[0], height=size[1], steps=steps, guide_scale=(low, high), shift=shift, **values
    )
    return Variant(name=name, version=name[3:6], task=task, defaults=defaults)  # type: ignore[arg-type]


SHAKY = "镜头晃动，"  # Wan2.1 I2V puts it before the negative prompt
# wan/configs of the official Wan2.1 and Wan2.2 repositories; TI2V-5B: 40 steps where the official
# config says 50
VARIANTS = {
    variant.name: variant
    for variant in (
        _variant("wan2.1-t2v-1.3b", (832, 480), 50, 5.0, 5.0),
        _variant("wan2.1-t2v-14b", (1280, 720), 50, 5.0, 5.0),
        _variant("wan2.1-i2v-14b-480p", (832, 480), 40, 5.0, 3.0, negative_prompt=SHAKY + NEGATIVE),
        _variant(
            "wan2.1-i2v-14b-720p", (1280, 720), 40, 5.0, 5.0, negative_prompt=SHAKY + NEGATIVE
        ),
        _variant("wan2.2-t2v-a14b", (1280, 720), 40, (3.0, 4.0), 12.0, boundary=0.875),
        _variant("wan2.2-i2v-a14b", (1280, 720), 40, (3.5, 3.5), 5.0, boundary=0.9),
        _variant("wan2.2-ti2v-5b", (1280, 704), 40, 5.0, 5.0, num_frames=121, fps=24),
    )
}


@dataclass(frozen=True, kw_only=True)
class Quantization(Strict):
    """How the matrices of the blocks are stored: affine, `bits` per weight, one scale and bias per
    `group_size`.
    """

    bits: int
    group_size: int


@dataclass(frozen=True, kw_only=True)
class Component(Strict):
    """One file of a model: its content hash (xxh3_128 of the file), size and, for a network, its
    dimensions.
    """

    file: str
    hash: str
    bytes: int
    parameters: int = 0
    config: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Strict):
    """A model's config.json. `key` is the hash of what it was converted from and how."""

    schema: int
    key: str
    variant: str
    dtype: str
    quantization: Quantization | None
    defaults: Defaults
    components: dict[str, Component]

    @property
    def task(self) -> Task:
        """What the model takes: text (t2v), an image and text (i2v), or either (ti2v)."""
        return VARIANTS[self.variant].task

    @property
    def experts(self) -> tuple[str, ...]:
        """Component names of the transformers, ("model",) or the low- and the high-noise expert."""
        return tuple(name for name in EXPERTS if name in self.components)

    @property
    def dit(self) -> DiTConfig:
        """Dimensions of the experts (two experts have the same)."""
        return DiTConfig.from_json(self.components[self.experts[0]].config, "DiT config")

    @property
    def vae(self) -> VAEConfig:
        """Dimensions of the VAE."""
        return VAEConfig.from_json(self.components["vae"].config, "VAE config")

    @property
    def side_multiple(self) -> int:
        """Of what width and height must be multiples: VAE stride times patch, 16 or 32 pixels."""
        return geometry.side_multiple(self.vae.stride, self.dit.patch)


def read_model_config(directory: Path) -> ModelConfig:
    """Read `directory`/config.json. Raises CheckpointError where it is missing, not ours or of
    another schema.
    """
    path = directory / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no model at {directory}: config.json is missing; make one with `wanpipe convert`"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or "components" not in data:
        raise CheckpointError(
            f"{directory} is not a converted model; convert the checkpoint with `wanpipe convert "
            "--checkpoint-dir`"
        )
    if data.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {data.get('schema')}, this wanpipe reads {SCHEMA}; convert again"
        )
    subject = str(path)
    data["defaults"] = Defaults.from_json(data.get("defaults"), f"{subject}: defaults")
    if data.get("quantization") is not None:
        data["quantization"] = Quantization.from_json(
            data["quantization"], f"{subject}: quantization"
        )
    data["components"] = {
        name: Component.from_json(value, f"{subject}: components.{name}")
        for name, value in data["components"].items()
    }
    config = ModelConfig.from_json(data, subject)
    if config.variant not in VARIANTS:
        raise CheckpointError(
            f"{path}: variant must be one of {', '.join(VARIANTS)}, got {config.variant}"
        )
    return config
