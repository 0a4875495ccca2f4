"""Decodes a latent in overlapping spatial tiles, blended linearly: less memory for activations,
nearly the same pixels.

Every tile keeps its own causal past, so frames still come slice by slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from wanpipe.models.vae import Decoder

from wanpipe.geometry import OVERLAP, TILE


@dataclass(frozen=True)
class Span:
    """Latent rows or columns [start, stop) of one tile."""

    start: int
    stop: int


def spans(size: int, stride: int) -> list[Span]:
    """Cut `size` latent rows or columns into tiles that overlap; one span where it fits in one
    tile.
    """
    tile, step = TILE // stride, (TILE - OVERLAP) // stride
    starts = list(range(0, max(size - tile, 0) + 1, step))
    if starts[-1] + tile < size:
        starts.append(size - tile)
    return [Span(start, min(start + tile, size)) for start in starts]


def weights(span: Span, size: int, stride: int) -> mx.array:
    """Blending weights of a tile's pixels along one axis: a ramp over the overlap at each inner
    end, else 1.
    """
    position = mx.arange((span.stop - span.start) * stride, dtype=mx.float32) + 0.5
    before = position / OVERLAP if span.start else mx.full(position.shape, 1.0)
    after = (
        (position.size - position) / OVERLAP if span.stop < size else mx.full(position.shape, 1.0)
    )
    return mx.clip(mx.minimum(before, after), 0, 1)


def frames(decoder: "Decoder", latent: mx.array, stride: int) -> Iterator[mx.array]:
    """Decode a latent (C, F, H, W) tile by tile to blended slices (T, Y, X, 3) in [-1, 1]."""
    _, _, H, W = latent.shape
    tiles = [(rows, columns) for rows in spans(H, stride) for columns in spans(W, stride)]
    streams = [
        decoder.frames(latent[:, :, rows.start : rows.stop, columns.start : columns.stop])
        for rows, columns in tiles
    ]
    masks = [
        weights(rows, H, stride)[:, None, None] * weights(columns, W, stride)[None, :, None]
        for rows, columns in tiles
    ]
    for pieces in zip(*streams, strict=True):
        total = mx.zeros((len(pieces[0]), H * stride, W * stride, 3))
        norm = mx.zeros((H * stride, W * stride, 1))
        for (rows, columns), piece, mask in zip(tiles, pieces, masks, strict=True):
            area = (
                slice(rows.start * stride, rows.stop * stride),
                slice(columns.start * stride, columns.stop * stride),
            )
            total[:, area[0], area[1]] += piece * mask
            norm[area[0], area[1]] += mask
            mx.eval(total, norm)
        yield total / norm
