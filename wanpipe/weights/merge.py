"""Adds LoRAs to the weights of a loaded network: the sum in float32, then one cast.

One parameter at a time, each in place of the one before, so memory never holds two networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from wanpipe.checkpoints.dtypes import Array, widen
from wanpipe.checkpoints.read import TensorFile, open_tensors
from wanpipe.checkpoints.rename import apply_transform
from wanpipe.checkpoints.tensors import quote_name
from wanpipe.errors import CheckpointError
from wanpipe.models.layers import Linear, LowRank, QuantizedLinear
from wanpipe.runtime import interrupt
from wanpipe.weights.lora import PARTS_BY_PARAMETER
from wanpipe.weights.lora_match import LoraMatch, WeightDelta


@dataclass(frozen=True)
class ScaledDelta:
    """A LoRA's delta of one parameter, at its strength, its file open."""

    file: TensorFile
    delta: WeightDelta
    strength: float

    @property
    def full(self) -> str | None:
        """Key of a full difference, if there is one."""
        return next(
            (key for part, key in self.delta.keys.items() if part in PARTS_BY_PARAMETER), None
        )

    def product(self) -> LowRank | None:
        """The two matrices of a product, as precise as they are stored, if there is one."""
        keys = self.delta.keys
        if "down" not in keys:
            return None
        up, down = (self._array(keys[part]) for part in ("up", "down"))
        scale = self.delta.scale
        if "alpha" in keys:
            scale = self.file.read_number(keys["alpha"]) / len(down)
        return LowRank(up.flatten(1), down, self.strength * scale)

    def difference(self) -> mx.array:
        """What is added to the parameter, float32."""
        product = self.product()
        total = mx.array(0.0) if product is None else product.matrix()
        if self.full is not None:
            total = total + self._array(self.full).astype(mx.float32) * self.strength
        return total

    def _array(self, key: str) -> mx.array:
        values, dtype = self.file.read(key), self.file.tensors[key].dtype
        subject = f"{self.file.paths[0]}: {quote_name(key)}"
        floats = widen(values, dtype, subject)
        if key in self.delta.factors:
            floats = floats * np.float32(self.delta.factors[key])
        if not np.isfinite(floats).all():
            raise CheckpointError(f"{subject} has NaN or infinite values; download the LoRA again")
        if dtype == "BF16":  # kept narrow: products with quantized matrices stay in memory
            return mx.array(self._in_our_layout(values)).view(mx.bfloat16)
        return mx.array(self._in_our_layout(values if dtype == "F16" else floats))

    def _in_our_layout(self, values: Array) -> Array:
        """Bring a tensor of the official layout into ours."""
        return np.ascontiguousarray(apply_transform(values, self.delta.transform))


Deltas = Mapping[str, Sequence[ScaledDelta]]  # of each parameter


@contextmanager
def open_deltas(loras: Sequence[tuple[LoraMatch, float]]) -> Iterator[Deltas]:
    """Open the files of LoRAs, and give what they add at their strengths."""
    with ExitStack() as stack:
        deltas: dict[str, list[ScaledDelta]] = {}
        for one, strength in loras:
            file = stack.enter_context(open_tensors(one.path))
            for target, delta in one.deltas.items():
                deltas.setdefault(target, []).append(ScaledDelta(file, delta, strength))
        yield deltas


def merge(network: nn.Module, loras: Sequence[tuple[LoraMatch, float]]) -> None:
    """Add LoRAs to a network that they fit, as `add` does."""
    with open_deltas(loras) as deltas:
        add(network, deltas)


def add(network: nn.Module, deltas: Deltas, prefix: str = "") -> None:
    """Add the deltas of LoRAs to a network that they fit, or that is the part of it under `prefix`;
    changes of what `network` lacks belong to its other parts.

    A parameter keeps its dtype; the sum is taken in float32. A quantized matrix keeps its bits and
    gets the products beside them, to be added whenever it is dequantized, where that takes less
    memory than the plain matrix; otherwise it becomes plain. Raises CheckpointError for numbers
    that are not finite.
    """
    modules = dict(network.named_modules())
    for target, group in deltas.items():
        path, _, leaf = target.removeprefix(prefix).rpartition(".")
        if not target.startswith(prefix) or path not in modules:
            continue
        interrupt.check()
        module = modules[path]
        if isinstance(module, QuantizedLinear) and leaf == "weight":
            _merge_quantized(modules, path, group)
        else:
            _replace_parameter(module, leaf, module[leaf], group)


def _replace_parameter(
    module: nn.Module, leaf: str, before: mx.array, deltas: Sequence[ScaledDelta]
) -> None:
    """Replace one parameter by its sum, begun at once, so that what it is made from is freed."""
    total = before.astype(mx.float32)
    for delta in deltas:
        total = total + delta.difference()
    total = total.astype(before.dtype)
    mx.async_eval(total)  # a streamed block's: behind the computation of the one before
    setattr(module, leaf, total)


def _merge_quantized(
    modules: Mapping[str, nn.Module], path: str, deltas: Sequence[ScaledDelta]
) -> None:
    layer = modules[path]
    assert isinstance(layer, QuantizedLinear)
    if all(delta.full is None for delta in deltas):
        products = [product for delta in deltas if (product := delta.product())]
        if layer.nbytes + sum(product.nbytes for product in products) < layer.plain_nbytes:
            mx.async_eval([product[:2] for product in products])
            layer.add(products)
            return
    parent, _, name = path.rpartition(".")
    plain = Linear(1, 1, bias="bias" in layer)
    _replace_parameter(plain, "weight", layer.matrix(), deltas)
    if "bias" in layer:
        plain.bias = layer.bias
    setattr(modules[parent], name, plain)
