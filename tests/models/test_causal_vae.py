"""What the blocks compute in another way than the official code, against its way."""

from collections.abc import Iterator
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import pytest

from tests.conftest import relative_error
from wanpipe.models import causal_conv, vae22
from wanpipe.models.causal_conv import CausalConv, Kernel, Past
from wanpipe.models.causal_vae import ResidualBlock, Upsample
from wanpipe.models.config import VAEConfig
from wanpipe.models.layers import Linear
from wanpipe.models.vae import Encoder, decoder, encoder

SIZES = [(1, 3, 5), (4, 2, 2), (2, 6, 1)]
CONFIGS = {
    "2.1": VAEConfig(version="2.1", encoder_dim=4, decoder_dim=4, z_dim=16),
    "2.2": VAEConfig(version="2.2", encoder_dim=4, decoder_dim=4, z_dim=48),
}

Network = TypeVar("Network", bound=nn.Module)


def doubled(x: mx.array) -> mx.array:
    """Repeat every pixel of (T, H, W, C) in two rows and two columns, as nearest neighbours do."""
    return mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)


def duplicated(x: mx.array, outputs: int, time: int) -> mx.array:
    """`DupUp3D` step by step, all copies made."""
    T, H, W, C = x.shape
    x = mx.repeat(x, outputs * time * 4 // C, axis=3).reshape(T, H, W, outputs, time, 2, 2)
    return x.transpose(0, 4, 1, 5, 2, 6, 3).reshape(T * time, 2 * H, 2 * W, outputs)


def upsampling(inputs: int, outputs: int, dtype: mx.Dtype = mx.float32) -> Upsample:
    layer = Upsample(inputs, outputs, temporal=False)
    layer.conv.weight = (mx.random.normal((outputs, 3, 3, inputs)) * 0.2).astype(dtype)
    layer.conv.bias = mx.random.normal((outputs,)).astype(dtype)
    return layer


def randomised(network: Network) -> Network:
    """Give convolutions and products weights."""
    for layer in network.modules():
        if isinstance(layer, Kernel | Linear):
            layer.weight = mx.random.normal(layer.weight.shape) * 0.2
    return network


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_upsampling_is_a_convolution_of_the_doubled_image(
    size: tuple[int, int, int], gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_conv, "is_gpu", lambda: gpu)
    layer, x = upsampling(8, 6), mx.random.normal((*size, 8))
    assert relative_error(layer(x, Past()), layer.conv(doubled(x))) <= 3e-7


def test_upsampling_in_bfloat16_costs_at_most_one_rounding_more() -> None:
    layer, x = upsampling(64, 32, mx.bfloat16), mx.random.normal((2, 12, 12, 64))
    x = x.astype(mx.bfloat16)
    exact = upsampling(64, 32)
    exact.conv.weight, exact.conv.bias = (
        value.astype(mx.float32) for value in (layer.conv.weight, layer.conv.bias)
    )
    reference = exact.conv(doubled(x.astype(mx.float32)))
    ours, plain = layer(x, Past()), layer.conv(doubled(x))
    assert relative_error(plain.astype(mx.float32), reference) >= 2e-3
    error = relative_error(ours.astype(mx.float32), reference)
    assert error <= 1.3 * relative_error(plain.astype(mx.float32), reference)


def test_new_weights_are_upsampled_with() -> None:
    layer, x = upsampling(8, 6), mx.random.normal((1, 3, 5, 8))
    before = layer(x, Past())
    layer.update({"conv": {"weight": 2 * layer.conv.weight, "bias": 2 * layer.conv.bias}})
    assert relative_error(layer(x, Past()), 2 * before) <= 1e-6
    assert set(layer.parameters()) == {"conv"}


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 4), (8, 2)])
@pytest.mark.parametrize("time", [1, 2])
def test_duplicates_are_those_of_the_official_code(inputs: int, outputs: int, time: int) -> None:
    x = mx.random.normal((2, 3, 5, inputs))
    ours = vae22.duplicates(x, outputs, time).reshape(2 * time, 6, 10, outputs)
    assert mx.array_equal(ours, duplicated(x, outputs, time))


def test_the_first_frame_is_convolved_as_if_zeros_were_before_it() -> None:
    layer, x = CausalConv(6, 5), mx.random.normal((1, 4, 3, 6))
    layer.weight = mx.random.normal(layer.weight.shape)
    padded = mx.concatenate([mx.zeros((2, 4, 3, 6)), x])
    reference = layer.products(padded) + layer.bias
    assert relative_error(layer(x, Past()), reference) <= 3e-7


