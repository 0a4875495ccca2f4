"""Tiles: where they lie, how they are blended, how near they come to whole frames, what is kept."""

import tracemalloc
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from bench.weights import Random
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.models import tiling, vae
from wanpipe.models.config import VAEConfig

CONFIG = VAEConfig(version="2.1", encoder_dim=4, decoder_dim=4, z_dim=16)


class Enlarging:
    """A decoder that repeats latents: what a tile shows does not depend on what is beyond it."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def frames(self, latent: mx.array) -> Iterator[mx.array]:
        self.shapes.append(latent.shape)
        for f in range(latent.shape[1]):
            x = mx.repeat(mx.repeat(latent[:3, f], 8, axis=1), 8, axis=2).transpose(1, 2, 0)
            yield mx.broadcast_to(x[None], (1 if f == 0 else 4, *x.shape))


class Noise:
    """A decoder whose pixels are noise, other noise in every tile: any order of sums shows."""

    def __init__(self) -> None:
        self.tiles = 0

    def frames(self, latent: mx.array) -> Iterator[mx.array]:
        self.tiles += 1
        _, F, H, W = latent.shape
        for f in range(F):
            key = mx.random.key(1000 * self.tiles + f)
            yield mx.random.uniform(-1, 1, (4 if f else 1, 8 * H, 8 * W, 3), key=key)


def plain(decoder: Noise, latent: mx.array, tile: int, overlap: int) -> np.ndarray:
    """Blend tiles as float32 sums of the whole film, then round."""
    _, F, H, W = latent.shape
    slices = [np.zeros((4 if f else 1, 8 * H, 8 * W, 3), np.float32) for f in range(F)]
    for rows, down in tiling.ramps(H, 8, tile, overlap):
        for columns, across in tiling.ramps(W, 8, tile, overlap):
            mask = (down[:, None] * across)[..., None]
            y, x = 8 * rows.start, 8 * columns.start
            pieces = decoder.frames(latent[:, :, rows, columns])
            for whole, piece in zip(slices, pieces, strict=True):
                whole[:, y : y + len(down), x : x + len(across)] += np.array(piece) * mask
    return vae.joined(map(mx.array, slices))


@pytest.mark.parametrize("size", [3, 8, 9, 20, 21, 33])
def test_tiles_cover_everything_and_weigh_one_everywhere(size: int) -> None:
    total = np.zeros(size * 8)
    for place, weights in tiling.ramps(size, 8, tile=64, overlap=16):
        assert place.stop - place.start == min(size, 8)
        assert len(weights) == 8 * (place.stop - place.start)
        total[place.start * 8 : place.stop * 8] += weights
    assert total == pytest.approx(1, abs=1e-6)


def test_pixels_at_the_inner_end_of_a_tile_count_for_nothing() -> None:
    (_, first), (_, last) = tiling.ramps(14, 8, tile=64, overlap=16)
    assert first[0] == last[-1] == 1
    assert first[-2:].tolist() == last[:2].tolist() == [0, 0]


def test_tiles_of_an_exact_decoder_join_without_a_trace() -> None:
    decoder, latent = Enlarging(), mx.random.uniform(-1, 1, (16, 2, 11, 13), key=mx.random.key(1))
    whole = mx.concatenate(list(decoder.frames(latent)))
    pieces = list(tiling.frames(decoder, latent, 8, tile=48, overlap=16))  # type: ignore[arg-type]
    assert [len(piece) for piece in pieces] == [1, 4]
    off = (np.array(whole) + 1) * 127.5 - np.concatenate(pieces)
    assert np.abs(off).max() <= 0.5001
    assert set(decoder.shapes[1:]) == {(16, 2, 6, 6)}


# the last rows and columns lie in one tile, two or three
@pytest.mark.parametrize("size", [(6, 6), (11, 6), (5, 14), (10, 13), (11, 15), (19, 12)])
def test_blended_tiles_are_byte_for_byte_the_rounded_sum_of_all(size: tuple[int, int]) -> None:
    latent = mx.zeros((16, 3, *size))
    pieces = list(tiling.frames(Noise(), latent, 8, tile=48, overlap=16))  # type: ignore[arg-type]
    assert [(len(piece), piece.dtype) for piece in pieces] == [(n, np.uint8) for n in (1, 4, 4)]
    assert np.array_equal(np.concatenate(pieces), plain(Noise(), latent, 48, 16))


def test_every_value_becomes_the_byte_that_whole_frames_give() -> None:
    ties = (np.arange(2**16, dtype=np.float32) / 2**7 - 256) / np.float32(127.5)  # of bytes too
    values = np.concatenate([np.clip(ties, -1, 1), np.linspace(-1, 1, 2**16, dtype=np.float32)])
    values = np.stack([values, np.nextafter(values, 0), np.nextafter(values, 2 * values)], axis=1)
    cells: tiling.Cells = {}
    one = [tiling.Strip(start=0, inside=slice(None), last=True)]
    tiling.add(values[None, None], one, one, cells)
    assert np.array_equal(cells[0, 0], np.array(vae.as_bytes(mx.array(values)))[None, None])


def test_one_tile_is_the_whole_frame() -> None:
    decoder, latent = vae.decoder(CONFIG), mx.random.normal((16, 2, 4, 3))
    rows = vae_rules.ROWS_21_DECODER
    Random(decoder, rows, dtype="F32").fill(decoder, mx.float32)
    whole = vae.joined(decoder.frames(latent))
    assert len(np.unique(whole)) > 100
    assert np.array_equal(np.concatenate(list(tiling.frames(decoder, latent, 8))), whole)


@pytest.mark.parametrize("size", [(16, 16), (12, 52), (52, 12), (20, 30), (29, 40), (38, 52)])
def test_the_host_keeps_what_is_counted(size: tuple[int, int]) -> None:
    """Counts what NumPy allocates, which no other work on the machine changes."""
    latent, tile = mx.zeros((16, 21, *size)), {"tile": 96, "overlap": 32}
    frame = 3 * 4 * 8 * 8 * size[0] * size[1]  # a slice, of bytes
    tracemalloc.start()
    try:
        for piece in tiling.frames(Noise(), latent, 8, **tile):  # type: ignore[arg-type]
            del piece
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    told = tiling.kept((21, *size), 8, **tile)
    at_work = 3 * 4 * 96 * 96 * 3 * 4 + frame  # the values of a tile, and the slice that is joined
    assert 0.85 * told < peak < 1.1 * told + at_work, (told / 1e6, peak / 1e6)
