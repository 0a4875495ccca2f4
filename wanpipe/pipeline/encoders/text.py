"""Runs umT5 block by block, so that its weights are never in memory together."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from wanpipe.checkpoints.read import open_tensors
from wanpipe.models.config import T5Config
from wanpipe.models.execution import BoundedEval, run_blocks
from wanpipe.models.layers import rms_norm
from wanpipe.models.umt5 import EPS, Block, one_hot_buckets
from wanpipe.weights import networks
from wanpipe.weights.load import Weights
from wanpipe.weights.stream import StreamedBlocks, numbered


def encode(
    path: Path,
    config: T5Config,
    ids: Sequence[Sequence[int]],
    dtype: mx.Dtype,
    progress: Callable[[], None] = lambda: None,
) -> list[mx.array]:
    """Encode several prompts' token ids with the weights in `path`: rows (L, D), float32, of each.

    Matrix products run in `dtype`; tensors that the file marks as float32 stay float32. Three
    blocks are in memory: the current one, the next, and one being read. Of the embedding table,
    only the needed rows are in memory. `progress` is called with each block. Raises CheckpointError
    for a file that is damaged, or a token id beyond the table.
    """
    networks.clear()  # the plan counts no other network
    lengths = [len(prompt) for prompt in ids]
    with open_tensors(path) as file:
        rows = file.rows_float32("token_embedding.weight", [i for prompt in ids for i in prompt])
    streams = mx.split(mx.array(rows), np.cumsum(lengths)[:-1].tolist())
    tables = [one_hot_buckets(length, config.buckets) for length in lengths]

    pace = BoundedEval()

    def step(index: int, block: Block, number: int, ask: Callable[[], object]) -> None:
        if number == len(streams) - 1:
            progress()
        streams[number] = block(streams[number], tables[number])
        pace(streams[number])
        ask()

    makers = numbered(lambda: Block(config), config.layers)
    blocks = StreamedBlocks(path=path, makers=makers, dtype=dtype)
    run_blocks(blocks, len(streams), step)
    norm = Weights(path, dtype).fill(nn.RMSNorm(config.dim, EPS), "norm.")
    networks.loaded(path)
    return [rms_norm(x, norm) for x in streams]
