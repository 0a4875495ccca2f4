"""Recognizes a checkpoint: which member of the Wan family it is, and its files.

By structure, never by names of models; the name of the directory only tells 480P from 720P. Reads
headers only.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import UNSET, structs

from wanpipe.checkpoints.dimensions import (
    axis_length,
    official_settings,
    read_clip,
    read_dit,
    read_json,
    read_shapes,
    read_t5,
    read_vae,
)
from wanpipe.checkpoints.folders import DMD_PIPELINE, CheckpointFiles, find_files
from wanpipe.errors import CheckpointError
from wanpipe.models.config import (
    EXPERTS,
    CLIPConfig,
    DiTConfig,
    T5Config,
    VAEConfig,
    condition_channels,
    context_channels,
)
from wanpipe.models.variants import DMD, VARIANTS, Defaults, Variant
from wanpipe.runtime.documents import DocumentError, convert, to_builtins

# width of the 14B transformers; below it, T2V and VACE of Wan2.1 have the defaults of the 1.3B
DIM_14B = 5120
Z_DIM_22 = 48  # channels of the Wan2.2 VAE
HEAD_DIM = 128  # of every official transformer
SIZE_NAME = re.compile(r"(?<![0-9])(480|720)p(?![a-z0-9])")
MAX_LINKS = 40  # as the system follows
SPARSE_GATE = ".to_gate_compress."  # in names of tensors of FastWan2.1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A recognized checkpoint: `files` of each component, `configs` the config.json in use."""

    directory: Path
    variant: Variant
    dit: DiTConfig
    t5: T5Config
    vae: VAEConfig
    clip: CLIPConfig | None
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    configs: tuple[Path, ...] = ()
    remark: str | None = None  # how an ambiguous variant was chosen, and what is left out

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
    """Recognize the checkpoint in `directory`; `model_version` "2.1" or "2.2" insists on one.

    Raises CheckpointError that names the missing or contradicting file, or says what was found.
    """
    try:
        checkpoint = recognize_checkpoint(directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error
    if model_version not in ("auto", checkpoint.variant.version):
        raise CheckpointError(
            f"--model-version says {model_version}, but {directory} holds "
            f"{checkpoint.variant.name}; leave the option out"
        )
    return checkpoint


def recognize_checkpoint(directory: Path) -> Checkpoint:
    """Recognize a checkpoint of either version, in whatever layout."""
    folder = find_files(directory)
    settings = [read_settings(folder, name) for name in folder.experts]
    dits = [
        read_dit(each, folder.configs.get(name, files[0]), files)
        for each, (name, files) in zip(settings, folder.experts.items(), strict=True)
    ]
    names = [folder.configs.get(name, files[0]) for name, files in folder.experts.items()]
    kind = settings[0].get("model_type")
    if dits[0] != dits[-1] or kind != settings[-1].get("model_type"):
        raise CheckpointError(
            f"{names[0]} and {names[-1]} disagree; both experts must have the same"
        )
    dit = dits[0]
    experts = len(dits) > 1
    plain = not experts and dit.clip_dim is None and dit.vace_in_dim is UNSET
    has_vae22 = plain and (kind == "ti2v" or dit.out_dim == Z_DIM_22)
    files = folder.experts | folder.others(has_vae22, dit.clip_dim is not None)
    checkpoint = Checkpoint(
        directory=directory,
        variant=choose_variant(directory, folder, dit, kind, has_vae22),
        dit=dit,
        t5=read_t5(files["t5_encoder"]),
        vae=read_vae(files["vae"]),
        clip=read_clip(files["clip"]) if "clip" in files else None,
        files=files,
        configs=folder.settings,
    )
    check_dimensions_agree(checkpoint, has_vae22)
    variant = with_own_defaults(checkpoint.variant, folder, settings)
    remarks = (size_remark(directory, folder, dit), sparse_remark(directory, folder))
    return replace(checkpoint, variant=variant, remark="; ".join(filter(None, remarks)) or None)


def read_settings(folder: CheckpointFiles, name: str) -> dict[str, Any]:
    """Read a transformer's config.json with the official keys; without one, assume heads of 128."""
    if name in folder.configs:
        path = folder.configs[name]
        return official_settings(read_json(path), path)
    files = folder.experts[name]
    dim = axis_length(read_shapes(files), files[0], "patch_embedding.weight")
    if dim % HEAD_DIM:
        raise CheckpointError(
            f"{files[0]} has width {dim}, which does not split into heads of {HEAD_DIM}; put the "
            "config.json that belongs to it beside it"
        )
    return {"num_heads": dim // HEAD_DIM}


def choose_variant(
    directory: Path, folder: CheckpointFiles, dit: DiTConfig, kind: Any, has_vae22: bool
) -> Variant:
    """Pick the variant by structure; config.json's model_type must not contradict it."""
    image, experts = dit.in_dim != dit.out_dim, len(folder.experts) > 1
    vace = dit.vace_in_dim is not UNSET
    if vace and experts:
        name = "wan2.2-vace-fun-a14b"
    elif vace:
        name = "wan2.1-vace-14b" if dit.dim >= DIM_14B else "wan2.1-vace-1.3b"
    elif experts:
        name = "wan2.2-i2v-a14b" if image else "wan2.2-t2v-a14b"
    elif dit.clip_positions is not UNSET:
        name = "wan2.1-flf2v-14b-720p"
    elif dit.clip_dim is not None:
        # the two differ in nothing but their training; only the default size depends on it
        size, _ = named_size(directory, folder)
        name = f"wan2.1-i2v-14b-{size}"
    elif has_vae22:
        name = "wan2.2-ti2v-5b"
    else:
        name = "wan2.1-t2v-14b" if dit.dim >= DIM_14B else "wan2.1-t2v-1.3b"
    variant = VARIANTS[name]
    found = f"in_dim {dit.in_dim}, out_dim {dit.out_dim}"
    found += f", {'two experts' if experts else 'one transformer'}"
    found += f", {'no ' if dit.clip_dim is None else ''}img_emb"
    found += ", VACE blocks" if vace else ""
    if image != (variant.task == "i2v") or (vace and dit.clip_dim is not None):
        raise CheckpointError(f"{directory} is no Wan checkpoint that wanpipe knows; found {found}")
    # VACE's own code says t2v, and a module may stand beside the config.json of a T2V model
    if kind not in (None, variant.model_type) and not (vace and kind == "t2v"):
        raise CheckpointError(
            f"{directory}: config.json says model_type {kind}, but the weights are those of "
            f"{name}; found {found}"
        )
    return variant


def named_size(directory: Path, folder: CheckpointFiles) -> tuple[str, str | None]:
    """Return the size, 480p or 720p, that names give an image-to-video model of Wan2.1, and the
    name that decides: the nearest one, from the files up; where none tells, 480p and None.
    """
    for name in names_on_the_way(directory, folder.experts["model"]):
        if found := SIZE_NAME.search(name.lower()):
            return f"{found[1]}p", name
    return "480p", None


def size_remark(directory: Path, folder: CheckpointFiles, dit: DiTConfig) -> str | None:
    """Explain the default size of a Wan2.1 image-to-video model; None for other models."""
    if dit.clip_dim is None:
        return None
    size, name = named_size(directory, folder)
    if name is None:
        return (
            f"no name on the way to {directory} says 480P or 720P, so its default size is that of "
            "480P; name the folder to choose"
        )
    return f"the default size of {directory} is that of {size.upper()}, as {name} says"


def sparse_remark(directory: Path, folder: CheckpointFiles) -> str | None:
    """Say that the gates of sparse attention are left out; None for models without them."""
    shapes = read_shapes(next(iter(folder.experts.values())))
    if not any(SPARSE_GATE in name for name in shapes):
        return None
    return (
        f"{directory} was trained with sparse attention (VSA), but wanpipe attends to all tokens, "
        f"so it leaves out the tensors {SPARSE_GATE[1:-1]}"
    )


def names_on_the_way(directory: Path, files: tuple[Path, ...]) -> Iterator[str]:
    """Yield the names by which files and their folder are reached, through links too, as those of
    the Hub's cache: models--<owner>--<name>/snapshots/<hash>.
    """
    for path in files:
        yield from (step.name for step in links(path))
    for step in links(directory):
        yield from reversed(step.parts)


def links(path: Path) -> Iterator[Path]:
    """Yield a path, those that it links to one after another, and the real one."""
    yield path.absolute()
    step = path
    for _ in range(MAX_LINKS):
        if not step.is_symlink():
            break
        step = step.parent / step.readlink()
        yield step.absolute()
    yield path.resolve()


def check_dimensions_agree(checkpoint: Checkpoint, has_vae22: bool) -> None:
    """Check that each network takes what the one before it gives."""
    dit, vae, clip = checkpoint.dit, checkpoint.vae, checkpoint.clip
    path, text = checkpoint.files["vae"][0], checkpoint.files["t5_encoder"][0]
    if vae.version != ("2.2" if has_vae22 else "2.1"):
        raise CheckpointError(f"{path} holds the VAE of Wan{vae.version}; download the right one")
    channels = vae.z_dim
    if checkpoint.variant.task == "i2v":
        channels += condition_channels(vae.z_dim)
    pairs = [
        (f"the width in {text.name}", checkpoint.t5.dim, "text_dim", dit.text_dim),
        (f"the latent channels in {path.name}", vae.z_dim, "out_dim", dit.out_dim),
        ("the latent and condition channels", channels, "in_dim", dit.in_dim),
    ]
    if dit.vace_in_dim is not UNSET:
        context = context_channels(vae.z_dim)
        pairs.append(("the context channels", context, "vace_in_dim", dit.vace_in_dim))
    if clip is not None and dit.clip_dim is not None:
        image = checkpoint.files["clip"][0]
        pairs.append((f"the width in {image.name}", clip.dim, "img_emb width", dit.clip_dim))
    for what, ours, name, theirs in pairs:
        if ours != theirs:
            raise CheckpointError(
                f"{checkpoint.directory}: {what} must be the transformer's {name} {theirs}, "
                f"got {ours}; use the files of one checkpoint"
            )


def with_own_defaults(
    variant: Variant, folder: CheckpointFiles, settings: list[dict[str, Any]]
) -> Variant:
    """Apply what the checkpoint says of its defaults: the object "wanpipe" of config.json, and the
    class and the boundary of diffusers' pipeline. Of two experts the high-noise one's config.json
    counts.
    """
    configs = [*folder.configs.values()]
    changes = settings[-1].get("wanpipe", {})
    if settings[0].get("wanpipe", changes) != changes:
        raise CheckpointError(f"{configs[0]}: wanpipe must stand in {configs[-1]} alone")
    if folder.pipeline is not None and read_json(folder.pipeline)["_class_name"] == DMD_PIPELINE:
        variant = replace_defaults(variant, DMD, f"{folder.pipeline}: _class_name")
    if folder.pipeline is not None and variant.defaults.boundary is not None:
        boundary = read_json(folder.pipeline).get("boundary_ratio", variant.defaults.boundary)
        variant = replace_defaults(
            variant, {"boundary": boundary}, f"{folder.pipeline}: boundary_ratio"
        )
    return (
        replace_defaults(variant, changes, f"{configs[-1]}: wanpipe") if changes != {} else variant
    )


def replace_defaults(variant: Variant, changes: Any, subject: str) -> Variant:
    """Replace defaults. Raises CheckpointError for unknown ones, wrong types and ranges."""
    if not isinstance(changes, dict):
        kind = type(changes).__name__
        raise CheckpointError(f"{subject} must be a JSON object, got {kind}")
    try:
        defaults = convert({**to_builtins(variant.defaults), **changes}, Defaults)
    except DocumentError as error:
        raise CheckpointError(f"{subject} cannot be right: {error}") from error
    return structs.replace(variant, defaults=defaults)
