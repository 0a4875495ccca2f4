"""Shows the tensors of one network under their official names, whatever layout its files have.

A layout is recognized by a key. Tensors that no rule of a layout knows keep their names, so that
the strict engine in `rename` reports them. Scaled 8-bit weights are given as their float32 values.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from wanpipe.checkpoints.dtypes import FLOAT8_VALUES, FLOATS, NUMPY_DTYPES, Array, Floats, widen
from wanpipe.checkpoints.read import BLOCK, TensorFile, open_tensors
from wanpipe.checkpoints.rename import (
    RenameRule,
    Transform,
    apply_transform,
    match_rules,
    transformed_shape,
)
from wanpipe.checkpoints.rules import diffusers, gguf, mlx_video, transformers
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.runtime.documents import DocumentError, decode

Kind = Literal["transformer", "VACE module", "text encoder", "VAE", "image encoder"]


@dataclass(frozen=True)
class Layout:
    """How one kind of network is named. `signature` is a key that no layout after it has, or has
    with another order of axes.
    """

    kind: Kind
    signature: str
    rules: tuple[RenameRule, ...] = ()  # none: the official names
    channels_last: bool = False

    def fits(self, names: Mapping[str, TensorInfo], prefix: str) -> bool:
        """Return whether tensors have this layout, with `prefix` before their names."""
        info = names.get(prefix + self.signature)
        if info is None or not self.channels_last:
            return info is not None
        return info.shape[1:-1] == KERNEL


KERNEL = (3, 3, 3)  # of the convolution that shows the order of a VAE's axes
LAYOUTS = (
    Layout("transformer", "patch_embedding_proj.weight", mlx_video.DIT),
    Layout("text encoder", "blocks.0.ffn.gate_proj.weight", mlx_video.UMT5),
    Layout("VAE", "decoder.head.layer_0.gamma", mlx_video.VAE_22),
    Layout("VAE", "decoder.conv1.weight", mlx_video.VAE_21, channels_last=True),
    Layout("transformer", "blocks.0.self_attn.q.weight"),
    Layout("transformer", "blocks.0.attn1.to_q.weight", diffusers.DIT),
    # a VACE transformer is one of the above; what has VACE's tensors alone stands beside one
    Layout("VACE module", "vace_blocks.0.self_attn.q.weight"),
    Layout("VACE module", "vace_blocks.0.attn1.to_q.weight", diffusers.DIT),
    Layout("text encoder", "blocks.0.attn.q.weight"),
    Layout(
        "text encoder",
        # other T5s have this table in the first block alone
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        transformers.UMT5,
    ),
    Layout("text encoder", "enc.blk.1.attn_rel_b.weight", gguf.UMT5),
    Layout("VAE", "decoder.conv1.weight"),
    Layout("VAE", "decoder.up_blocks.0.upsamplers.0.resample.1.weight", diffusers.VAE_21),
    Layout("VAE", "decoder.up_blocks.0.upsampler.resample.1.weight", diffusers.VAE_22),
    Layout("image encoder", "visual.patch_embedding.weight"),
    Layout(
        "image encoder",
        "vision_model.embeddings.patch_embedding.weight",
        transformers.CLIP,
    ),
)
# of ComfyUI, of whole pipelines in one file, and of training code
PREFIXES = (
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "first_stage_model.",
    "vae.",
)
# ComfyUI's scaled weights: ends of the names that stand beside `<module>.weight`
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
# for its 8-bit products; no part of the weight
INPUT_SCALE_SUFFIXES = (".scale_input", ".input_scale")
FORMAT_SUFFIX = ".comfy_quant"  # a JSON tensor that names the format
SUFFIXES = (*SCALE_SUFFIXES, *INPUT_SCALE_SUFFIXES, FORMAT_SUFFIX)
FORMATS = ("float8_e4m3fn", "float8_e5m2")
SCALED_MARKER = "scaled_fp8"
MLX_SCALES = ".scales"  # ends names beside packed weights
VACE_PREFIX = "vace_"  # of every tensor that VACE adds, in each layout
JSON_LIMIT = 1 << 12  # bytes
OWN_NAME = -1  # position of a tensor that keeps its name, before all rules


@dataclass(frozen=True)
class SourceTensor:
    """A stored tensor, the scale of its values, and what gives it its official shape."""

    name: str
    scale: float | None = None
    transform: Transform = "copy"


def recognize(
    names: Mapping[str, TensorInfo], layouts: Sequence[Layout] = LAYOUTS
) -> tuple[Layout, str] | None:
    """Return the layout and the prefix of a network's names; None for anything else."""
    for layout in layouts:
        for prefix in PREFIXES:
            if layout.fits(names, prefix):
                return layout, prefix
    return None


