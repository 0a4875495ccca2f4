"""Tiles: where they lie, how they are blended, how near they come to whole frames."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from wanpipe import tiling
from wanpipe.config import VAEConfig
from wanpipe.models import vae

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
    decoder, latent = Enlarging(), mx.random.normal((16, 2, 11, 13), key=mx.random.key(1))
    whole = mx.concatenate(list(decoder.frames(latent)))
    pieces = list(tiling.frames(decoder, latent, 8, tile=48, overlap=16))  # type: ignore[arg-type]
    assert [len(piece) for piece in pieces] == [1, 4]
    assert np.abs(np.array(mx.concatenate(pieces) - whole)).max() <= 1e-6
    assert set(decoder.shapes[1:]) == {(16, 2, 6, 6)}


def test_one_tile_is_the_whole_frame() -> None:
    decoder, latent = vae.decoder(CONFIG), mx.random.normal((16, 2, 4, 3))
    whole = list(decoder.frames(latent))
    for ours, reference in zip(tiling.frames(decoder, latent, 8), whole, strict=True):
        assert mx.array_equal(ours, reference)
