"""VAE blocks that compute differently from the official code, against the official algorithm."""

from collections.abc import Iterator
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.conftest import relative_error
from wanpipe.models.config import VAEConfig
from wanpipe.models.layers import Linear
from wanpipe.models.vae import causal_conv, paths
from wanpipe.models.vae.blocks import ResidualBlock, Upsample
from wanpipe.models.vae.causal_conv import CausalCache, CausalConv, ConvBase
from wanpipe.models.vae.vae import Decoder, Encoder

SIZES = [(1, 3, 5), (4, 2, 2), (2, 6, 1)]
CONFIGS = {
    "2.1": VAEConfig(version="2.1", encoder_dim=4, decoder_dim=4, z_dim=16),
    "2.2": VAEConfig(version="2.2", encoder_dim=4, decoder_dim=4, z_dim=48),
}

Network = TypeVar("Network", bound=nn.Module)


def nearest(x: mx.array) -> mx.array:
    """Upsample (T, H, W, C) to twice the rows and columns by nearest neighbor."""
    return mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)


def official_dup_up(x: mx.array, outputs: int, factor_t: int) -> mx.array:
    """Compute `DupUp3D` as the official code does, with all copies."""
    T, H, W, C = x.shape
    x = mx.repeat(x, outputs * factor_t * 4 // C, axis=3).reshape(T, H, W, outputs, factor_t, 2, 2)
    return x.transpose(0, 4, 1, 5, 2, 6, 3).reshape(T * factor_t, 2 * H, 2 * W, outputs)


def upsample_layer(inputs: int, outputs: int, dtype: mx.Dtype = mx.float32) -> Upsample:
    layer = Upsample(inputs, outputs, temporal=False)
    layer.conv.weight = (mx.random.normal((outputs, 3, 3, inputs)) * 0.2).astype(dtype)
    layer.conv.bias = mx.random.normal((outputs,)).astype(dtype)
    return layer


def randomized(network: Network) -> Network:
    """Draw random weights for convolutions and linear layers."""
    for layer in network.modules():
        if isinstance(layer, ConvBase | Linear):
            layer.weight = mx.random.normal(layer.weight.shape) * 0.2
    return network


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_upsample_equals_a_convolution_of_the_upsampled_image(
    size: tuple[int, int, int], gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_conv, "is_gpu", lambda: gpu)
    layer, x = upsample_layer(8, 6), mx.random.normal((*size, 8))
    assert relative_error(layer(x, CausalCache()), layer.conv(nearest(x))) <= 3e-7


def test_upsample_in_bfloat16_adds_at_most_one_rounding() -> None:
    layer, x = upsample_layer(64, 32, mx.bfloat16), mx.random.normal((2, 12, 12, 64))
    x = x.astype(mx.bfloat16)
    exact = upsample_layer(64, 32)
    exact.conv.weight, exact.conv.bias = (
        value.astype(mx.float32) for value in (layer.conv.weight, layer.conv.bias)
    )
    reference = exact.conv(nearest(x.astype(mx.float32)))
    ours, plain = layer(x, CausalCache()), layer.conv(nearest(x))
    assert relative_error(plain.astype(mx.float32), reference) >= 2e-3
    error = relative_error(ours.astype(mx.float32), reference)
    assert error <= 1.3 * relative_error(plain.astype(mx.float32), reference)


def test_upsample_uses_new_weights() -> None:
    layer, x = upsample_layer(8, 6), mx.random.normal((1, 3, 5, 8))
    before = layer(x, CausalCache())
    layer.update({"conv": {"weight": 2 * layer.conv.weight, "bias": 2 * layer.conv.bias}})
    assert relative_error(layer(x, CausalCache()), 2 * before) <= 1e-6
    assert set(layer.parameters()) == {"conv"}


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 4), (8, 2)])
@pytest.mark.parametrize("factor_t", [1, 2])
def test_dup_up_matches_the_official_code(inputs: int, outputs: int, factor_t: int) -> None:
    x = mx.random.normal((2, 3, 5, inputs))
    ours = paths.dup_up(x, outputs, factor_t).reshape(2 * factor_t, 6, 10, outputs)
    assert mx.array_equal(ours, official_dup_up(x, outputs, factor_t))


def test_the_first_frame_is_convolved_with_zeros_before_it() -> None:
    layer, x = CausalConv(6, 5), mx.random.normal((1, 4, 3, 6))
    layer.weight = mx.random.normal(layer.weight.shape)
    padded = mx.concatenate([mx.zeros((2, 4, 3, 6)), x])
    reference = layer.without_bias(padded) + layer.bias
    assert relative_error(layer(x, CausalCache()), reference) <= 3e-7


