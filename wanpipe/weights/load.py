"""Fills a network with the weights of a converted model's file, lazily.

Nothing is read here but the header: a block's weights come from the disk when it is evaluated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from wanpipe.device import reader
from wanpipe.errors import CheckpointError
from wanpipe.models.layers import QuantizedLinear
from wanpipe.weights.read import open_tensors
from wanpipe.weights.tensors import TensorInfo, listed, shown

FULL = "float32"  # metadata of a converted file: names of the tensors that stay float32
CODES = "U32"  # format of a quantised matrix
Network = TypeVar("Network", bound=nn.Module)


def parameter_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Map each parameter's path to its shape; evaluates nothing."""
    flat: Any = tree_flatten(network.parameters())
    return {name: tuple(value.shape) for name, value in flat}


def with_quantized(network: Network, stored: Mapping[str, TensorInfo], prefix: str = "") -> Network:
    """Put a quantised layer wherever a file with the tensors `stored` has a quantised matrix.

    Bits and group size follow from the shapes; a layer that they do not fit stays as it is.
    """
    modules = dict(network.named_modules())
    for path, layer in modules.items():
        weight, scales = (stored.get(f"{prefix}{path}.{name}") for name in ("weight", "scales"))
        if not isinstance(layer, nn.Linear) or weight is None or scales is None:
            continue
        out, width = layer.weight.shape
        if weight.dtype == CODES and 0 not in (*weight.shape, *scales.shape):
            bits, group_size = 32 * weight.shape[-1] // width, width // scales.shape[-1]
            if bits in (4, 8) and group_size in (32, 64, 128):
                quantized = QuantizedLinear(width, out, "bias" in layer, bits, group_size)
                parent, _, name = path.rpartition(".")
                setattr(modules[parent], name, quantized)
    return network


def open_weights(
    path: Path, dtype: mx.Dtype
) -> tuple[dict[str, mx.array], Mapping[str, TensorInfo]]:
    """Give all weights of a file, none of them read yet, and what the file says of each.

    Tensors that the file marks as float32 stay so; the others become `dtype`, but for the codes of
    quantised matrices.
    """
    with open_tensors(path) as file:
        stored, full = file.tensors, set(file.metadata.get(FULL, "").split())
    full |= {name for name, info in stored.items() if info.dtype == CODES}
    weights: Any = mx.load(str(path), stream=reader())
    cast = {name: value if name in full else value.astype(dtype) for name, value in weights.items()}
    return cast, stored


def load_network(network: Network, path: Path, dtype: mx.Dtype) -> Network:
    """Fill `network` from the safetensors file `path`, computing in `dtype`, and return it.

    Raises CheckpointError that lists missing, unexpected and wrong-shaped tensors.
    """
    weights, stored = open_weights(path, dtype)
    shapes = parameter_shapes(with_quantized(network, stored))
    wrong = [
        f"{shown(name)} {stored[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    lists = (
        ("missing tensors", [name for name in shapes if name not in stored]),
        ("unknown tensors", [name for name in stored if name not in shapes]),
        ("wrong shapes", wrong),
    )
    complaints = "; ".join(f"{what}: {listed(names)}" for what, names in lists if names)
    if complaints:
        raise CheckpointError(f"{path} does not fit: {complaints}; convert the checkpoint again")
    network.load_weights([(name, weights[name]) for name in shapes])
    return network
