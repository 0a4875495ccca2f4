"""Reads the weights of a converted model's file into a network."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from wanpipe.backend import pinned
from wanpipe.backend.device import load_device, prefetch_to_gpu
from wanpipe.backend.pinned import Span
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.tensors import TensorInfo, list_names, quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.layers import QuantizedLinear
from wanpipe.weights import networks
from wanpipe.weights.reader import Ended, Reading

FLOAT32_NAMES = "float32"  # metadata of a converted file: names of the tensors that stay float32
PACKED_DTYPE = "U32"  # format of a quantized matrix
MLX_DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16, PACKED_DTYPE: mx.uint32}
# Tensors to wait for together, about a block of a transformer: on CUDA every wait takes 3 ms, and
# what was read stays in the host's memory until it is handed over.
TENSORS_PER_EVAL = 32
Network = TypeVar("Network", bound=nn.Module)


def parameter_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Map each parameter's path to its shape; evaluates nothing."""
    flat: Any = tree_flatten(network.parameters())
    return {name: tuple(value.shape) for name, value in flat}


def with_quantized(network: Network, stored: Mapping[str, TensorInfo], prefix: str = "") -> Network:
    """Put a quantized layer wherever a file with the tensors `stored` has a quantized matrix.

    Bits and group size follow from the shapes; a layer that they do not fit stays as it is.
    """
    modules = dict(network.named_modules())
    for path, layer in modules.items():
        weight, scales = (stored.get(f"{prefix}{path}.{name}") for name in ("weight", "scales"))
        if not isinstance(layer, nn.Linear) or weight is None or scales is None:
            continue
        out, width = layer.weight.shape
        if weight.dtype == PACKED_DTYPE and 0 not in (*weight.shape, *scales.shape):
            bits, group_size = 32 * weight.shape[-1] // width, width // scales.shape[-1]
            if bits in (4, 8) and group_size in (32, 64, 128):
                quantized = QuantizedLinear(width, out, "bias" in layer, bits, group_size)
                parent, _, name = path.rpartition(".")
                setattr(modules[parent], name, quantized)
    return network


class Weights:
    """The tensors of a converted file, which the thread of the reader reads.

    `stored` is what the file says of each. Tensors that it marks as float32 stay so; the others
    become `dtype`, but for the codes of quantized matrices.
    """

    def __init__(self, path: Path, dtype: mx.Dtype) -> None:
        with open_tensors(path) as file:
            self.stored: Mapping[str, TensorInfo] = file.tensors
            self.spans = {
                name: Span(offset=file.offset(name), shape=info.shape, dtype=MLX_DTYPES[info.dtype])
                for name, info in file.tensors.items()
                if info.dtype in MLX_DTYPES
            }
            full = set(file.metadata.get(FLOAT32_NAMES, "").split())
        codes = {name for name, info in self.stored.items() if info.dtype == PACKED_DTYPE}
        self.path, self.dtype, self._kept = path, dtype, full | codes

    def fill(self, network: Network, prefix: str = "", reading: Reading | None = None) -> Network:
        """Move what is under `prefix` into a network that has layers for it, and return it.

        Takes the tensors from what is `reading` them already, and waits for each. Raises
        CheckpointError for a tensor that the file lacks.
        """
        names = {prefix + name: name for name in parameter_shapes(network)}
        for name in names:
            if name not in self.stored:
                raise CheckpointError(f"{self.path} lacks {name}; convert the checkpoint again")
        if reading is None:
            reading = self.begin([name for name in self.stored if name in names])
        taken = [(name, self.cast(stored, reading.pop(stored))) for stored, name in names.items()]
        network.load_weights(taken)
        return network

    def of_blocks(self, blocks: Iterable[str]) -> list[str]:
        """Return the names of the tensors of these blocks, one block after another."""
        prefixes = [f"{block}." for block in blocks]
        return [name for prefix in prefixes for name in self.stored if name.startswith(prefix)]

    def begin(self, names: Sequence[str], *, cast: bool = True) -> Reading:
        """Begin to read tensors in this order, while this thread computes.

        Without `cast` they stay as they are stored, which may take less memory.
        """
        return Reading(partial(self.read, names, cast=cast))

    def read(
        self, names: Sequence[str], ended: Ended, *, cast: bool = True
    ) -> Iterator[tuple[str, mx.array]]:
        """Yield tensors that are read in this thread, in this order, until it has `ended`."""
        spans = [self.spans.get(name) for name in names]
        fast = None not in spans and pinned.reads(filter(None, spans))
        with closing(self.at_once(names) if fast else self.through_mlx(names)) as arrays:
            for name, array in arrays:
                if ended():
                    return
                yield name, self.cast(name, array) if cast else array

    def at_once(self, names: Sequence[str]) -> Generator[tuple[str, mx.array], None, None]:
        """Yield tensors as they are stored, straight to the device."""
        arrays = pinned.read(self.path, [self.spans[name] for name in names])
        yield from zip(names, arrays, strict=True)

    @cached_property
    def lazy(self) -> Any:
        """The tensors by name, which MLX has not read yet; for the thread that asks first."""
        return mx.load(str(self.path), stream=load_device())

    def through_mlx(self, names: Sequence[str]) -> Generator[tuple[str, mx.array], None, None]:
        """Yield tensors as they are stored, with MLX's own reader. Each is given once."""
        for start in range(0, len(names), TENSORS_PER_EVAL):
            some = names[start : start + TENSORS_PER_EVAL]
            mx.async_eval([self.lazy[name] for name in some])
            for name in some:
                array: mx.array = self.lazy.pop(name)
                mx.eval(array)  # else a GPU would wait for it, see `load_device`
                prefetch_to_gpu(array)
                yield name, array

    def cast(self, name: str, array: mx.array) -> mx.array:
        """Return what was read in the dtype that it is used in."""
        if name not in self._kept and array.dtype != self.dtype:
            array = array.astype(self.dtype)
            mx.eval(array)  # else what was read would stay until it is used
        return array


def load_network(
    network: Network, path: Path, dtype: mx.Dtype, without: Sequence[str] = ()
) -> Network:
    """Fill `network` from the safetensors file `path`, computing in `dtype`, and return it.

    The lists of modules `without` are not read, and empty afterwards; whoever reads them calls
    `networks.loaded`. Raises CheckpointError that lists missing, unexpected and wrong-shaped
    tensors.
    """
    networks.clear()  # plans count no other network
    weights = Weights(path, dtype)
    stored = weights.stored
    shapes = parameter_shapes(with_quantized(network, stored))
    wrong = [
        f"{quote_name(name)} {stored[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    ]
    lists = (
        ("missing tensors", [name for name in shapes if name not in stored]),
        ("unknown tensors", [name for name in stored if name not in shapes]),
        ("wrong shapes", wrong),
    )
    complaints = "; ".join(f"{what}: {list_names(names)}" for what, names in lists if names)
    if complaints:
        raise CheckpointError(f"{path} does not fit: {complaints}; convert the checkpoint again")
    for name in without:
        setattr(network, name, [])
    weights.fill(network, reading=networks.take(path))
    if not without:
        networks.loaded(path)
    return network


def read_whole(
    path: Path, dtype: mx.Dtype, blocks: Sequence[str], ended: Ended
) -> Iterator[tuple[str, mx.array]]:
    """Yield all tensors of a file, read in this thread, until it has `ended`.

    What belongs to none of the `blocks` comes first, then one block after another.
    """
    weights = Weights(path, dtype)
    inside = dict.fromkeys(weights.of_blocks(blocks))
    outside = [name for name in weights.stored if name not in inside]
    yield from weights.read([*outside, *inside], ended)
