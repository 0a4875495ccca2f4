"""Operations that are wrong or slow on Metal, searched for in the graphs of all networks.

Graphs have full size and are never evaluated, so Metal is not needed. Numbers such as mlx#3979 are
issues and pull requests of github.com/ml-explore/mlx.
"""

import re
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests import graphs
from tests.graphs import Graph, Operation, gpu
from tests.networks import NETWORKS, graph
from wanpipe.models import layers

GIB = 2**30
every_network = pytest.mark.parametrize("name", NETWORKS)


def large_convolutions(graph: Graph) -> list[Operation]:
    # mlx#3979: returns zeros without an error for inputs of about 2e9 elements or more; mlx#3248:
    # wrong for outputs of more than 2**31
    limit = 1_500_000_000
    return [
        operation
        for operation in graph.named("Convolution")
        if max(operation.inputs[0].size, operation.outputs[0].size) > limit
    ]


def unfolded_convolutions(graph: Graph) -> list[Operation]:
    # mlx#3138, mlx#3082: convolutions with groups or input dilation copy every window, and are
    # wrong beyond 2**32 elements; all others have kernels that read windows in place (mlx#3147)
    return [
        operation
        for operation in graph.named("Convolution")
        if operation.arguments[-2] != 1 or set(operation.arguments[-3]) != {1}
    ]


def hungry_convolutions(graph: Graph) -> list[Operation]:
    # mlx#3979: the zeros appear if a Winograd convolution needs more memory than Metal recommends;
    # mlx#4102 allows 3/4 of that: 8 GiB if 10.7 GiB are recommended, as on a Mac with 16 GiB
    limit = 8 * GIB
    return [
        operation
        for operation in graph.named("Convolution")
        if sum(value.nbytes for value in operation.arrays) + graphs.winograd(operation) > limit
    ]


def rounded_winograd(graph: Graph) -> list[Operation]:
    # mlx#4242: Winograd rounds its transformed tiles to the dtype of the input. In half precision
    # the error is 35 to 43 times that of other kernels: 6 % of the result in bfloat16
    return [
        operation
        for operation in graph.named("Convolution")
        if graphs.winograd(operation) and operation.inputs[0].dtype.size == 2
    ]


def huge_arrays(graph: Graph) -> list[Operation]:
    # mlx#3327: allocation, reshape and indexing overflow from 2**31 elements on, and so do copies
    # of views (mlx#3836), products (mlx#3822) and gathers (mlx#1338)
    return [
        operation
        for operation in graph.operations
        if any(value.size >= 2**31 for value in operation.arrays)
    ]


def huge_buffers(graph: Graph) -> list[Operation]:
    # Metal's maxBufferLength is a half (16 GiB of 32) to two thirds (mlx#3082: 86.6 of 137 GB,
    # mlx#3312: 179 of 275 GB) of memory; this is the limit of the smallest Mac
    limit = 4 * GIB
    return [
        operation
        for operation in graph.operations
        if operation.name not in graphs.VIEWS
        and any(value.nbytes > limit for value in operation.arrays)
    ]


def wide_types(graph: Graph) -> list[Operation]:
    # mlx#799: Metal has no float64; mlx#4300: its atomics, and therefore scatters, have 32 bits
    wide = (mx.float64, mx.int64, mx.uint64, mx.complex64)
    return [
        operation
        for operation in graph.operations
        if any(value.dtype in wide for value in operation.arrays)
    ]


def large_scores(graph: Graph) -> list[Operation]:
    # mlx#3885, mlx#3312: attention without a kernel silently allocates the scores (L, L)
    return [operation for operation in graph.named("Softmax") if operation.outputs[0].nbytes > GIB]


def heavy_attention(graph: Graph) -> list[Operation]:
    # mlx#3267: macOS ends a kernel that keeps the GPU from the display for seconds
    return [
        operation
        for operation in graph.named("Attention")
        if 4 * operation.inputs[0].size * operation.inputs[1].shape[2]
        > 1.2 * layers.MAX_ATTENTION_FLOPS
    ]


