"""A row of blocks that are read from a converted model's file whenever they are gone through.

Holds no weights itself: a block lives as long as somebody uses it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import mlx.core as mx
from mlx.utils import tree_flatten

from wanpipe.errors import CheckpointError
from wanpipe.weights.load import Network, open_weights, with_quantized
from wanpipe.weights.lora import Fit
from wanpipe.weights.merge import merge


@dataclass(frozen=True, kw_only=True)
class Streamed(Generic[Network]):
    """The blocks of the file `path`, each in a network that `make` gives, with LoRAs added.

    Asking for a block starts to read it and does not wait. Raises CheckpointError for a file that
    lacks a tensor.
    """

    path: Path
    count: int
    make: Callable[[], Network]
    dtype: mx.Dtype
    loras: Sequence[tuple[Fit, float]] = ()

    def __iter__(self) -> Iterator[Network]:
        weights, stored = open_weights(self.path, self.dtype)
        for index in range(self.count):
            prefix = f"blocks.{index}."
            block = filled(with_quantized(self.make(), stored, prefix), weights, prefix, self.path)
            merge(block, self.loras, prefix)
            mx.async_eval(block.parameters())
            yield block


def filled(network: Network, weights: dict[str, mx.array], prefix: str, path: Path) -> Network:
    """Move the weights under `prefix` into `network`; taken out, they are freed with it."""
    names = [name for name, _ in tree_flatten(network.parameters())]
    absent = [prefix + name for name in names if prefix + name not in weights]
    if absent:
        raise CheckpointError(f"{path} lacks {absent[0]}; convert the checkpoint again")
    network.load_weights([(name, weights.pop(prefix + name)) for name in names])
    return network
