"""A row of blocks that are read from a converted model's file while they are gone through."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic

import mlx.core as mx

from wanpipe.models.dit import DiT, make_block
from wanpipe.weights import networks
from wanpipe.weights.load import Network, Weights, load_network, with_quantized
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import Deltas, add, open_deltas


@dataclass(frozen=True, kw_only=True)
class StreamedBlocks(Generic[Network]):
    """Blocks of the file `path`, in the order of `makers`, with LoRAs added.

    `makers` has what makes an empty block, by the block's name in the file. Asking for a block
    waits until it is read, while the blocks after it are being read: if blocks `stay`, all that are
    not `kept` from an earlier pass, else one, and a block lives as long as somebody uses it. Raises
    CheckpointError for a file that lacks a tensor.
    """

    path: Path
    makers: Mapping[str, Callable[[], Network]]
    dtype: mx.Dtype
    loras: Sequence[tuple[LoraMatch, float]] = ()
    stay: bool = False
    kept: list[Network] = field(default_factory=list)

    def __iter__(self) -> Iterator[Network]:
        yield from self.kept
        names = list(self.makers)[len(self.kept) :]
        if names:
            with open_deltas(self.loras) as deltas:
                yield from self._read(names, deltas)

    def _read(self, names: Sequence[str], deltas: Deltas) -> Iterator[Network]:
        """Give the blocks of these names."""
        weights = Weights(self.path, self.dtype)
        reading = networks.take(self.path) if self.stay else None
        if reading is None:
            together = names if self.stay else names[:1]
            reading = weights.begin(weights.of_blocks(together), cast=self.stay)
        try:
            for name, after in zip(names, [*names[1:], None], strict=True):
                block = with_quantized(self.makers[name](), weights.stored, f"{name}.")
                weights.fill(block, f"{name}.", reading)
                if self.stay and after is None:
                    networks.loaded(self.path)
                elif not self.stay and after is not None:
                    reading = weights.begin(weights.of_blocks([after]), cast=False)
                add(block, deltas, f"{name}.")
                if self.stay:
                    self.kept.append(block)
                yield block
        finally:
            reading.give_up()
            if self.stay and len(self.kept) < len(self.makers):
                networks.clear()  # no later command takes a part for the whole


def numbered(make: Callable[[], Network], count: int) -> dict[str, Callable[[], Network]]:
    """Return the makers of `count` equal blocks."""
    return {f"blocks.{index}": make for index in range(count)}


def load_streamed(
    network: DiT,
    path: Path,
    dtype: mx.Dtype,
    loras: Sequence[tuple[LoraMatch, float]] = (),
    *,
    stay: bool = False,
) -> DiT:
    """Fill `network` as `load_network` does, but for its blocks, which become `StreamedBlocks`.

    If they `stay`, the first pass reads them, and later passes find them in memory.
    """
    config = network.config
    lists = ("blocks", "vace_blocks") if config.vace_count else ("blocks",)
    load_network(network, path, dtype, without=lists)
    if not stay:
        networks.loaded(path)
    makers = {name: partial(make_block, config, name) for name in config.block_names}
    network.streamed = not stay
    network.blocks = StreamedBlocks(path=path, makers=makers, dtype=dtype, loras=loras, stay=stay)
    return network
