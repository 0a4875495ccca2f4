"""A row of blocks that are read from a converted model's file whenever they are gone through.

Holds no weights itself: a block lives as long as somebody uses it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import mlx.core as mx
import mlx.nn as nn

from wanpipe.weights.load import Network, Weights, load_network, with_quantized
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import merge


@dataclass(frozen=True, kw_only=True)
class StreamedBlocks(Generic[Network]):
    """The blocks of the file `path`, each in a network that `make` gives, with LoRAs added.

    Asking for a block waits until it is read, and begins to read the one after it. Raises
    CheckpointError for a file that lacks a tensor.
    """

    path: Path
    count: int
    make: Callable[[], Network]
    dtype: mx.Dtype
    loras: Sequence[tuple[LoraMatch, float]] = ()

    def __iter__(self) -> Iterator[Network]:
        weights = Weights(self.path, self.dtype)
        for index in range(self.count):
            prefix = f"blocks.{index}."
            block = with_quantized(self.make(), weights.stored, prefix)
            merge(weights.fill(block, prefix), self.loras, prefix)
            following = f"blocks.{index + 1}."
            weights.begin([name for name in weights.stored if name.startswith(following)])
            yield block


def load_streamed(
    network: Network,
    path: Path,
    dtype: mx.Dtype,
    make: Callable[[], nn.Module],
    loras: Sequence[tuple[LoraMatch, float]] = (),
) -> Network:
    """Fill `network` as `load_network` does, but for its blocks, which become `StreamedBlocks`."""
    count = len(network.blocks)
    load_network(network, path, dtype, without="blocks")
    network.blocks = StreamedBlocks(path=path, count=count, make=make, dtype=dtype, loras=loras)
    return network
