"""Reads the dimensions of each network from the shapes of its official weights.

config.json adds what no shape tells; a dimension that both give differently is an error. Reads
headers only.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from wanpipe.checkpoints.rules import diffusers, mlx_video
from wanpipe.checkpoints.state_dict import open_network
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.config import PATCH, CLIPConfig, DiTConfig, T5Config, VAEConfig
from wanpipe.runtime.documents import Document, DocumentError, convert, load

JSON_LIMIT = 1 << 24  # bytes
# no axis of a real checkpoint is longer; beyond, a hostile header would cost memory
MAX_AXIS = 1 << 20
MAX_LAYERS = 256

Shapes = Mapping[str, TensorInfo]
Dimensions = TypeVar("Dimensions", bound=Document)
# what config.json may say beside the dimensions, and the one value that is implemented
FIXED_VALUES: dict[str, Any] = {
    "patch_size": list(PATCH),
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
}
IGNORED_KEYS = {"_class_name", "_diffusers_version", "model_type", "wanpipe", *FIXED_VALUES}
OFFICIAL_KEYS = {"heads": "num_heads", "layers": "num_layers"}  # ours: theirs, where they differ
MODEL_TYPES = ("t2v", "i2v", "flf2v", "ti2v", "vace")
POSITIONS = "img_emb.emb_pos"  # only FLF2V has it
VACE_EMBEDDING = "vace_patch_embedding.weight"
VACE_QUERY, VACE_FFN = "vace_blocks.0.self_attn.q.weight", "vace_blocks.0.ffn.0.weight"
DIT_DEFAULTS = {field.name: field.default for field in structs.fields(DiTConfig)}


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes. Raises CheckpointError where there is none."""
    try:
        return load(path, dict[str, Any], limit)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} lacks {path.name}; download it from the model's page"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise CheckpointError(f"{path} is not a JSON object: {error}; download it again") from error


def read_shapes(paths: Path | Sequence[Path]) -> Shapes:
    """Read official names, shapes and formats of a network's tensors, whatever its layout."""
    with open_network(paths) as network:
        return network.tensors


def axis_length(shapes: Shapes, path: Path, name: str, index: int = 0) -> int:
    """Length of one axis of a tensor that must be there; a negative index counts from the end."""
    shape = shapes[name].shape if name in shapes else ()
    if not -len(shape) <= index < len(shape):
        raise CheckpointError(f"{path} lacks {name}: not a checkpoint that wanpipe knows")
    if not 0 < shape[index] <= MAX_AXIS:
        raise CheckpointError(f"{path}: {name} has the absurd shape {shape}")
    return shape[index]


def count_layers(shapes: Shapes, path: Path, prefix: str) -> int:
    """Count the layers whose names begin with `prefix` and a number."""
    rest = (name.removeprefix(prefix) for name in shapes if name.startswith(prefix))
    numbers = {number for number in (name.partition(".")[0] for name in rest) if number.isdecimal()}
    if len(numbers) > MAX_LAYERS:
        raise CheckpointError(f"{path} has {len(numbers)} layers, more than {MAX_LAYERS}")
    return len(numbers)


