"""The cost model of the VAE against the networks: FLOPs, weights, cache and peak memory."""

from collections.abc import Iterator
from math import prod
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from bench.sizes import VAE_21, VAE_22
from tests.models.official import allocated, on_the_cpu
from wanpipe.models import layers
from wanpipe.models.config import TinyVAEConfig, VAEConfig
from wanpipe.models.vae import blocks, causal_conv, tiny, vae
from wanpipe.models.vae.causal_conv import CausalCache
from wanpipe.pipeline.vae_cost import Part, chunk_ops, cost

CONFIGS = {
    "2.1": VAEConfig(version="2.1", encoder_dim=16, decoder_dim=16, z_dim=16),
    "2.2": VAEConfig(version="2.2", encoder_dim=16, decoder_dim=32, z_dim=48),
}
TINY = TinyVAEConfig(z_dim=16, widths=(64, 32, 16, 16), patch_size=1)
CONVOLUTIONS = {"causal", "frame", "polyphase", "time", "down"}
parts = pytest.mark.parametrize("part", ["decoder", "encoder"])
versions = pytest.mark.parametrize("version", CONFIGS)


def network(config: VAEConfig, part: Part) -> Any:
    net = (vae.Decoder if part == "decoder" else vae.Encoder)(config)
    net.set_dtype(mx.bfloat16)
    mx.eval(net.parameters())
    return net


def run(net: Any, part: Part, config: VAEConfig, shape: tuple[int, int, int], at_once: int) -> None:
    F, H, W = shape
    if part == "decoder":
        for _ in net.frames(mx.zeros((config.z_dim, *shape)), at_once):
            pass
    else:
        sides = (H * config.stride[1], W * config.stride[2], 3)
        mx.eval(net.encode(mx.zeros((1 if f == 0 else 4, *sides)) for f in range(F)))


