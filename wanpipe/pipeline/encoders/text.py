"""Runs umT5 block by block, so that its weights need not be in memory together."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from wanpipe.checkpoints.read import open_tensors
from wanpipe.models.config import T5Config
from wanpipe.models.execution import BoundedEval, run_blocks
from wanpipe.models.layers import rms_norm
from wanpipe.models.umt5 import T5, TABLE, Block, one_hot_buckets
from wanpipe.weights import networks
from wanpipe.weights.load import load_network
from wanpipe.weights.stream import StreamedBlocks


def encode(
    path: Path,
    config: T5Config,
    ids: Sequence[Sequence[int]],
    dtype: mx.Dtype,
    progress: Callable[[], None] = lambda: None,
    *,
    whole: bool = False,
) -> list[mx.array]:
    """Encode several prompts' token ids with the weights in `path`: rows (L, D), float32, of each.

    Matrix products run in `dtype`; tensors that the file marks as float32 stay float32. Three
    blocks are in memory: the current one, the next, and one being read; if `whole`, all that are
    read. Of the embedding table, only the needed rows are in memory. `progress` is called with each
    block. Raises CheckpointError for a file that is damaged, or a token id beyond the table.
    """
    network = load_network(T5(config), path, dtype, without=(TABLE, "blocks"))
    lengths = [len(prompt) for prompt in ids]
    with open_tensors(path) as file:
        rows = file.rows_float32(f"{TABLE}.weight", [i for prompt in ids for i in prompt])
    streams = mx.split(mx.array(rows), np.cumsum(lengths)[:-1].tolist())
    tables = [one_hot_buckets(length, config.buckets) for length in lengths]

    pace = BoundedEval()

    def step(index: int, block: Block, number: int, ask: Callable[[], object]) -> None:
        if number == len(streams) - 1:
            progress()
        streams[number] = block(streams[number], tables[number])
        pace(streams[number])
        ask()

    makers = dict.fromkeys(config.block_names, lambda: Block(config))
    blocks = StreamedBlocks(path=path, makers=makers, dtype=dtype, stay=whole)
    run_blocks(blocks, len(streams), step)
    if not whole:
        networks.loaded(path)
    return [rms_norm(x, network.norm) for x in streams]
