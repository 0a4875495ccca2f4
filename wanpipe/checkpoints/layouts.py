"""Shows the tensors of one network under their official names, whatever layout its files have.

A layout is recognised by a key that no other has. Tensors that no row of a layout knows keep their
names, so that the strict engine in `rename` reports them. Scaled 8-bit weights are given as their
float32 values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from wanpipe.checkpoints.dtypes import EIGHT_BIT, FLOATS, STORED, Array, Floats, widen
from wanpipe.checkpoints.read import BLOCK, Closing, TensorFile, open_tensors
from wanpipe.checkpoints.rename import Row, matches
from wanpipe.checkpoints.rules import diffusers, transformers
from wanpipe.checkpoints.tensors import TensorInfo, listed, shown
from wanpipe.errors import CheckpointError
from wanpipe.runtime.documents import DocumentError, decode

Kind = Literal["transformer", "text encoder", "VAE", "image encoder"]


@dataclass(frozen=True)
class Layout:
    """How one kind of network is named: `mark` is there if and only if a file has this layout."""

    kind: Kind
    mark: str
    rows: tuple[Row, ...] = ()  # none: the official names


LAYOUTS = (
    Layout("transformer", "blocks.0.self_attn.q.weight"),
    Layout("transformer", "blocks.0.attn1.to_q.weight", diffusers.DIT),
    Layout("text encoder", "blocks.0.attn.q.weight"),
    Layout(
        "text encoder",
        # other T5s have this table in the first block alone
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        transformers.UMT5,
    ),
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
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
# ComfyUI's scaled weights: ends of the names that stand beside `<module>.weight`
SCALES = (".scale_weight", ".weight_scale")
IGNORED = (".scale_input", ".input_scale")  # for its 8-bit products; no part of the weight
QUANTISED = ".comfy_quant"  # JSON that says in what format
FORMATS = ("float8_e4m3fn", "float8_e5m2")
MARKER = "scaled_fp8"
JSON_LIMIT = 1 << 12  # bytes
OWN = -1  # place among the rows of a tensor that keeps its name


@dataclass(frozen=True)
class Part:
    """A stored tensor, and what its values are to be multiplied with."""

    name: str
    scale: float | None = None


def recognise(names: Mapping[str, TensorInfo]) -> tuple[Layout, str] | None:
    """Tell the layout and the prefix of a network's names; None for anything else."""
    for layout in LAYOUTS:
        for prefix in PREFIXES:
            if prefix + layout.mark in names:
                return layout, prefix
    return None