def long_masks(graph: Graph) -> list[Operation]:
    # mlx#3360: the M5 kernel counted the keys of a mask in 16 bits; mlx#2894: all others in 32
    return [
        operation
        for operation in graph.named("Attention")
        if len(operation.inputs) == 4 and operation.inputs[1].shape[2] >= 2**15
    ]


def reversed_reads(graph: Graph) -> list[Operation]:
    # slices may have negative strides (mlx#1688). Elementwise kernels and copies read them
    # correctly (fused ones since 0.32.1: mlx#3720); reductions (mlx#4528, mlx#4267) and sorts
    # (mlx#4225) do not
    known = graphs.layouts(graph.operations)
    readers = graphs.ELEMENTWISE | graphs.VIEWS | {"Concatenate", "Contiguous", "Pad"}
    return [
        operation
        for operation in graph.operations
        if operation.name not in readers
        and any(stride < 0 for value in operation.inputs for stride in known[value.name].strides)
    ]


def far_reductions(graph: Graph) -> list[Operation]:
    # mlx#3784: returns zeros without an error if the summands are 2**29 elements apart or more
    return [
        operation
        for operation in graph.named("Reduce")
        for axis in operation.arguments[1]
        if prod(operation.inputs[0].shape[axis + 1 :]) >= 2**29
    ]


def copies_for_an_index(graph: Graph) -> list[Operation]:
    # x[0] is a gather, which copies; x.squeeze(0) and slices are views
    return [operation for operation in graph.named("Gather") if operation.inputs[1].shape == ()]


def shown(operations: Sequence[Operation]) -> list[str]:
    return sorted({str(operation) for operation in operations})


@every_network
def test_no_convolution_has_more_elements_than_metal_supports(name: str) -> None:
    assert shown(large_convolutions(graph(name))) == []


@every_network
def test_no_convolution_copies_its_windows(name: str) -> None:
    assert shown(unfolded_convolutions(graph(name))) == []


@every_network
def test_every_convolution_fits_in_a_16_gb_mac(name: str) -> None:
    assert shown(hungry_convolutions(graph(name))) == []


@every_network
def test_no_convolution_in_half_precision_uses_winograd(name: str) -> None:
    assert shown(rounded_winograd(graph(name))) == []


@every_network
def test_no_array_has_more_elements_than_metal_indexes(name: str) -> None:
    assert shown(huge_arrays(graph(name))) == []


@every_network
def test_every_array_fits_in_a_buffer_of_the_smallest_mac(name: str) -> None:
    assert shown(huge_buffers(graph(name))) == []


@every_network
def test_no_array_has_a_dtype_that_metal_lacks(name: str) -> None:
    assert shown(wide_types(graph(name))) == []


@every_network
def test_attention_without_a_kernel_has_small_scores(name: str) -> None:
    assert shown(large_scores(graph(name))) == []


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("vae")])
def test_every_head_of_a_transformer_has_an_attention_kernel(name: str) -> None:
    assert graph(name).named("Attention") != []
    assert shown(graph(name).named("Softmax")) == []


@every_network
def test_no_attention_blocks_the_gpu_for_seconds(name: str) -> None:
    assert shown(heavy_attention(graph(name))) == []


@every_network
def test_masked_attention_is_short(name: str) -> None:
    assert shown(long_masks(graph(name))) == []


@every_network
def test_only_elementwise_kernels_read_negative_strides(name: str) -> None:
    assert shown(reversed_reads(graph(name))) == []


@every_network
def test_no_reduction_strides_farther_than_metal_supports(name: str) -> None:
    assert shown(far_reductions(graph(name))) == []


@every_network
def test_no_array_is_copied_to_drop_an_axis(name: str) -> None:
    assert shown(copies_for_an_index(graph(name))) == []


def test_the_required_mlx_reads_negative_strides_in_fused_kernels() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    required = re.findall(r'"mlx(?:\[\w+\])?>=([\d.]+)"', project)
    assert required != []
    assert all([int(n) for n in version.split(".")] >= [0, 32, 1] for version in required)


