"""What is said of a VAE's arithmetic and memory, against the networks themselves."""

from collections.abc import Iterator
from math import prod
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from bench.sizes import VAE_21, VAE_22
from tests.models.official import allocated, on_the_cpu
from wanpipe.models import causal_conv, causal_vae, layers, vae
from wanpipe.models.causal_conv import Past
from wanpipe.models.config import VAEConfig
from wanpipe.models.vae_sizes import Half, plan, steps

CONFIGS = {
    "2.1": VAEConfig(version="2.1", encoder_dim=16, decoder_dim=16, z_dim=16),
    "2.2": VAEConfig(version="2.2", encoder_dim=16, decoder_dim=32, z_dim=48),
}
CONVOLUTIONS = {"causal", "frame", "phases", "time", "down"}
halves = pytest.mark.parametrize("half", ["decoder", "encoder"])
versions = pytest.mark.parametrize("version", CONFIGS)


def network(config: VAEConfig, half: Half) -> Any:
    made = (vae.decoder if half == "decoder" else vae.encoder)(config)
    made.set_dtype(mx.bfloat16)
    mx.eval(made.parameters())
    return made


def run(net: Any, half: Half, config: VAEConfig, shape: tuple[int, int, int], at_once: int) -> None:
    F, H, W = shape
    if half == "decoder":
        for _ in net.frames(mx.zeros((config.z_dim, *shape)), at_once):
            pass
    else:
        sides = (H * config.stride[1], W * config.stride[2], 3)
        mx.eval(net.encode(mx.zeros((1 if f == 0 else 4, *sides)) for f in range(F)))


@versions
@halves
def test_arithmetic_is_that_of_every_convolution_run(
    version: str, half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[float] = []
    original = causal_conv.convolve

    def convolve(x: mx.array, weight: mx.array, *rest: Any) -> mx.array:
        y = original(x, weight, *rest)
        done.append(2.0 * y.size * prod(weight.shape[1:]))
        return y

    for module in (causal_conv, causal_vae):
        monkeypatch.setattr(module, "convolve", convolve)
    config, shape = CONFIGS[version], (2, 2, 3)
    run(network(config, half), half, config, shape, 4)
    chunks = [steps(config, half, shape, first, 4) for first in (True, False)]
    told = [step for chunk in chunks for step in chunk if step.kind in CONVOLUTIONS]
    assert sorted(done) == sorted(step.flops for step in told if step.places)


@versions
@halves
def test_kept_frames_and_weights_are_those_of_the_network(version: str, half: Half) -> None:
    config, shape = CONFIGS[version], (2, 2, 3)
    net, past = network(config, half), Past()
    for frames in (1, 1) if half == "decoder" else (1, 4):
        factor = 1 if half == "decoder" else config.stride[1]
        channels = config.z_dim if half == "decoder" else 3
        net.chunk(mx.zeros((frames, 2 * factor, 3 * factor, channels)), past)
    kept = sum(frames.nbytes for frames in (*past._frames, *past.later._frames))
    told = plan(config, half, shape, 2)
    assert told.past == kept
    named: Any = tree_flatten(net.parameters())
    weights = sum(value.nbytes for name, value in named if not name.endswith("gamma"))
    ups = [layer for layer in net.modules() if isinstance(layer, causal_vae.Upsample)]
    assert told.weights == weights + sum(layer._phases(layer.conv.weight).nbytes for layer in ups)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every kernel be one array, as on a GPU, whatever its values; wait for all of them."""

    def convolution(x: mx.array, weight: mx.array, stride: Any, padding: Any) -> mx.array:
        sides = zip(x.shape[1:-1], *padding, weight.shape[1:-1], stride, strict=True)
        places = [(n + low + high - k) // s + 1 for n, low, high, k, s in sides]
        first = mx.as_strided(x, (1,) * x.ndim, (1,) * x.ndim)
        return mx.contiguous(mx.broadcast_to(first, (len(x), *places, len(weight))))

    for module in (causal_conv, layers):
        monkeypatch.setattr(module, "is_gpu", lambda: True)
    monkeypatch.setattr(mx, "conv_general", convolution)
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *_: -x)
    for module, name in (
        (causal_conv, "summed"),
        (causal_vae, "summed"),
        (causal_conv, "activated"),
        (causal_conv, "scaled"),
    ):
        monkeypatch.setattr(module, name, lambda x, *_, dtype: -x)
    yield
    mx.reset_peak_memory()


@on_the_cpu
@pytest.mark.usefixtures("kernels")
@versions
@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 20, 26)])
@pytest.mark.parametrize(("half", "at_once"), [("decoder", 4), ("decoder", 1), ("encoder", 4)])
def test_memory_is_what_mlx_allocates(
    version: str, half: Half, at_once: int, shape: tuple[int, int, int]
) -> None:
    config = CONFIGS[version]
    net = network(config, half)
    run(net, half, config, shape, at_once)
    weights = sum(value.nbytes for _, value in tree_flatten(net.parameters()))
    most = allocated(lambda: run(net, half, config, shape, at_once))
    told = plan(config, half, shape, 2, at_once).peak
    assert weights + most == pytest.approx(told, rel=0.15)


@pytest.mark.parametrize(
    ("config", "half", "shape", "gigabytes", "teraflops"),
    [
        (VAE_21, "decoder", (21, 60, 104), 3.59, 260),
        (VAE_21, "encoder", (21, 60, 104), 3.99, 162),
        (VAE_21, "decoder", (21, 32, 32), 0.72, 43),
        (VAE_22, "decoder", (31, 44, 80), 7.21, 1849),
    ],
)
def test_full_size_is_pinned(
    config: VAEConfig, half: Half, shape: tuple[int, int, int], gigabytes: float, teraflops: float
) -> None:
    told = plan(config, half, shape, 2, stacks=True)
    assert told.peak / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert told.flops / 1e12 == pytest.approx(teraflops, abs=1)
    assert told.largest < told.work < told.peak


def test_fewer_frames_at_once_and_tiles_need_less() -> None:
    whole, one = (plan(VAE_21, "decoder", (21, 90, 160), 2, n) for n in (4, 1))
    tile = plan(VAE_21, "decoder", (21, 32, 32), 2)
    assert tile.peak < one.peak / 5 < whole.peak / 5
    assert one.flops == whole.flops