class Network(Closing):
    """The tensors of one network by their official names, open for reading; a context manager."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self.paths = file.paths
        self._parts = translate(file)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: self._joined(name, parts) for name, parts in self._parts.items()}
        )

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._file.close()

    def read(self, name: str) -> Array:
        """Read a tensor whole, as stored; scaled ones as float32."""
        parts = self._find(name)
        whole = [self._scaled(self._file.read(part.name), part) for part in parts]
        return whole[0] if len(whole) == 1 else np.concatenate(whole)

    def read_float32(self, name: str) -> Floats:
        """Read a tensor whole, as float32 values."""
        subject = f"{self.paths[0]}: {shown(name)}"
        return widen(self.read(name), self.tensors[name].dtype, subject)

    def blocks(self, name: str, limit: int = BLOCK) -> Iterator[Array]:
        """Read a tensor in turn: slices of its first axis, each up to `limit` stored bytes."""
        for part in self._find(name):
            for block in self._file.blocks(part.name, limit):
                yield self._scaled(block, part)

    def _find(self, name: str) -> tuple[Part, ...]:
        if name not in self._parts:
            raise CheckpointError(f"{self.paths[0]} holds no tensor {shown(name)}")
        return self._parts[name]

    def _scaled(self, values: Array, part: Part) -> Array:
        if part.scale is None:
            return values
        subject = f"{self.paths[0]}: {shown(part.name)}"
        return widen(values, self._file.tensors[part.name].dtype, subject) * np.float32(part.scale)

    def _joined(self, name: str, parts: tuple[Part, ...]) -> TensorInfo:
        """Tell what the tensor is that `parts` make, joined along the first axis."""
        infos = [self._part(part) for part in parts]
        if len(infos) == 1:
            return infos[0]
        if len({(info.shape[1:], info.dtype) for info in infos}) > 1 or not infos[0].shape:
            raise CheckpointError(
                f"{self.paths[0]}: the parts of {shown(name)} must have one width and format; use "
                "the files of one checkpoint"
            )
        shape = (sum(info.shape[0] for info in infos), *infos[0].shape[1:])
        return TensorInfo(shape, infos[0].dtype, sum(info.nbytes for info in infos))

    def _part(self, part: Part) -> TensorInfo:
        info = self._file.tensors[part.name]
        if part.scale is None:
            return info
        return TensorInfo(info.shape, "F32", prod(info.shape) * STORED["F32"].itemsize)


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


def translate(file: TensorFile) -> dict[str, tuple[Part, ...]]:
    """Map official names to what is stored under other names; unknown names stay as they are.

    Stored tensors that become the same one are its parts, in the order of their rows.
    """
    layout, prefix = recognise(file.tensors) or (Layout("transformer", ""), "")
    beside = [name for name in file.tensors if not name.startswith(prefix)]
    if beside and set(beside) != {MARKER}:
        raise CheckpointError(
            f"{file.paths[0]} holds more than one network: {listed(beside)} beside {prefix}*; "
            "split it into one file for each"
        )
    stored, scales = separate(file, prefix)
    if not layout.rows:
        return {name: (Part(key, scales.get(name)),) for name, key in stored.items()}
    order = {row: index for index, row in enumerate(layout.rows)}
    found: dict[str, list[tuple[int, Part]]] = {}
    infos = {name: file.tensors[key] for name, key in stored.items()}
    for name, row, target in matches(infos, layout.rows):
        if row is None or target is not None:
            part = Part(stored[name], scales.get(name))
            place = OWN if row is None else order[row]
            found.setdefault(target or stored[name], []).append((place, part))
    for name, parts in found.items():
        places = {place for place, _ in parts}
        if len(places) < len(parts) or (OWN in places and len(parts) > 1):
            raise CheckpointError(f"{file.paths[0]} gives {shown(name)} twice; download it again")
    return {
        name: tuple(part for _, part in sorted(parts, key=lambda each: each[0]))
        for name, parts in found.items()
    }


def separate(file: TensorFile, prefix: str) -> tuple[dict[str, str], dict[str, float]]:
    """Split what is stored into weights, by name without `prefix`, and scales, by their weight.

    Raises CheckpointError for scales and formats that wanpipe does not know.
    """
    weights: dict[str, str] = {}
    scales: dict[str, float] = {}
    for key, info in file.tensors.items():
        name = key.removeprefix(prefix)
        ending = next((end for end in (*SCALES, *IGNORED, QUANTISED) if name.endswith(end)), "")
        module = name.removesuffix(ending)
        scaled = file.tensors.get(f"{prefix}{module}.weight")
        if name == MARKER:
            continue
        if not ending or scaled is None:
            weights[name] = key
        elif ending == QUANTISED:
            check_format(file, key, info)
        elif scaled.dtype not in EIGHT_BIT:
            raise CheckpointError(
                f"{file.paths[0]}: {shown(key)} scales a weight that is not an 8-bit float but "
                f"{scaled.dtype}; use the unscaled file"
            )
        elif ending in SCALES:
            scales[f"{module}.weight"] = read_scale(file, key, info)
    return weights, scales


def read_scale(file: TensorFile, key: str, info: TensorInfo) -> float:
    """Read the one factor of a scaled weight."""
    if prod(info.shape) != 1 or info.dtype not in FLOATS:
        raise CheckpointError(
            f"{file.paths[0]}: {shown(key)} must be one number, got {info.dtype} of shape "
            f"{info.shape}; use a file with one scale per weight"
        )
    scale = float(file.read_float32(key).reshape(()))
    if not np.isfinite(scale):
        raise CheckpointError(f"{file.paths[0]}: {shown(key)} is {scale}; download it again")
    return scale


def check_format(file: TensorFile, key: str, info: TensorInfo) -> None:
    """Check that a weight is quantised in a way that is known."""
    data = file.read(key).tobytes() if info.nbytes <= JSON_LIMIT else b""
    try:
        found = decode(data, dict[str, Any]).get("format")
    except DocumentError:  # refused below
        found = None
    if found not in FORMATS:
        raise CheckpointError(
            f"{file.paths[0]}: {shown(key)} must be one of {', '.join(FORMATS)}, got "
            f"{shown(str(found))}; use the file without this quantisation"
        )