class Network(AbstractContextManager["Network"]):
    """The tensors of one network by their official names, open for reading; a context manager."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self.paths = file.paths
        self._parts = map_names(file)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: self._joined(name, parts) for name, parts in self._parts.items()}
        )

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    def read(self, name: str) -> Array:
        """Read a tensor whole, as stored; scaled ones as float32."""
        parts = self._find(name)
        whole = [self._official(self._file.read(part.name), part) for part in parts]
        return whole[0] if len(whole) == 1 else np.concatenate(whole)

    def read_float32(self, name: str) -> Floats:
        """Read a tensor whole, as float32 values."""
        subject = f"{self.paths[0]}: {quote_name(name)}"
        return widen(self.read(name), self.tensors[name].dtype, subject)

    def blocks(self, name: str, limit: int = BLOCK) -> Iterator[Array]:
        """Read a tensor in turn: slices of its first axis, each up to `limit` stored bytes."""
        for part in self._find(name):
            for block in self._file.blocks(part.name, limit):
                yield self._official(block, part)

    def _find(self, name: str) -> tuple[SourceTensor, ...]:
        if name not in self._parts:
            raise CheckpointError(f"{self.paths[0]} holds no tensor {quote_name(name)}")
        return self._parts[name]

    def _official(self, values: Array, part: SourceTensor) -> Array:
        values = apply_transform(values, part.transform)
        if part.scale is None:
            return values
        subject = f"{self.paths[0]}: {quote_name(part.name)}"
        return widen(values, self._file.tensors[part.name].dtype, subject) * np.float32(part.scale)

    def _joined(self, name: str, parts: tuple[SourceTensor, ...]) -> TensorInfo:
        """Tell what the tensor is that `parts` make, joined along the first axis."""
        infos = [self._part(part) for part in parts]
        if len(infos) == 1:
            return infos[0]
        if len({(info.shape[1:], info.dtype) for info in infos}) > 1 or not infos[0].shape:
            raise CheckpointError(
                f"{self.paths[0]}: the parts of {quote_name(name)} must have one width and format; "
                "use the files of one checkpoint"
            )
        shape = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
        return TensorInfo(shape, infos[0].dtype, sum(info.nbytes for info in infos))

    def _part(self, part: SourceTensor) -> TensorInfo:
        stored = self._file.tensors[part.name]
        info = replace(stored, shape=transformed_shape(stored.shape, part.transform))
        if part.scale is None:
            return info
        return TensorInfo(info.shape, "F32", prod(info.shape) * NUMPY_DTYPES["F32"].itemsize)


def open_network(paths: Path | Sequence[Path]) -> Network:
    """Open all files of one network in whatever layout.

    Raises CheckpointError for files that cannot be read or hold tensors beside the network's.
    """
    file = open_tensors(paths)
    try:
        return Network(file)
    except BaseException:
        file.close()
        raise


def map_names(file: TensorFile) -> dict[str, tuple[SourceTensor, ...]]:
    """Map official names to what is stored under other names; unknown names stay as they are.

    Stored tensors that become the same one are its parts, in the order of their rules. The tensors
    of VACE may have another layout than the transformer that they belong to.
    """
    layout, prefix = recognize(file.tensors) or (Layout("transformer", ""), "")
    rest, names = dict(file.tensors), {}
    modules = [each for each in LAYOUTS if each.kind == "VACE module"]
    if layout.kind == "transformer" and (module := recognize(file.tensors, modules)):
        front = f"{module[1]}{VACE_PREFIX}"
        own = {name: rest.pop(name) for name in file.tensors if name.startswith(front)}
        names = map_part(file, own, *module)
    beside = [name for name in rest if not name.startswith(prefix)]
    if beside and set(beside) != {SCALED_MARKER}:
        raise CheckpointError(
            f"{file.paths[0]} holds more than one network: {list_names(beside)} beside {prefix}*; "
            "split it into one file for each"
        )
    found = map_part(file, rest, layout, prefix)
    if twice := sorted(found.keys() & names.keys()):
        raise _given_twice(file, twice[0])
    return found | names


def map_part(
    file: TensorFile, tensors: Mapping[str, TensorInfo], layout: Layout, prefix: str
) -> dict[str, tuple[SourceTensor, ...]]:
    """Map official names to some stored `tensors` that have one layout and prefix."""
    stored, scales = split_scales(file, prefix, tensors)
    packed = [name for name in stored if name.endswith(MLX_SCALES)]
    if packed and layout.rules:  # without rules it is a model of ours
        raise CheckpointError(
            f"{file.paths[0]} is quantized by MLX ({quote_name(packed[0])}); use the model that it "
            "was made from, and quantize here"
        )
    if not layout.rules:
        return {name: (SourceTensor(key, scales.get(name)),) for name, key in stored.items()}
    order = {rule: index for index, rule in enumerate(layout.rules)}
    found: dict[str, list[tuple[int, SourceTensor]]] = {}
    infos = {name: file.tensors[key] for name, key in stored.items()}
    for name, rule, target in match_rules(infos, layout.rules):
        if rule is None or target is not None:
            transform = "copy" if rule is None else rule.transform
            part = SourceTensor(stored[name], scales.get(name), transform)
            place = OWN_NAME if rule is None else order[rule]
            found.setdefault(target or stored[name], []).append((place, part))
    for name, parts in found.items():
        places = {place for place, _ in parts}
        if len(places) < len(parts) or (OWN_NAME in places and len(parts) > 1):
            raise _given_twice(file, name)
    return {
        name: tuple(part for _, part in sorted(parts, key=lambda each: each[0]))
        for name, parts in found.items()
    }


def _given_twice(file: TensorFile, name: str) -> CheckpointError:
    return CheckpointError(f"{file.paths[0]} gives {quote_name(name)} twice; download it again")


def split_scales(
    file: TensorFile, prefix: str, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, str], dict[str, float]]:
    """Split stored tensors into weights, by name without `prefix`, and scales, by their weight.

    Raises CheckpointError for scales and formats that wanpipe does not know.
    """
    weights: dict[str, str] = {}
    scales: dict[str, float] = {}
    for key, info in tensors.items():
        name = key.removeprefix(prefix)
        ending = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        module = name.removesuffix(ending)
        scaled = file.tensors.get(f"{prefix}{module}.weight")
        if name == SCALED_MARKER:
            continue
        if not ending or scaled is None:
            weights[name] = key
        elif ending == FORMAT_SUFFIX:
            check_format(file, key, info)
        elif scaled.dtype not in FLOAT8_VALUES:
            raise CheckpointError(
                f"{file.paths[0]}: {quote_name(key)} scales a weight that is not an 8-bit float "
                f"but {scaled.dtype}; use the unscaled file"
            )
        elif ending in SCALE_SUFFIXES:
            scales[f"{module}.weight"] = read_scale(file, key, info)
    return weights, scales


def read_scale(file: TensorFile, key: str, info: TensorInfo) -> float:
    """Read the one factor of a scaled weight."""
    if prod(info.shape) != 1 or info.dtype not in FLOATS:
        raise CheckpointError(
            f"{file.paths[0]}: {quote_name(key)} must be one number, got {info.dtype} of shape "
            f"{info.shape}; use a file with one scale per weight"
        )
    scale = float(file.read_float32(key).reshape(()))
    if not np.isfinite(scale):
        raise CheckpointError(f"{file.paths[0]}: {quote_name(key)} is {scale}; download it again")
    return scale


def check_format(file: TensorFile, key: str, info: TensorInfo) -> None:
    """Check that a weight is quantized in a way that is known."""
    data = file.read(key).tobytes() if info.nbytes <= JSON_LIMIT else b""
    try:
        found = decode(data, dict[str, Any]).get("format")
    except DocumentError:  # refused below
        found = None
    if found not in FORMATS:
        raise CheckpointError(
            f"{file.paths[0]}: {quote_name(key)} must be one of {', '.join(FORMATS)}, got "
            f"{quote_name(str(found))}; use the file without this quantization"
        )
