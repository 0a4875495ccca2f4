"""Tiled decoding: positions and weights of tiles, blended frames, and host memory."""

import tracemalloc
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from bench.weights import Random
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.models.config import VAEConfig
from wanpipe.models.vae import tiling, vae

CONFIG = VAEConfig(version="2.1", encoder_dim=4, decoder_dim=4, z_dim=16)


class Enlarging:
    """A decoder that repeats latents, so that a tile does not depend on its surroundings."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def frames(self, latent: mx.array) -> Iterator[mx.array]:
        self.shapes.append(latent.shape)
        for f in range(latent.shape[1]):
            x = mx.repeat(mx.repeat(latent[:3, f], 8, axis=1), 8, axis=2).transpose(1, 2, 0)
            yield mx.broadcast_to(x[None], (1 if f == 0 else 4, *x.shape))


class Noise:
    """A decoder of different noise in each tile, so that the order of sums matters."""

    def __init__(self) -> None:
        self.tiles = 0

    def frames(self, latent: mx.array) -> Iterator[mx.array]:
        self.tiles += 1
        _, F, H, W = latent.shape
        for f in range(F):
            key = mx.random.key(1000 * self.tiles + f)
            yield mx.random.uniform(-1, 1, (4 if f else 1, 8 * H, 8 * W, 3), key=key)


def blended(decoder: Noise, latent: mx.array, tile: int, overlap: int) -> np.ndarray:
    """Blend tiles as float32 sums of the whole video, then round."""
    _, F, H, W = latent.shape
    chunks = [np.zeros((4 if f else 1, 8 * H, 8 * W, 3), np.float32) for f in range(F)]
    for rows, down in tiling.ramps(H, 8, tile, overlap):
        for columns, across in tiling.ramps(W, 8, tile, overlap):
            mask = (down[:, None] * across)[..., None]
            y, x = 8 * rows.start, 8 * columns.start
            pieces = decoder.frames(latent[:, :, rows, columns])
            for whole, piece in zip(chunks, pieces, strict=True):
                whole[:, y : y + len(down), x : x + len(across)] += np.array(piece) * mask
    return vae.video_uint8(map(mx.array, chunks))


@pytest.mark.parametrize("size", [3, 8, 9, 20, 21, 33])
def test_tiles_cover_all_pixels_and_their_weights_sum_to_one(size: int) -> None:
    total = np.zeros(size * 8)
    for span, weights in tiling.ramps(size, 8, tile=64, overlap=16):
        assert span.stop - span.start == min(size, 8)
        assert len(weights) == 8 * (span.stop - span.start)
        total[span.start * 8 : span.stop * 8] += weights
    assert total == pytest.approx(1, abs=1e-6)


def test_pixels_at_the_inner_edge_of_a_tile_have_weight_zero() -> None:
    (_, first), (_, last) = tiling.ramps(14, 8, tile=64, overlap=16)
    assert first[0] == last[-1] == 1
    assert first[-2:].tolist() == last[:2].tolist() == [0, 0]


def test_tiles_of_an_exact_decoder_blend_without_error() -> None:
    decoder, latent = Enlarging(), mx.random.uniform(-1, 1, (16, 2, 11, 13), key=mx.random.key(1))
    whole = mx.concatenate(list(decoder.frames(latent)))
    pieces = list(tiling.decode(decoder, latent, 8, tile=48, overlap=16))  # type: ignore[arg-type]
    assert [len(piece) for piece in pieces] == [1, 4]
    off = (np.array(whole) + 1) * 127.5 - np.concatenate(pieces)
    assert np.abs(off).max() <= 0.5001
    assert set(decoder.shapes[1:]) == {(16, 2, 6, 6)}


# the last rows and columns are in one tile, two or three
@pytest.mark.parametrize("size", [(6, 6), (11, 6), (5, 14), (10, 13), (11, 15), (19, 12)])
def test_blended_tiles_equal_the_rounded_sum_of_all_tiles(size: tuple[int, int]) -> None:
    latent = mx.zeros((16, 3, *size))
    pieces = list(tiling.decode(Noise(), latent, 8, tile=48, overlap=16))  # type: ignore[arg-type]
    assert [(len(piece), piece.dtype) for piece in pieces] == [(n, np.uint8) for n in (1, 4, 4)]
    assert np.array_equal(np.concatenate(pieces), blended(Noise(), latent, 48, 16))


def test_tiles_round_every_value_as_whole_frames_do() -> None:
    ties = (np.arange(2**16, dtype=np.float32) / 2**7 - 256) / np.float32(
        127.5
    )  # includes those between uint8
    values = np.concatenate([np.clip(ties, -1, 1), np.linspace(-1, 1, 2**16, dtype=np.float32)])
    values = np.stack([values, np.nextafter(values, 0), np.nextafter(values, 2 * values)], axis=1)
    cells: tiling.Cells = {}
    one = [tiling.Strip(start=0, inside=slice(None), last=True)]
    tiling.add_tile(values[None, None], one, one, cells)
    assert np.array_equal(cells[0, 0], np.array(vae.to_uint8(mx.array(values)))[None, None])


def test_a_single_tile_equals_the_whole_frame() -> None:
    decoder, latent = vae.Decoder(CONFIG), mx.random.normal((16, 2, 4, 3))
    rules = vae_rules.RULES_21_DECODER
    Random(decoder, rules, dtype="F32").fill(decoder, mx.float32)
    whole = vae.video_uint8(decoder.frames(latent))
    assert len(np.unique(whole)) > 100
    assert np.array_equal(np.concatenate(list(tiling.decode(decoder, latent, 8))), whole)


@pytest.mark.parametrize("size", [(16, 16), (12, 52), (52, 12), (20, 30), (29, 40), (38, 52)])
def test_host_memory_is_as_computed(size: tuple[int, int]) -> None:
    """Measures the allocations of NumPy, which other processes do not affect."""
    latent, tile = mx.zeros((16, 21, *size)), {"tile": 96, "overlap": 32}
    frames = 3 * 4 * 8 * 8 * size[0] * size[1]  # four, as uint8
    tracemalloc.start()
    try:
        for piece in tiling.decode(Noise(), latent, 8, **tile):  # type: ignore[arg-type]
            del piece
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = tiling.host_bytes((21, *size), 8, **tile)
    work = 3 * 4 * 96 * 96 * 3 * 4 + frames  # the values of a tile, and four assembled frames
    assert 0.85 * expected < peak < 1.1 * expected + work, (expected / 1e6, peak / 1e6)
