"""The CUDA kernels without CUDA: when they are used, their sources, and the shapes of outputs.

`python -m bench.kernels` compares their values with the plain MLX versions on a GPU.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from wanpipe.backend import cuda_launch, nvrtc
from wanpipe.backend.cuda_launch import C_TYPES
from wanpipe.models import layers, rope
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
    monkeypatch.setattr(cuda_launch, "architecture", lambda: "sm_90")
    for module in DISPATCHERS:
        monkeypatch.setattr(module, "is_cuda", lambda: True)
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


def test_narrow_convolutions_stack_frames_on_cuda_only(launches: list[dict[str, Any]]) -> None:
    conv, norm = CausalConv(96, 96), Norm(96)
    for first in (True, False):
        cache = CausalCache(lazy=True)
        cache.first = first
        if not first:
            cache.append(mx.zeros((2, 3, 5, 96)))
        y = conv(mx.zeros((2, 3, 5, 96)), cache, norm)
        assert y.shape == (2, 3, 5, 96)
    concats = [launch for launch in launches if "norm_concat" in launch["name"]]
    assert [launch["output_shapes"][0] for launch in concats] == [(4, 3, 5, 96), (2, 3, 5, 288)]
    assert not CausalConv(192, 192).stacks_frames