def test_a_chunk_in_pieces_gives_what_it_gives_whole() -> None:
    block, x = randomised(ResidualBlock(4, 6)), mx.random.normal((9, 3, 5, 4))
    wholes, pieces = Past(), Past()
    results = []
    for past, ends in ((wholes, (1, 5, 9)), (pieces, (1, 2, 4, 5, 8, 9))):
        parts = []
        for start, end in zip((0, *ends), ends, strict=False):
            parts.append(past.end(block(x[start:end], past)))
        results.append(mx.concatenate(parts))
    assert relative_error(results[1], results[0]) <= 3e-7


@pytest.mark.parametrize("version", CONFIGS)
def test_frames_of_a_chunk_can_be_decoded_fewer_at_once(version: str) -> None:
    network = randomised(decoder(CONFIGS[version]))
    latent = mx.random.normal((CONFIGS[version].z_dim, 3, 2, 3))
    whole = mx.concatenate(list(network.frames(latent)))
    for at_once in (1, 2):
        pieces = list(network.frames(latent, at_once))
        assert [len(piece) for piece in pieces] == [1, 4, 4]
        assert relative_error(mx.concatenate(pieces), whole) <= 1e-6


def test_every_layer_keeps_the_dtype_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    original = Past.evaluated

    def evaluated(past: Past, x: mx.array) -> mx.array:
        seen.update({x.dtype, *(frames.dtype for frames in past._frames)})
        return original(past, x)

    monkeypatch.setattr(Past, "evaluated", evaluated)
    network = randomised(decoder(CONFIGS["2.2"]))
    network.set_dtype(mx.bfloat16)
    past = Past()
    network.chunk(mx.zeros((1, 2, 3, 48)), past)
    assert seen == {mx.bfloat16, mx.float32}  # float32 are the pixels, which come last
    assert {frames.dtype for frames in past._frames} == {mx.bfloat16}
    assert {frames.dtype for frames in past.later._frames} == {mx.bfloat16}


class Counted:
    """A layer that counts how often it runs."""

    def __init__(self, layer: causal_conv.Layer, counts: list[int]) -> None:
        self.layer, self.counts, self.place = layer, counts, len(counts)
        counts.append(0)

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        self.counts[self.place] += 1
        return self.layer(x, past)


def clip(image: mx.array, chunks: int, same: bool) -> Iterator[mx.array]:
    """An image, then grey frames: one array again and again if `same`, else new ones."""
    grey = mx.zeros((4, *image.shape[1:]))
    yield image
    for _ in range(chunks - 1):
        yield grey if same else mx.zeros_like(grey)


def counting(network: Encoder, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count in `counts` how often each layer of `network` runs from now on."""
    original, known = Past.run_still, {}

    def run_still(past: Past, layers: list[causal_conv.Layer], x: mx.array) -> mx.array:
        if not known:
            known["layers"] = [Counted(layer, counts) for layer in layers]
        return original(past, known["layers"], x)

    monkeypatch.setattr(Past, "run_still", run_still)


@pytest.mark.parametrize("version", CONFIGS)
def test_a_clip_that_stands_still_is_encoded_bit_for_bit_with_less_work(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomised(encoder(CONFIGS[version]))
    image = mx.random.normal((1, 32, 32, 3))
    reference = network.encode(clip(image, 34, same=False))
    counts: list[int] = []
    counting(network, counts, monkeypatch)
    ours = network.encode(clip(image, 34, same=True))
    assert mx.array_equal(ours, reference)
    assert counts == sorted(counts)  # later layers settle later
    assert counts[0] == 3  # the image, grey, and grey once more, after which nothing is left to do
    assert counts[-1] < 34


def test_a_clip_that_moves_again_is_encoded_as_ever() -> None:
    network = randomised(encoder(CONFIGS["2.1"]))
    image, other = mx.random.normal((1, 16, 16, 3)), mx.random.normal((4, 16, 16, 3))
    still = list(clip(image, 9, same=True))
    copies = [mx.array(frames) for frames in still]
    for video in (still, copies):
        video += [other, video[-1], video[-1]]
    assert mx.array_equal(network.encode(still), network.encode(mx.array(f) for f in copies))