def official_settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Give a transformer's settings with the official keys, where they have those of diffusers or
    mlx-video.
    """
    if "dual_model" in config:
        return translate_settings(config, mlx_video.CONFIG, path)
    if "num_attention_heads" not in config:
        return config
    settings = translate_settings(config, diffusers.CONFIG, path)
    for name, known in diffusers.FIXED.items():
        if config.get(name, known[0]) not in known:
            raise CheckpointError(
                f"{path}: {name} must be {' or '.join(known)}, got {quote_name(str(config[name]))}"
            )
    heads, width = config["num_attention_heads"], config.get("attention_head_dim")
    return {**settings, "dim": heads * width} if type(heads) is type(width) is int else settings


def translate_settings(
    config: dict[str, Any], names: Mapping[str, str | None], path: Path
) -> dict[str, Any]:
    """Give settings with the official keys; `names` has them by those that stand in `path`."""
    if unknown := set(config) - set(names):
        raise CheckpointError(f"{path} has unknown keys: {list_names(sorted(unknown))}")
    return {
        official: config[theirs]
        for theirs, official in names.items()
        if official is not None and config.get(theirs) is not None
    }


def read_dit(config: dict[str, Any], path: Path, files: tuple[Path, ...]) -> DiTConfig:
    """Read a transformer's dimensions from its shapes; those in config.json must agree."""
    weights, shapes = files[0], read_shapes(files)
    kind = config.get("model_type", "t2v")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: model_type must be {', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}, got "
            f"{quote_name(str(kind))}"
        )
    for name, only in FIXED_VALUES.items():
        if config.get(name, only) != only:
            raise CheckpointError(
                f"{path}: {name} must be {only}, got {quote_name(str(config[name]))}"
            )
    found: dict[str, Any] = {
        "dim": axis_length(shapes, weights, "patch_embedding.weight"),
        "in_dim": axis_length(shapes, weights, "patch_embedding.weight", 1),
        "out_dim": axis_length(shapes, weights, "head.head.weight") // prod(PATCH),
        "ffn_dim": axis_length(shapes, weights, "blocks.0.ffn.0.weight"),
        "freq_dim": axis_length(shapes, weights, "time_embedding.0.weight", 1),
        "text_dim": axis_length(shapes, weights, "text_embedding.0.weight", 1),
        "layers": count_layers(shapes, weights, "blocks."),
    }
    if "img_emb.proj.0.weight" in shapes:
        found["clip_dim"] = axis_length(shapes, weights, "img_emb.proj.0.weight")
    if POSITIONS in shapes:
        found["clip_positions"] = axis_length(shapes, weights, POSITIONS, -2)
    if VACE_EMBEDDING in shapes or VACE_QUERY in shapes:
        found |= read_vace(config, path, files, shapes, found)
    elif "vace_layers" in config or "vace_in_dim" in config:
        raise CheckpointError(
            f"{path} says vace_layers, but {weights} has no VACE blocks; put the module file with "
            "them beside it"
        )
    return merge_dit(config, path, found)


