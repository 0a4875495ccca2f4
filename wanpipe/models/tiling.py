"""Decodes a latent in overlapping spatial tiles, blended linearly: less memory on the device,
nearly the same pixels.

A tile is decoded from its first frame to its last before the next is begun, so that the frames kept
from chunk to chunk are those of one tile. Until the last tile is done the host keeps the film: as
bytes the pixels that no later tile covers, as float32 sums those that one does (see `kept`).
Loads no array library before it decodes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from wanpipe.models.geometry import OVERLAP, TILE, Triple

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from wanpipe.models.vae import Decoder

FULL = 4  # bytes of a float32
Ramp = tuple[slice, "np.ndarray"]  # latent rows or columns of a tile, and weights of their pixels
Cells = dict[tuple[int, int], "np.ndarray"]  # by their first row and column: bytes, or sums


class Strip(NamedTuple):
    """Rows or columns of pixels that lie in the same tiles.

    They begin at `start` in the film and at `inside` in one of these tiles, which is the `last` of
    them or not.
    """

    start: int
    inside: slice
    last: bool


def spans(size: int, tile: int, step: int) -> list[slice]:
    """Cut `size` latent rows or columns into spans of `tile`, each `step` or less after another."""
    last = max(size - tile, 0)
    return [slice(start, min(start + tile, size)) for start in [*range(0, last, step), last]]


def ramps(size: int, stride: int, tile: int, overlap: int) -> list[Ramp]:
    """Cut `size` latent rows or columns into tiles of `tile` pixels; weights add up to one.

    Where two overlap, the weight of the one falls as that of the other rises. An eighth of the
    overlap at each inner end counts for nothing: those pixels know least of what is beyond.
    """
    import numpy as np

    margin = overlap / 8
    places = spans(size, tile // stride, (tile - overlap) // stride)
    weights = np.zeros((len(places), size * stride), np.float32)
    for row, place in zip(weights, places, strict=True):
        pixels = np.arange((place.stop - place.start) * stride) + 0.5
        ramp = np.clip((pixels - margin) / (overlap - 2 * margin), 0, 1)
        before, after = ramp if place.start else 1, ramp[::-1] if place.stop < size else 1
        row[place.start * stride : place.stop * stride] = np.minimum(before, after)
    weights /= weights.sum(axis=0)
    return [
        (place, row[place.start * stride : place.stop * stride])
        for place, row in zip(places, weights, strict=True)
    ]


def strips(places: Sequence[slice], stride: int) -> list[list[Strip]]:
    """Cut the rows or columns of every tile wherever another tile begins or ends."""
    ends = sorted({end for place in places for end in (place.start, place.stop)})
    return [
        [
            Strip(
                start=start * stride,
                inside=slice((start - place.start) * stride, (stop - place.start) * stride),
                last=number + 1 == len(places) or start < places[number + 1].start,
            )
            for start, stop in pairwise(ends)
            if place.start <= start < place.stop
        ]
        for number, place in enumerate(places)
    ]


def kept(latent: Triple, stride: int, tile: int = TILE, overlap: int = OVERLAP) -> int:
    """Count the bytes that `frames` keeps on the host at most for a latent (F, H, W)."""
    F, H, W = latent
    rows, columns = (spans(side, tile // stride, (tile - overlap) // stride) for side in (H, W))
    most, above = 0, 0
    for row, next_row in zip_longest(rows, rows[1:]):
        below = H if next_row is None else next_row.start
        for column, next_column in zip_longest(columns, columns[1:]):
            done = W if next_column is None else next_column.start
            whole = row.start * W + (below - row.start) * done  # bytes
            sums = (row.stop - below) * done  # where the next row of tiles overlaps this one
            sums += (row.stop - row.start) * (column.stop - done)  # and the next tile does
            sums += above * (W - column.stop)  # and this row the one above
            most = max(most, whole + FULL * sums)
        above = row.stop - below
    return 3 * (4 * (F - 1) + 1) * stride**2 * most


def frames(
    decoder: "Decoder", latent: "mx.array", stride: int, tile: int = TILE, overlap: int = OVERLAP
) -> "Iterator[np.ndarray]":
    """Decode a latent (C, F, H, W) tile by tile to blended slices (T, Y, X, 3) of bytes.

    `stride`, `tile` and `overlap` are pixels; the latter two multiples of `stride`.
    """
    import numpy as np

    _, F, H, W = latent.shape
    downs, acrosses = (ramps(side, stride, tile, overlap) for side in (H, W))
    rows, columns = (strips([place for place, _ in way], stride) for way in (downs, acrosses))
    cells: list[Cells] = [{} for _ in range(F)]
    for (down, above), row in zip(downs, rows, strict=True):
        for (across, left), column in zip(acrosses, columns, strict=True):
            weights = (above[:, None] * left)[..., None]
            pieces = decoder.frames(latent[:, :, down, across])
            for some, piece in zip(cells, pieces, strict=True):
                add(np.array(piece) * weights, row, column, some)
    cells.reverse()
    while cells:
        yield assembled(cells.pop(), (H * stride, W * stride))


def add(values: "np.ndarray", rows: list[Strip], columns: list[Strip], cells: "Cells") -> None:
    """Add a tile's part of a slice, (T, Y, X, 3) in [-1, 1], to the cells that it covers.

    Sums are those of the tiles one after another, rows of tiles from above and each from the left:
    in another order they would round to other bytes.
    """
    import numpy as np

    for row in rows:
        for column in columns:
            place, part = (row.start, column.start), values[:, row.inside, column.inside]
            total = cells.pop(place) + part if place in cells else part
            if row.last and column.last:
                # what `models.vae.as_bytes` computes, here on the host
                cells[place] = np.rint((total + 1) * 127.5).astype(np.uint8)
            else:
                cells[place] = np.ascontiguousarray(total)


def assembled(cells: "Cells", size: tuple[int, int]) -> "np.ndarray":
    """Join the cells of a slice, all of them bytes, to frames (T, Y, X, 3)."""
    import numpy as np

    count = len(next(iter(cells.values())))
    whole = np.empty((count, *size, 3), np.uint8)
    for (y, x), cell in cells.items():
        whole[:, y : y + cell.shape[1], x : x + cell.shape[2]] = cell
    return whole