@versions
@parts
def test_flops_match_the_convolutions_that_run(
    version: str, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    actual: list[float] = []
    original = causal_conv.convolve

    def convolve(x: mx.array, weight: mx.array, *rest: Any) -> mx.array:
        y = original(x, weight, *rest)
        actual.append(2.0 * y.size * prod(weight.shape[1:]))
        return y

    for module in (causal_conv, blocks):
        monkeypatch.setattr(module, "convolve", convolve)
    config, shape = CONFIGS[version], (2, 2, 3)
    run(network(config, part), part, config, shape, 4)
    chunks = [chunk_ops(config, part, shape, first, 4) for first in (True, False)]
    ops = [op for chunk in chunks for op in chunk if op.kind in CONVOLUTIONS]
    assert sorted(actual) == sorted(op.flops for op in ops if op.positions)


@versions
@parts
def test_cache_and_weights_match_the_network(version: str, part: Part) -> None:
    config, shape = CONFIGS[version], (2, 2, 3)
    net, cache = network(config, part), CausalCache()
    for frames in (1, 1) if part == "decoder" else (1, 4):
        factor = 1 if part == "decoder" else config.stride[1]
        channels = config.z_dim if part == "decoder" else 3
        net.chunk(mx.zeros((frames, 2 * factor, 3 * factor, channels)), cache)
    cached = sum(frames.nbytes for frames in (*cache._frames, *cache.nested._frames))
    expected = cost(config, part, shape, 2)
    assert expected.cache == cached
    named: Any = tree_flatten(net.parameters())
    weights = sum(value.nbytes for name, value in named if not name.endswith("gamma"))
    ups = [layer for layer in net.modules() if isinstance(layer, blocks.Upsample)]
    derived = sum(layer._polyphase(layer.conv.weight).nbytes for layer in ups)
    assert expected.weights == weights + derived


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every kernel allocate one array, as on a GPU, whatever its values."""

    def convolution(x: mx.array, weight: mx.array, stride: Any, padding: Any) -> mx.array:
        sides = zip(x.shape[1:-1], *padding, weight.shape[1:-1], stride, strict=True)
        positions = [(n + low + high - k) // s + 1 for n, low, high, k, s in sides]
        first = mx.as_strided(x, (1,) * x.ndim, (1,) * x.ndim)
        return mx.contiguous(mx.broadcast_to(first, (len(x), *positions, len(weight))))

    for module in (causal_conv, layers):
        monkeypatch.setattr(module, "is_gpu", lambda: True)
    monkeypatch.setattr(causal_conv, "SMALL_RESULTS", 0)  # as if the frames were large
    monkeypatch.setattr(mx, "conv_general", convolution)
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *_: -x)
    for module, name in (
        (causal_conv, "sum_terms"),
        (blocks, "sum_terms"),
        (causal_conv, "scale_silu"),
        (causal_conv, "scale"),
    ):
        monkeypatch.setattr(module, name, lambda x, *_, dtype: -x)
    yield
    mx.reset_peak_memory()


@on_the_cpu
@pytest.mark.usefixtures("kernels")
@versions
@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 20, 26)])
@pytest.mark.parametrize(("part", "at_once"), [("decoder", 4), ("decoder", 1), ("encoder", 4)])
def test_peak_memory_is_what_mlx_allocates(
    version: str, part: Part, at_once: int, shape: tuple[int, int, int]
) -> None:
    config = CONFIGS[version]
    net = network(config, part)
    run(net, part, config, shape, at_once)
    weights = sum(value.nbytes for _, value in tree_flatten(net.parameters()))
    most = allocated(lambda: run(net, part, config, shape, at_once))
    peak = cost(config, part, shape, 2, at_once).peak
    assert weights + most == pytest.approx(peak, rel=0.15)


def tiny_network(config: TinyVAEConfig) -> tiny.Decoder:
    net = tiny.Decoder(config)
    net.set_dtype(mx.bfloat16)
    mx.eval(net.parameters())
    return net


def run_tiny(net: tiny.Decoder, shape: tuple[int, int, int]) -> None:
    for _ in net.frames(mx.zeros((TINY.z_dim, *shape))):
        pass


def test_flops_of_the_tiny_decoder_match_the_convolutions_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actual: list[float] = []
    original = causal_conv.convolve

    def convolve(x: mx.array, weight: mx.array, *rest: Any) -> mx.array:
        y = original(x, weight, *rest)
        actual.append(2.0 * y.size * prod(weight.shape[1:]))
        return y

    for module in (causal_conv, tiny):
        monkeypatch.setattr(module, "convolve", convolve)
    run_tiny(tiny_network(TINY), (2, 2, 3))
    assert sum(actual) == cost(TINY, "decoder", (2, 2, 3), 2).flops


def test_cache_and_weights_of_the_tiny_decoder_match_the_network() -> None:
    net, cache = tiny_network(TINY), CausalCache()
    net.chunk(mx.zeros((1, 2, 3, TINY.z_dim), mx.bfloat16), cache)
    expected = cost(TINY, "decoder", (2, 2, 3), 2)
    assert expected.cache == sum(frames.nbytes for frames in cache._frames)
    named: Any = tree_flatten(net.parameters())
    derived = sum(level.grow._kernels(level.grow.kernel).nbytes for level in net.levels)
    assert expected.weights == sum(value.nbytes for _, value in named) + derived


@on_the_cpu
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 20, 26)])
def test_the_tiny_decoder_takes_no_more_memory_than_planned(shape: tuple[int, int, int]) -> None:
    net = tiny_network(TINY)
    run_tiny(net, shape)
    weights = sum(value.nbytes for _, value in tree_flatten(net.parameters()))
    peak = cost(TINY, "decoder", shape, 2).peak
    assert 0.5 * peak <= weights + allocated(lambda: run_tiny(net, shape)) <= peak


@pytest.mark.parametrize(
    ("config", "part", "shape", "gigabytes", "teraflops"),
    [
        (VAE_21, "decoder", (21, 60, 104), 3.59, 260),
        (VAE_21, "encoder", (21, 60, 104), 3.99, 162),
        (VAE_21, "decoder", (21, 32, 32), 0.72, 43),
        (VAE_22, "decoder", (31, 44, 80), 7.21, 1849),
    ],
)
def test_costs_at_full_size_are_pinned(
    config: VAEConfig, part: Part, shape: tuple[int, int, int], gigabytes: float, teraflops: float
) -> None:
    actual = cost(config, part, shape, 2, stack_frames=True)
    assert actual.peak / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert actual.flops / 1e12 == pytest.approx(teraflops, abs=1)
    assert actual.largest < actual.activations < actual.peak


def test_fewer_frames_at_once_and_tiles_need_less_memory() -> None:
    whole, one = (cost(VAE_21, "decoder", (21, 90, 160), 2, n) for n in (4, 1))
    tile = cost(VAE_21, "decoder", (21, 32, 32), 2)
    assert tile.peak < one.peak / 5 < whole.peak / 5
    assert one.flops == whole.flops