def read_vace(
    config: dict[str, Any],
    path: Path,
    files: tuple[Path, ...],
    shapes: Shapes,
    found: dict[str, Any],
) -> dict[str, Any]:
    """Read what VACE adds to a transformer's dimensions `found`.

    Where config.json has no `vace_layers`, the blocks that are there spread evenly over the layers,
    as in all that were published: 15 over 30 follow every second layer, 8 over 40 every fifth.
    Raises CheckpointError for VACE blocks of another transformer.
    """
    source, layers = files[-1], found["layers"]
    for name, dimension in ((VACE_EMBEDDING, "dim"), (VACE_FFN, "ffn_dim")):
        width = axis_length(shapes, source, name)
        if width != found[dimension]:
            raise CheckpointError(
                f"{source} has VACE blocks of {dimension} {width}, but the transformer has "
                f"{found[dimension]}; use the VACE module of this model"
            )
    count = count_layers(shapes, source, "vace_blocks.")
    given = config.get("vace_layers", list(range(0, layers, -(-layers // count))))
    if not isinstance(given, list) or len(given) != count:
        said = f"{path} says vace_layers {quote_name(str(given))}"
        said = said if "vace_layers" in config else f"the transformer has {layers} layers"
        raise CheckpointError(
            f"{source} has {count} VACE blocks, but {said}; use the VACE module and the "
            "config.json of this model"
        )
    return {"vace_layers": given, "vace_in_dim": axis_length(shapes, source, VACE_EMBEDDING, 1)}


def merge_dit(config: dict[str, Any], path: Path, found: dict[str, Any]) -> DiTConfig:
    """Join config.json with what the weights say. Raises CheckpointError where they disagree."""
    alone = {"heads": None, "text_len": DIT_DEFAULTS["text_len"], "eps": DIT_DEFAULTS["eps"]}
    known = {OFFICIAL_KEYS.get(name, name) for name in (*found, *alone)}
    unknown = set(config) - IGNORED_KEYS - known
    if unknown:
        raise CheckpointError(f"{path} has unknown keys: {list_names(sorted(unknown))}")
    values: dict[str, Any] = {**found}
    for name, usual in alone.items():
        theirs = OFFICIAL_KEYS.get(name, name)
        given = config.get(theirs, usual)
        kind = float if name == "eps" else int
        if type(given) is not kind or not 0 < given <= MAX_AXIS:
            raise CheckpointError(
                f"{path}: {theirs} must be a number, got {quote_name(str(given))}"
            )
        values[name] = given
    for name, length in found.items():
        theirs = OFFICIAL_KEYS.get(name, name)
        given = config.get(theirs, length)
        if given != length:
            raise CheckpointError(
                f"{path} says {theirs} {quote_name(str(given))}, but the weights have {length}; "
                "use the config.json that belongs to them"
            )
    return build_config(DiTConfig, path, values)


def build_config(kind: type[Dimensions], path: Path, values: dict[str, Any]) -> Dimensions:
    """Build dimensions from what `path` says. Raises CheckpointError where they cannot be right."""
    try:
        return convert(values, kind)
    except DocumentError as error:
        raise CheckpointError(
            f"{path} has impossible dimensions: {error}; download it again"
        ) from error


def read_t5(files: tuple[Path, ...]) -> T5Config:
    """Read the dimensions of the umT5 encoder; the official file has one bias table per layer."""
    path, shapes = files[0], read_shapes(files)
    table = "blocks.0.pos_embedding.embedding.weight"
    values = {
        "vocab": axis_length(shapes, path, "token_embedding.weight"),
        "dim": axis_length(shapes, path, "token_embedding.weight", 1),
        "attention_dim": axis_length(shapes, path, "blocks.0.attn.q.weight"),
        "ffn_dim": axis_length(shapes, path, "blocks.0.ffn.gate.0.weight"),
        "heads": axis_length(shapes, path, table, 1),
        "layers": count_layers(shapes, path, "blocks."),
        "buckets": axis_length(shapes, path, table),
    }
    return build_config(T5Config, path, values)


def read_vae(files: tuple[Path, ...]) -> VAEConfig:
    """Read version and dimensions of a VAE; Wan2.2 nests its stages."""
    path, shapes = files[0], read_shapes(files)
    nested = "encoder.downsamples.0.downsamples.0.residual.0.gamma" in shapes
    values = {
        "version": "2.2" if nested else "2.1",
        "encoder_dim": axis_length(shapes, path, "encoder.conv1.weight"),
        "decoder_dim": axis_length(shapes, path, "decoder.head.0.gamma"),
        "z_dim": axis_length(shapes, path, "conv2.weight"),
    }
    return build_config(VAEConfig, path, values)


def read_clip(files: tuple[Path, ...]) -> CLIPConfig:
    """Read the dimensions of CLIP's vision tower."""
    path, shapes = files[0], read_shapes(files)
    dim = axis_length(shapes, path, "visual.patch_embedding.weight")
    patch = axis_length(shapes, path, "visual.patch_embedding.weight", 2)
    tokens = axis_length(shapes, path, "visual.pos_embedding", -2)  # one more than patches
    values = {
        "dim": dim,
        "ffn_dim": axis_length(shapes, path, "visual.transformer.0.mlp.0.weight"),
        # no shape tells; ViT-H has 16 heads of 80
        "heads": dim // 80 if dim % 80 == 0 else dim // 16,
        "layers": count_layers(shapes, path, "visual.transformer."),
        "patch": patch,
        "size": round((tokens - 1) ** 0.5) * patch,
    }
    return build_config(CLIPConfig, path, values)