def attend(q: mx.array, k: mx.array, mask: mx.array | None = None) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0, mask=mask)


def convolve(x: mx.array, kernel: int = 1, **options: Any) -> mx.array:
    inputs = x.shape[-1] // options.get("groups", 1)
    return mx.conv_general(x, mx.zeros((192, kernel, kernel, inputs), x.dtype), **options)


# a violation of each rule: a function and the shapes of its inputs
BAD: list[tuple[Callable[[Graph], list[Operation]], Callable[..., Any], list[tuple[int, ...]]]] = [
    (large_convolutions, convolve, [(1, 10_000, 10_000, 16)]),
    (unfolded_convolutions, lambda x: convolve(x, groups=2), [(1, 8, 8, 32)]),
    (unfolded_convolutions, lambda x: convolve(x, input_dilation=2), [(1, 8, 8, 32)]),
    (hungry_convolutions, lambda x: convolve(x, 3, padding=1), [(4, 720, 1280, 384)]),
    (rounded_winograd, lambda x: convolve(x, 3, padding=1), [(1, 64, 64, 384)]),
    (huge_arrays, mx.exp, [(2**16, 2**15)]),
    (huge_buffers, lambda x: mx.exp(x.astype(mx.float32)), [(2**15, 2**15 + 1)]),
    (wide_types, lambda x: x.astype(mx.float64), [(8,)]),
    (large_scores, attend, [(1, 1, 32760, 384), (1, 1, 32760, 384)]),
    (heavy_attention, attend, [(1, 40, 75600, 128), (1, 40, 75600, 128)]),
    (long_masks, attend, [(1, 1, 16, 64), (1, 1, 32768, 64), (1, 1, 16, 32768)]),
    (reversed_reads, lambda x: x[::-1].sum(axis=1), [(8, 8)]),
    (reversed_reads, lambda x: x[:, ::-1].T @ x, [(8, 8)]),
    (far_reductions, lambda x: x.sum(axis=0), [(2, 2**15, 2**14)]),
    (copies_for_an_index, lambda x: x[0], [(8, 8)]),
]


@pytest.mark.parametrize(("rule", "function", "shapes"), BAD)
def test_every_rule_finds_a_violation(
    rule: Callable[[Graph], list[Operation]],
    function: Callable[..., Any],
    shapes: list[tuple[int, ...]],
) -> None:
    with gpu() as tracer:
        bad = tracer.read(function, *(mx.zeros(shape, mx.bfloat16) for shape in shapes))
    assert rule(bad) != []


def test_every_rule_has_a_violation() -> None:
    tested = {rule for rule, *_ in BAD}
    rules = {
        value
        for value in globals().values()
        if getattr(value, "__annotations__", {}).get("return") == list[Operation]
    }
    assert tested == rules


def test_tracing_restores_mlx_and_wanpipe() -> None:
    before = (mx.eval, mx.fast.rms_norm, layers.gelu, mx.random.state[0].tolist())
    with gpu() as tracer:
        NETWORKS["clip-vit-h"](tracer)
    assert (mx.eval, mx.fast.rms_norm, layers.gelu, mx.random.state[0].tolist()) == before


def test_memory_counts_arrays_that_are_alive_together() -> None:
    def chain(x: mx.array) -> mx.array:
        wide = mx.concatenate([x, x])  # 8 KiB
        return (mx.exp(wide).T.reshape(2, -1) + 1).sum()  # in place; a copy; in place

    with gpu() as tracer:
        operations = tracer.read(chain, mx.zeros((32, 32))).operations
    assert graphs.memory(operations) == (4 * 2**13 + 4, 2 * 2**13)


def test_after_leaves_out_the_operations_of_an_output() -> None:
    def run(x: mx.array) -> list[mx.array]:
        y = mx.exp(x)
        return [mx.sin(y), mx.cos(y) @ x]

    with gpu() as tracer:
        graph = tracer.read(run, mx.zeros((8, 8))).after(0)
    assert [operation.name for operation in graph.operations] == ["Cos", "Matmul"]