def test_a_chunk_in_pieces_equals_the_whole_chunk() -> None:
    block, x = randomized(ResidualBlock(4, 6)), mx.random.normal((9, 3, 5, 4))
    wholes, pieces = CausalCache(), CausalCache()
    results = []
    for cache, ends in ((wholes, (1, 5, 9)), (pieces, (1, 2, 4, 5, 8, 9))):
        parts = []
        for start, end in zip((0, *ends), ends, strict=False):
            parts.append(cache.finish(block(x[start:end], cache)))
        results.append(mx.concatenate(parts))
    assert relative_error(results[1], results[0]) <= 3e-7


@pytest.mark.parametrize("version", CONFIGS)
def test_decoding_fewer_frames_at_once_gives_the_same_video(version: str) -> None:
    network = randomized(Decoder(CONFIGS[version]))
    latent = mx.random.normal((CONFIGS[version].z_dim, 3, 2, 3))
    whole = mx.concatenate(list(network.frames(latent)))
    for at_once in (1, 2):
        pieces = list(network.frames(latent, at_once))
        assert [len(piece) for piece in pieces] == [1, 4, 4]
        assert relative_error(mx.concatenate(pieces), whole) <= 1e-6


def test_all_layers_keep_the_dtype_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    original = CausalCache.evaluate

    def evaluate(cache: CausalCache, x: mx.array) -> mx.array:
        seen.update({x.dtype, *(frames.dtype for frames in cache._frames)})
        return original(cache, x)

    monkeypatch.setattr(CausalCache, "evaluate", evaluate)
    network = randomized(Decoder(CONFIGS["2.2"]))
    network.set_dtype(mx.bfloat16)
    cache = CausalCache()
    network.chunk(mx.zeros((1, 2, 3, 48)), cache)
    assert seen == {mx.bfloat16, mx.float32}  # only the pixels are float32
    assert {frames.dtype for frames in cache._frames} == {mx.bfloat16}
    assert {frames.dtype for frames in cache.nested._frames} == {mx.bfloat16}


class Counted:
    """A layer that counts how often it runs."""

    def __init__(self, layer: causal_conv.Layer, counts: list[int]) -> None:
        self.layer, self.counts, self.index = layer, counts, len(counts)
        counts.append(0)

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        self.counts[self.index] += 1
        return self.layer(x, cache)


def clip(image: mx.array, chunks: int, same: bool) -> Iterator[mx.array]:
    """Yield an image, then gray chunks: the same array each time if `same`, else new ones."""
    gray = mx.zeros((4, *image.shape[1:]))
    yield image
    for _ in range(chunks - 1):
        yield gray if same else mx.zeros_like(gray)


def counting(network: Encoder, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count in `counts` how often each layer of `network` runs."""
    original, wrapped = CausalCache.run_cached, []

    def run_cached(cache: CausalCache, layers: list[causal_conv.Layer], x: mx.array) -> mx.array:
        if not wrapped:
            wrapped.extend(Counted(layer, counts) for layer in layers)
        return original(cache, wrapped, x)

    monkeypatch.setattr(CausalCache, "run_cached", run_cached)


@pytest.mark.parametrize("version", CONFIGS)
def test_a_constant_clip_is_encoded_bit_for_bit_with_less_work(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomized(Encoder(CONFIGS[version]))
    image = mx.random.normal((1, 32, 32, 3))
    reference = network.encode(clip(image, 34, same=False))
    counts: list[int] = []
    counting(network, counts, monkeypatch)
    ours = network.encode(clip(image, 34, same=True))
    assert mx.array_equal(ours, reference)
    assert counts == sorted(counts)  # later layers become constant later
    assert counts[0] == 3  # the image, then gray twice: from then on the output is constant
    assert counts[-1] < 34


def test_a_clip_that_changes_again_is_encoded_correctly() -> None:
    network = randomized(Encoder(CONFIGS["2.1"]))
    image, other = mx.random.normal((1, 16, 16, 3)), mx.random.normal((4, 16, 16, 3))
    constant = list(clip(image, 9, same=True))
    copies = [mx.array(frames) for frames in constant]
    for video in (constant, copies):
        video += [other, video[-1], video[-1]]
    assert mx.array_equal(network.encode(constant), network.encode(mx.array(f) for f in copies))
