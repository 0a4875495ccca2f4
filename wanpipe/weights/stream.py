"""A row of blocks that are read from a converted model's file whenever they are gone through.

Holds no weights itself: a block lives as long as somebody uses it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic

import mlx.core as mx

from wanpipe.models.dit import Block, DiT
from wanpipe.weights.load import Network, Weights, load_network, with_quantized
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import merge
from wanpipe.weights.reader import Reading


@dataclass(frozen=True, kw_only=True)
class StreamedBlocks(Generic[Network]):
    """Blocks of the file `path`, in the order of `makers`, with LoRAs added.

    `makers` has what makes an empty block, by the block's name in the file. Asking for a block
    waits until it is read, and begins to read the one after it. Raises CheckpointError for a file
    that lacks a tensor.
    """

    path: Path
    makers: Mapping[str, Callable[[], Network]]
    dtype: mx.Dtype
    loras: Sequence[tuple[LoraMatch, float]] = ()

    def __iter__(self) -> Iterator[Network]:
        weights = Weights(self.path, self.dtype)
        names = list(self.makers)
        reading = [begin(weights, name) for name in names[:1]]
        for name, after in zip(names, [*names[1:], None], strict=True):
            arrays = reading.pop().result()
            if after is not None:
                reading.append(begin(weights, after))
            block = with_quantized(self.makers[name](), weights.stored, f"{name}.")
            weights.fill(block, f"{name}.", arrays)
            merge(block, self.loras, f"{name}.")
            yield block


def begin(weights: Weights, name: str) -> Reading[dict[str, mx.array]]:
    """Begin to read a block."""
    return weights.begin(stored for stored in weights.stored if stored.startswith(f"{name}."))


def numbered(make: Callable[[], Network], count: int) -> dict[str, Callable[[], Network]]:
    """Return the makers of `count` equal blocks."""
    return {f"blocks.{index}": make for index in range(count)}


def load_streamed(
    network: DiT,
    path: Path,
    dtype: mx.Dtype,
    make: Callable[[], Block],
    loras: Sequence[tuple[LoraMatch, float]] = (),
) -> DiT:
    """Fill `network` as `load_network` does, but for its blocks, which become `StreamedBlocks`.

    `make` gives an empty main block. A VACE block is read after its main block.
    """
    makers: dict[str, Callable[[], Block]] = {}
    for name in network.config.block_names:
        row, _, number = name.partition(".")
        makers[name] = make if row == "blocks" else partial(network.vace_block, int(number))
    lists = ("blocks", "vace_blocks") if network.config.vace_count else ("blocks",)
    load_network(network, path, dtype, without=lists)
    network.blocks = StreamedBlocks(path=path, makers=makers, dtype=dtype, loras=loras)
    return network
