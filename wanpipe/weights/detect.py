"""Recognises an official checkpoint: which member of the Wan family it is, and its files.

By structure, never by names of models; the name of the directory only tells 480P from 720P. Reads
headers only.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wanpipe.config import (
    EXPERTS,
    VARIANTS,
    CLIPConfig,
    Defaults,
    DiTConfig,
    T5Config,
    VAEConfig,
    Variant,
)
from wanpipe.errors import CheckpointError
from wanpipe.weights.dimensions import read_clip, read_dit, read_json, read_t5, read_vae
from wanpipe.weights.tensors import shown

T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
VAE_FILES = {"2.1": "Wan2.1_VAE.pth", "2.2": "Wan2.2_VAE.pth"}
DIT_STEM = "diffusion_pytorch_model"
EXPERT_FOLDERS = ("low_noise_model", "high_noise_model")
LARGE = 5120  # width of the 14B transformers; below it, Wan2.1 T2V has the defaults of the 1.3B
WIDE_LATENT = 48  # channels of the Wan2.2 VAE


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A recognised checkpoint: `files` of each component, `configs` the config.json in use."""

    directory: Path
    variant: Variant
    dit: DiTConfig
    t5: T5Config
    vae: VAEConfig
    clip: CLIPConfig | None
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    configs: tuple[Path, ...] = ()

    @property
    def experts(self) -> tuple[str, ...]:
        """Component names of the transformers."""
        return tuple(name for name in EXPERTS if name in self.files)

    @property
    def sources(self) -> dict[str, Path]:
        """Every file that a conversion reads, by its path inside the checkpoint."""
        paths = [path for component in self.files.values() for path in component]
        inside = {
            path.relative_to(self.directory).as_posix(): path for path in (*paths, *self.configs)
        }
        return dict(sorted(inside.items()))


