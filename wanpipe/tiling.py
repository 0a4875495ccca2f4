"""Decodes a latent in overlapping spatial tiles, blended linearly: less memory on the device,
nearly the same pixels.

A tile is decoded from its first frame to its last before the next is begun, so that the frames kept
from chunk to chunk are those of one tile. What is done waits in the host's memory, the whole film.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from wanpipe.models.vae import Decoder

from wanpipe.geometry import OVERLAP, TILE

Ramp = tuple[slice, np.ndarray]  # latent rows or columns of a tile, and weights of their pixels


def spans(size: int, tile: int, step: int) -> list[slice]:
    """Cut `size` latent rows or columns into spans of `tile`, each `step` or less after another."""
    last = max(size - tile, 0)
    return [slice(start, min(start + tile, size)) for start in [*range(0, last, step), last]]


def ramps(size: int, stride: int, tile: int, overlap: int) -> list[Ramp]:
    """Cut `size` latent rows or columns into tiles of `tile` pixels; weights add up to one.

    Where two overlap, the weight of the one falls as that of the other rises. An eighth of the
    overlap at each inner end counts for nothing: those pixels know least of what is beyond.
    """
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


def frames(
    decoder: "Decoder", latent: mx.array, stride: int, tile: int = TILE, overlap: int = OVERLAP
) -> Iterator[mx.array]:
    """Decode a latent (C, F, H, W) tile by tile to blended slices (T, Y, X, 3) in [-1, 1].

    `stride`, `tile` and `overlap` are pixels; the latter two multiples of `stride`.
    """
    _, F, H, W = latent.shape
    slices = [np.zeros((4 if f else 1, H * stride, W * stride, 3), np.float32) for f in range(F)]
    for rows, down in ramps(H, stride, tile, overlap):
        for columns, across in ramps(W, stride, tile, overlap):
            mask = (down[:, None] * across)[..., None]
            y, x = rows.start * stride, columns.start * stride
            for whole, piece in zip(
                slices, decoder.frames(latent[:, :, rows, columns]), strict=True
            ):
                whole[:, y : y + len(down), x : x + len(across)] += np.array(piece) * mask
    for whole in slices:
        yield mx.array(whole)
