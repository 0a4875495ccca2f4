"""Tiled decoding: decodes a latent in overlapping spatial tiles, blended linearly.

Needs less memory on the device, with nearly the same pixels. Each tile is decoded from the first
frame to the last, so that the device caches the frames of one tile. The host keeps the whole video
until the last tile: finished pixels as uint8, others as float32 sums (see `host_bytes`).
Loads no array library before it decodes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from wanpipe.models.geometry import OVERLAP, TILE, Triple

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from wanpipe.models.vae.vae import Decoder

FLOAT32 = 4  # bytes
Ramp = tuple[slice, "np.ndarray"]  # latent rows or columns of a tile, and weights of their pixels
Cells = dict[tuple[int, int], "np.ndarray"]  # by first row and column: uint8, or float32 sums


class Strip(NamedTuple):
    """A range of pixel rows or columns that is covered by the same tiles throughout.

    It begins at `start` in the video and at `inside` in one of these tiles, which may be the
    `last` of them.
    """

    start: int
    inside: slice
    last: bool


def spans(size: int, tile: int, step: int) -> list[slice]:
    """Split `size` latent rows or columns into spans of `tile`, at most `step` apart."""
    last = max(size - tile, 0)
    return [slice(start, min(start + tile, size)) for start in [*range(0, last, step), last]]


def ramps(size: int, stride: int, tile: int, overlap: int) -> list[Ramp]:
    """Split `size` latent rows or columns into tiles of `tile` pixels, with weights that sum to 1.

    In an overlap, one weight falls linearly while the other rises. The outer eighth of the overlap
    has weight 0, because those pixels lack the most context.
    """
    import numpy as np

    margin = overlap / 8
    tiles = spans(size, tile // stride, (tile - overlap) // stride)
    weights = np.zeros((len(tiles), size * stride), np.float32)
    for row, span in zip(weights, tiles, strict=True):
        pixels = np.arange((span.stop - span.start) * stride) + 0.5
        ramp = np.clip((pixels - margin) / (overlap - 2 * margin), 0, 1)
        before, after = ramp if span.start else 1, ramp[::-1] if span.stop < size else 1
        row[span.start * stride : span.stop * stride] = np.minimum(before, after)
    weights /= weights.sum(axis=0)
    return [
        (span, row[span.start * stride : span.stop * stride])
        for span, row in zip(tiles, weights, strict=True)
    ]


def strips(tiles: Sequence[slice], stride: int) -> list[list[Strip]]:
    """Split the rows or columns of each tile at the edges of the other tiles."""
    ends = sorted({end for span in tiles for end in (span.start, span.stop)})
    return [
        [
            Strip(
                start=start * stride,
                inside=slice((start - span.start) * stride, (stop - span.start) * stride),
                last=number + 1 == len(tiles) or start < tiles[number + 1].start,
            )
            for start, stop in pairwise(ends)
            if span.start <= start < span.stop
        ]
        for number, span in enumerate(tiles)
    ]


def host_bytes(latent: Triple, stride: int, tile: int = TILE, overlap: int = OVERLAP) -> int:
    """Return the peak host memory of `decode` for a latent (F, H, W), in bytes."""
    F, H, W = latent
    rows, columns = (spans(side, tile // stride, (tile - overlap) // stride) for side in (H, W))
    most, above = 0, 0
    for row, next_row in zip_longest(rows, rows[1:]):
        below = H if next_row is None else next_row.start
        for column, next_column in zip_longest(columns, columns[1:]):
            done = W if next_column is None else next_column.start
            finished = row.start * W + (below - row.start) * done  # uint8
            sums = (row.stop - below) * done  # overlap with the next row of tiles
            sums += (row.stop - row.start) * (column.stop - done)  # with the next tile
            sums += above * (W - column.stop)  # and with the previous row of tiles
            most = max(most, finished + FLOAT32 * sums)
        above = row.stop - below
    return 3 * (4 * (F - 1) + 1) * stride**2 * most


def decode(
    decoder: "Decoder", latent: "mx.array", stride: int, tile: int = TILE, overlap: int = OVERLAP
) -> "Iterator[np.ndarray]":
    """Decode a latent (C, F, H, W) in tiles, and yield blended frames (T, Y, X, 3) as uint8.

    `stride`, `tile` and `overlap` are in pixels; `tile` and `overlap` are multiples of `stride`.
    """
    import numpy as np

    _, F, H, W = latent.shape
    down, across = (ramps(side, stride, tile, overlap) for side in (H, W))
    rows, columns = (strips([span for span, _ in axis], stride) for axis in (down, across))
    chunks: list[Cells] = [{} for _ in range(F)]
    for (h, weights_y), row in zip(down, rows, strict=True):
        for (w, weights_x), column in zip(across, columns, strict=True):
            weights = (weights_y[:, None] * weights_x)[..., None]  # (Y, X, 1)
            pieces = decoder.frames(latent[:, :, h, w])
            for cells, piece in zip(chunks, pieces, strict=True):
                add_tile(np.array(piece) * weights, row, column, cells)
    chunks.reverse()
    while chunks:
        yield assemble(chunks.pop(), (H * stride, W * stride))


def add_tile(values: "np.ndarray", rows: list[Strip], columns: list[Strip], cells: Cells) -> None:
    """Add weighted frames (T, Y, X, 3) of one tile to the cells that it covers.

    Call it for tiles from top to bottom, each row from left to right: the order of the sum
    determines the rounding.
    """
    import numpy as np

    for row in rows:
        for column in columns:
            start, part = (row.start, column.start), values[:, row.inside, column.inside]
            total = cells.pop(start) + part if start in cells else part
            if row.last and column.last:
                # as `models.vae.vae.to_uint8`, but on the host
                cells[start] = np.rint((total + 1) * 127.5).astype(np.uint8)
            else:
                cells[start] = np.ascontiguousarray(total)


def assemble(cells: Cells, size: tuple[int, int]) -> "np.ndarray":
    """Assemble finished cells to frames (T, Y, X, 3)."""
    import numpy as np

    T = len(next(iter(cells.values())))
    frames = np.empty((T, *size, 3), np.uint8)
    for (y, x), cell in cells.items():
        frames[:, y : y + cell.shape[1], x : x + cell.shape[2]] = cell
    return frames