def detect(directory: Path, model_version: str = "auto") -> Checkpoint:
    """Recognise the checkpoint in `directory`; `model_version` "2.1" or "2.2" insists on one.

    Raises CheckpointError that names the missing or contradicting file, or says what was found.
    """
    try:
        checkpoint = recognise(directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error
    if model_version not in ("auto", checkpoint.variant.version):
        raise CheckpointError(
            f"--model-version says {model_version}, but {directory} holds "
            f"{checkpoint.variant.name}; leave the option out"
        )
    return checkpoint


def recognise(directory: Path) -> Checkpoint:
    """Recognise a checkpoint of either version."""
    parts = transformers(directory)
    files = {name: shards(part) for name, part in parts.items()}
    configs = tuple(part / "config.json" for part in parts.values())
    settings = [read_json(path) for path in configs]
    kind = settings[0].get("model_type")
    dits = [read_dit(*part) for part in zip(settings, configs, files.values(), strict=True)]
    if dits[0] != dits[-1] or kind != settings[-1].get("model_type"):
        raise CheckpointError(
            f"{configs[0]} and {configs[-1]} disagree; both experts must have the same"
        )
    dit = dits[0]
    experts = len(parts) > 1
    wide = not experts and dit.clip_dim is None and (kind == "ti2v" or dit.out_dim == WIDE_LATENT)
    files["t5_encoder"] = (present(directory, T5_FILE),)
    files["tokenizer"] = (present(directory, TOKENIZER_FILE),)
    files["vae"] = (present(directory, VAE_FILES["2.2" if wide else "2.1"]),)
    if dit.clip_dim is not None:
        files["clip"] = (present(directory, CLIP_FILE),)
    checkpoint = Checkpoint(
        directory=directory,
        variant=choose(directory, dit, kind, experts, wide),
        dit=dit,
        t5=read_t5(files["t5_encoder"][0]),
        vae=read_vae(files["vae"][0]),
        clip=read_clip(files["clip"][0]) if "clip" in files else None,
        files=files,
        configs=configs,
    )
    check_fit(checkpoint, wide)
    return replace(checkpoint, variant=overridden(checkpoint.variant, configs, settings))


def present(directory: Path, name: str) -> Path:
    """Give the path of a file that must be there."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{directory} lacks {name}; download it from the model's page")
    return path


def transformers(directory: Path) -> dict[str, Path]:
    """Map the component name of each transformer to its folder: one at the top, or two experts."""
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory; give the folder of a Wan checkpoint"
        )
    folders = {name: directory / name for name in EXPERT_FOLDERS if (directory / name).is_dir()}
    if len(folders) == 1:
        absent = next(name for name in EXPERT_FOLDERS if name not in folders)
        raise CheckpointError(f"{directory} lacks {absent}/; download both experts")
    return folders or {"model": directory}


def shards(directory: Path) -> tuple[Path, ...]:
    """List the files of one transformer: those of its index, or else all shards that are there."""
    index = directory / f"{DIT_STEM}.safetensors.index.json"
    single = f"{DIT_STEM}.safetensors"
    if not index.is_file():
        found = sorted(directory.glob(f"{DIT_STEM}-*.safetensors"))
        alone = not found or (directory / single).is_file()
        return (present(directory, single),) if alone else tuple(found)
    table = read_json(index).get("weight_map")
    names = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    if not names or not all(name.isprintable() and name == Path(name).name != "" for name in names):
        raise CheckpointError(f"{index} must map tensors to files beside it; download it again")
    return tuple(present(directory, name) for name in names)


def choose(directory: Path, dit: DiTConfig, kind: Any, experts: bool, wide: bool) -> Variant:
    """Pick the variant by structure; config.json's model_type must not contradict it."""
    image = dit.in_dim != dit.out_dim
    if experts:
        name = "wan2.2-i2v-a14b" if image else "wan2.2-t2v-a14b"
    elif dit.clip_dim is not None:
        # the two differ in nothing but their training; only the default size depends on it
        large = "720p" in directory.resolve().name.lower()
        name = "wan2.1-i2v-14b-720p" if large else "wan2.1-i2v-14b-480p"
    elif wide:
        name = "wan2.2-ti2v-5b"
    else:
        name = "wan2.1-t2v-14b" if dit.dim >= LARGE else "wan2.1-t2v-1.3b"
    variant = VARIANTS[name]
    found = f"in_dim {dit.in_dim}, out_dim {dit.out_dim}"
    found += f", {'two experts' if experts else 'one transformer'}"
    found += f", {'no ' if dit.clip_dim is None else ''}img_emb"
    if image != (variant.task == "i2v"):
        raise CheckpointError(f"{directory} is no Wan checkpoint that wanpipe knows; found {found}")
    if kind not in (None, variant.task):
        raise CheckpointError(
            f"{directory}: config.json says model_type {kind}, but the weights are those of "
            f"{name}; found {found}"
        )
    return variant


def check_fit(checkpoint: Checkpoint, wide: bool) -> None:
    """Check that each network takes what the one before it gives."""
    dit, vae, clip = checkpoint.dit, checkpoint.vae, checkpoint.clip
    path = checkpoint.files["vae"][0]
    if vae.version != ("2.2" if wide else "2.1"):
        raise CheckpointError(f"{path} holds the VAE of Wan{vae.version}; download the right one")
    pairs = [
        (f"the width in {T5_FILE}", checkpoint.t5.dim, "text_dim", dit.text_dim),
        (f"the latent channels in {path.name}", vae.z_dim, "out_dim", dit.out_dim),
    ]
    if clip is not None and dit.clip_dim is not None:
        pairs.append((f"the width in {CLIP_FILE}", clip.dim, "img_emb width", dit.clip_dim))
    for what, ours, name, theirs in pairs:
        if ours != theirs:
            raise CheckpointError(
                f"{checkpoint.directory}: {what} must be the transformer's {name} {theirs}, "
                f"got {ours}; use the files of one checkpoint"
            )


def overridden(
    variant: Variant, configs: tuple[Path, ...], settings: list[dict[str, Any]]
) -> Variant:
    """Apply the object "wanpipe" of config.json: defaults that differ from the family's.

    Of two experts the high-noise one's counts.
    """
    path, changes = configs[-1], settings[-1].get("wanpipe", {})
    if settings[0].get("wanpipe", changes) != changes:
        raise CheckpointError(f"{configs[0]}: wanpipe must stand in {path} alone")
    if not isinstance(changes, dict):
        kind = type(changes).__name__
        raise CheckpointError(f"{path}: wanpipe must be a JSON object, got {kind}")
    defaults = Defaults.from_json({**variant.defaults.to_json(), **changes}, f"{path}: wanpipe")
    for name, value in changes.items():
        if not fits(value, getattr(variant.defaults, name)):
            raise CheckpointError(f"{path}: wanpipe.{name} has the wrong type: {shown(str(value))}")
    return replace(variant, defaults=defaults)


def fits(value: Any, like: Any) -> bool:
    """Tell whether a decoded JSON value can stand where `like` does; None: a number not given."""
    if isinstance(like, tuple):
        return isinstance(value, list) and len(value) == len(like) and all(map(fits, value, like))
    if like is None or isinstance(like, float):
        return type(value) in (int, float) or (like is None and value is None)
    return type(value) is type(like)
