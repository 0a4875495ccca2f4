"""The CUDA kernels without CUDA: when they are used, their sources, and the shapes of outputs.

`python -m bench.kernels` compares their values with the plain MLX versions on a GPU.
"""

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from wanpipe.backend import cuda_conv, cuda_driver, cuda_launch, nvrtc
from wanpipe.backend.cuda_launch import C_TYPES
from wanpipe.models import layers, rope
from wanpipe.models.tuning import multiplies_tiles
from wanpipe.models.vae import causal_conv
from wanpipe.models.vae.causal_conv import CausalCache, CausalConv, Norm

DISPATCHERS = (layers, rope, causal_conv)
OPTIONS = {"eps": 1e-6, "dtype": mx.bfloat16}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Pretend to have CUDA: record every launch with its source, and return zeros."""
    recorded: list[dict[str, Any]] = []

    def run(**given: Any) -> list[mx.array]:
        recorded.append(given)
        pairs = zip(given["output_shapes"], given["output_dtypes"], strict=True)
        return [mx.zeros(shape, dtype) for shape, dtype in pairs]

    cuda_launch.compile_kernel.cache_clear()
    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", run)
    monkeypatch.setattr(nvrtc, "compile", lambda source, architecture: source.encode())
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (cuda_launch, cuda_conv):
        monkeypatch.setattr(module, "architecture", lambda: "sm_90")
    monkeypatch.setattr(cuda_driver, "multiprocessors", lambda: 132)
    for dispatcher in DISPATCHERS:
        monkeypatch.setattr(dispatcher, "is_cuda", lambda: True)
    yield recorded
    cuda_launch.compile_kernel.cache_clear()


def calls() -> dict[str, Callable[[], Any]]:
    """Return a call of every kernel: two groups of tokens, 64 channels in heads of 32."""
    x, y = mx.random.normal((2, 12, 64)), mx.random.normal((2, 12, 64)).astype(mx.bfloat16)
    gate, shift, scale = (mx.random.normal((2, 1, 64)) for _ in range(3))
    weight, rows = mx.random.normal((64,)), y.reshape(-1, 64)
    parts, table = mx.split(rows, [7, 14, 21]), rope.tables((4, 2, 3), 32)
    norm, frames = Norm(16), mx.random.normal((4, 3, 5, 16)).astype(mx.bfloat16)
    return {
        "gated add_norm": lambda: layers.add_norm(
            x, [y], gate, weight, weight, plus_one=False, **OPTIONS
        ),
        "add_norm": lambda: layers.add_norm(x, [y], None, shift, scale, plus_one=True, **OPTIONS),
        "add_norm of parts": lambda: layers.add_norm(
            x, parts, gate, shift, scale, plus_one=True, **OPTIONS
        ),
        "add_norm to float32": lambda: layers.add_norm(
            x, parts, gate, shift, scale, plus_one=True, eps=1e-6, dtype=mx.float32
        ),
        "norm_rotate": lambda: rope.norm_rotate(rows, weight, table, width=32, eps=1e-6),
        "append_group_means": lambda: layers.append_group_means(rows, 5),
        "gelu": lambda: layers.gelu(y, dtype=mx.bfloat16),
        "norm_concat": lambda: norm.concat(frames[:2], frames),
        "sum_terms": lambda: causal_conv.sum_terms(frames, frames, norm.gamma, dtype=mx.bfloat16),
    }


def shapes(result: Any) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    arrays = result if isinstance(result, (tuple, list)) else [result]
    return [(array.shape, array.dtype) for array in arrays]


PLAIN = {name: shapes(call()) for name, call in calls().items()}


@pytest.mark.parametrize("name", PLAIN)
def test_kernels_return_shapes_and_dtypes_of_the_plain_versions(
    name: str, launches: list[dict[str, Any]]
) -> None:
    assert shapes(calls()[name]()) == PLAIN[name]
    [launch] = launches
    source = launch["compiled_source"].decode()
    parameters, body = re.findall(r"__global__ void (\w+)\((.*?)\) {(.*)", source, re.DOTALL)[0][1:]
    names = [one.split()[-1] for one in parameters.split(",")]
    count = len(launch["inputs"]) + len(launch["output_shapes"]) + len(launch["scalars"])
    assert len(names) == len(set(names)) == count
    types = [C_TYPES[array.dtype] for array in launch["inputs"]]
    types += [C_TYPES[dtype] for dtype in launch["output_dtypes"]]
    pointers = [one.replace("const", "").split("*")[0].strip() for one in parameters.split(",")]
    assert pointers[: len(types)] == types
    assert {"EPS", "ONE", "PART", "OF", "STORE", "GATE", "TIMES", "SUMS", "FROM"}.isdisjoint(
        re.findall(r"\w+", body)
    )
    assert all(re.search(rf"\b{one}\b", body) for one in names[: len(launch["inputs"])])
    assert "using T = " in body


@pytest.mark.parametrize("name", PLAIN)
def test_blocks_have_whole_warps(name: str, launches: list[dict[str, Any]]) -> None:
    calls()[name]()
    [launch] = launches
    threads, grid = launch["threadgroup"][0], launch["grid"][0]
    assert threads % 32 == 0
    assert 0 < threads <= 512
    assert grid % threads == 0


def test_rows_without_whole_vectors_use_the_plain_versions(launches: list[dict[str, Any]]) -> None:
    layers.gelu(mx.zeros((3, 12), mx.bfloat16), dtype=mx.bfloat16)
    Norm(12).concat(mx.zeros((2, 2, 2, 12)), mx.zeros((1, 2, 2, 12)).astype(mx.bfloat16))
    assert launches == []


def test_every_source_has_its_own_name(launches: list[dict[str, Any]]) -> None:
    for call in calls().values():
        call()
    sources = {launch["compiled_source"] for launch in launches}
    assert len({launch["name"] for launch in launches}) == len(sources) == len(PLAIN)


def test_a_convolution_of_stacked_frames_equals_one_over_frames() -> None:
    conv, x = CausalConv(6, 5), mx.random.normal((6, 4, 3, 6))
    conv.weight = mx.random.normal(conv.weight.shape)
    three = mx.concatenate([x[t : t + 4] for t in range(3)], axis=-1)
    flat = causal_conv.convolve(
        three, causal_conv.stack_frames(conv.weight), (1, 1), causal_conv.SAME
    )
    whole = conv.without_bias(x)
    assert mx.abs(flat - whole).max() < 1e-4 * mx.abs(whole).max()


def chunks(launches: list[dict[str, Any]], channels: int, dtype: mx.Dtype) -> list[list[str]]:
    """Run the first and a later chunk of a convolution; return the kernels that each launches."""
    conv, norm, names = CausalConv(channels, channels), Norm(channels), []
    for first in (True, False):
        launches.clear()
        x = (1 if first else 2, 3, 5, channels)
        cache = CausalCache(lazy=True)
        cache.first = first
        if not first:
            cache.append(mx.zeros((2, *x[1:]), dtype))
        y = conv(mx.zeros(x, dtype), cache, norm, mx.zeros(x, dtype))
        assert y.shape == x
        names.append([launch["name"].split("_")[1] for launch in launches])
    return names


def joined_shapes(launches: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """The shapes that the norms have written."""
    return [one["output_shapes"][0] for one in launches if "norm_concat" in one["name"]]


def test_narrow_convolutions_stack_frames_on_cuda(
    launches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_conv, "architecture", lambda: "sm_80")
    assert chunks(launches, 96, mx.bfloat16) == [["norm", "sum"]] * 2
    assert joined_shapes(launches) == [(2, 3, 5, 288)]
    assert chunks(launches, 192, mx.bfloat16) == [["norm", "sum"]] * 2
    assert joined_shapes(launches) == [(4, 3, 5, 192)]


def test_hopper_has_a_kernel_for_narrow_convolutions(launches: list[dict[str, Any]]) -> None:
    for channels in (96, 192):
        # the first chunk has one frame, and bias and residual take no pass in the others
        assert chunks(launches, channels, mx.bfloat16) == [["norm", "sum"], ["norm", "convolve"]]
        assert joined_shapes(launches) == [(4, 3, 5, channels)]
        launch = launches[-1]
        assert [x.shape for x in launch["inputs"]] == [
            (4, 3, 5, channels),
            (channels // 96, 3, channels // 16, 9, 2, 96, 8),
            (channels,),
            (2, 3, 5, channels),
        ]
        assert launch["scalars"] == [2, 3, 5, channels, channels]
        assert launch["shared_memory"] <= 227 * 1024  # of a multiprocessor
        assert b"m64n96k16.f32.bf16.bf16" in launch["compiled_source"]
    chunks(launches, 96, mx.float16)
    assert b"m64n96k16.f32.f16.f16" in launches[-1]["compiled_source"]
    assert chunks(launches, 96, mx.float32) == [["norm", "sum"]] * 2
    for channels in (16, 32, 384):  # whose residuals are not whole blocks, or that cuDNN does fast
        assert chunks(launches, channels, mx.bfloat16) == [["norm", "sum"]] * 2


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 96), (12, 160), (96, 3), (256, 12)])
def test_the_first_and_the_last_layers_are_padded(
    inputs: int, outputs: int, launches: list[dict[str, Any]]
) -> None:
    cache = CausalCache(lazy=True)
    cache.first = False
    cache.append(mx.zeros((2, 3, 5, inputs), mx.bfloat16))
    y = CausalConv(inputs, outputs)(mx.zeros((4, 3, 5, inputs), mx.bfloat16), cache)
    assert y.shape == (4, 3, 5, outputs)
    [launch] = launches
    assert launch["inputs"][0].shape == (6, 3, 5, -(-inputs // 16) * 16)
    assert launch["output_shapes"] == [(4, 3, 5, -(-outputs // 32) * 32)]


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (12, 24), (24, 12), (16, 96), (4, 8)])
def test_layers_of_small_models_have_no_kernel(inputs: int, outputs: int) -> None:
    assert multiplies_tiles(inputs, outputs) == ((inputs, outputs) == (16, 96))


@pytest.mark.parametrize(("inputs", "outputs", "width"), [(32, 192, 96), (20, 12, 32), (3, 96, 96)])
def test_the_kernel_reads_every_weight_with_its_pixel(
    inputs: int, outputs: int, width: int
) -> None:
    conv, x = CausalConv(inputs, outputs), mx.random.normal((4, 5, 6, inputs))
    conv.weight = mx.random.normal(conv.weight.shape)
    tiled = cuda_conv.tile_weight(conv.weight)
    chunks = -(-inputs // 16)
    assert tiled.shape[-2] == width
    padded, sums = mx.pad(x, ((0, 0), (1, 1), (1, 1), (0, 16 * chunks - inputs))), []
    for block in tiled:  # as the kernel does: frame by frame, 16 channels at a time, tap by tap
        total = mx.zeros((2, 5, 6, width))
        for frame, chunk, tap, half in product(range(3), range(chunks), range(9), range(2)):
            row, column, first = tap // 3, tap % 3, 16 * chunk + 8 * half
            seen = padded[frame : frame + 2, row : row + 5, column : column + 6, first : first + 8]
            total += seen @ block[frame, chunk, tap, half].T
        sums.append(total)
    whole = conv.without_bias(x)
    assert (
        mx.abs(mx.concatenate(sums, -1)[..., :outputs] - whole).max() < 1e-4 * mx.abs(whole).max()
    )
