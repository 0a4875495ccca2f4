"""Candidates of custom kernels beside their twins in plain MLX and, on CUDA, what the package runs.

    python -m bench.kernels [--small]

An experiment: the package uses none of these. For each: relative L2 and largest error against NumPy
in float64 of kernel, twin and package, and their times. The kernels have run on no GPU yet, neither
CUDA's nor Apple's: their CUDA text compiles, and their arithmetic was checked by running the bodies
as C++ with a thread for each of theirs. On a CPU only the twins run.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from bench import limits
from bench.weights import Rows, measure, parser, relative
from wanpipe.device import is_cuda, is_gpu, is_metal
from wanpipe.models import layers, rope
from wanpipe.models.layers import add_gated, modulate

EPS = 1e-6
HEAD = 128  # width of a head
GRID = (21, 30, 52)  # tokens of 81 frames of 832x480
SMALL = (2, 3, 4)
WIDTHS = (1536, 5120)
MOST = 256  # threads of a group
COPIES, SETS = 8, 2  # evaluations in one call, on so many sets of inputs
CHECKED = 64  # rows that are compared

# A group of T threads takes one row of D numbers, two at a time: each thread PER pairs. `pair` and
# `put` read and write them in any float format, `total` sums over the group.
NORM = """
    float mean = total(sum) / D;
    float squares = 0;
    for (int k = 0; k < PER; ++k) {
      kept[k] = two(kept[k].x - mean, kept[k].y - mean);
      squares += kept[k].x * kept[k].x + kept[k].y * kept[k].y;
    }
    float factor = inverse_root(total(squares) / D + EPS);
    for (int k = 0; k < PER; ++k) {
      uint i = thread + k * T;
      float2 a = pair(scale, i), b = pair(shift, i);
      put(normed, base + i, two(
          kept[k].x * factor * (1 + a.x) + b.x, kept[k].y * factor * (1 + a.y) + b.y));
    }
"""
MODULATED = """
    float sum = 0;
    for (int k = 0; k < PER; ++k) {
      kept[k] = pair(x, base + thread + k * T);
      sum += kept[k].x + kept[k].y;
    }
"""
ADDED = """
    float sum = 0;
    for (int k = 0; k < PER; ++k) {
      uint i = thread + k * T;
      float2 a = pair(x, base + i), b = pair(y, base + i), g = pair(gate, i);
      kept[k] = two(a.x + b.x * g.x, a.y + b.y * g.y);
      put(stream, base + i, kept[k]);
      sum += kept[k].x + kept[k].y;
    }
"""
TURNED = """
    float sum = 0;
    for (int k = 0; k < PER; ++k) {
      kept[k] = pair(x, base + thread + k * T);
      sum += kept[k].x * kept[k].x + kept[k].y * kept[k].y;
    }
    float factor = inverse_root(total(sum) / D + EPS);
    for (int k = 0; k < PER; ++k) {
      uint i = thread + k * T;
      uint angle = row * HALF + i % HALF;
      float2 w = pair(weight, i);
      float c = cosine[angle], s = sine[2 * angle + 1];
      float a = kept[k].x * factor * w.x, b = kept[k].y * factor * w.y;
      put(turned, base + i, two(a * c - b * s, a * s + b * c));
    }
"""
COMMON = """
    constexpr int PER = D / 2 / T;
    float2 kept[PER];
    uint base = row * (D / 2);
"""
CUDA_HEAD = """
#define total(value) group_total(value, part)
typedef unsigned int uint;
__device__ inline float2 two(float a, float b) { return make_float2(a, b); }
__device__ inline float inverse_root(float v) { return rsqrtf(v); }
__device__ inline float2 pair(const float* p, uint i) {
  return reinterpret_cast<const float2*>(p)[i];
}
__device__ inline float2 pair(const __nv_bfloat16* p, uint i) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(p)[i]);
}
__device__ inline void put(float* p, uint i, float2 v) { reinterpret_cast<float2*>(p)[i] = v; }
__device__ inline void put(__nv_bfloat16* p, uint i, float2 v) {
  reinterpret_cast<__nv_bfloat162*>(p)[i] = __floats2bfloat162_rn(v.x, v.y);
}
__device__ inline float group_total(float value, float* part) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (uint i = 0; i < blockDim.x / 32; ++i) sum += part[i];
  return sum;
}
"""
CUDA_START = """
    __shared__ float part[8];
    uint row = blockIdx.x, thread = threadIdx.x;
"""
# a SIMD group of Apple's GPUs has 32 threads
METAL_HEAD = """
#define total(value) group_total(value, part, thread, T)
inline float2 two(float a, float b) { return float2(a, b); }
inline float inverse_root(float v) { return metal::precise::rsqrt(v); }
template <typename P> inline float2 pair(P p, uint i) {
  return float2(float(p[2 * i]), float(p[2 * i + 1]));
}
inline void put(device float* p, uint i, float2 v) { p[2 * i] = v.x; p[2 * i + 1] = v.y; }
inline void put(device bfloat16_t* p, uint i, float2 v) {
  p[2 * i] = bfloat16_t(v.x);
  p[2 * i + 1] = bfloat16_t(v.y);
}
inline float group_total(float value, threadgroup float* part, uint thread, uint threads) {
  value = metal::simd_sum(value);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  if (thread % 32 == 0) part[thread / 32] = value;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float sum = 0;
  for (uint i = 0; i < threads / 32; ++i) sum += part[i];
  return sum;
}
"""
METAL_START = """
    threadgroup float part[8];
    uint row = threadgroup_position_in_grid.x, thread = thread_position_in_threadgroup.x;
"""


Way = Callable[[dict[str, mx.array]], tuple[mx.array, ...]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A kernel, its twin, and what either gives for float64 arrays on the host.

    `package` is what models/ runs here. `inputs` and `outputs` name arrays; `moved` and
    `twin_moved` are bytes for each number of a row.
    """

    name: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: tuple[mx.Dtype, ...]
    twin: Way
    package: Way
    exact: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, ...]]
    moved: int
    twin_moved: int


def threads(width: int) -> int:
    """Threads of a group: a multiple of 32 that divides the pairs of a row, as large as may be."""
    return max(count for count in range(32, MOST + 1, 32) if width // 2 % count == 0)


def constants(width: int) -> dict[str, int]:
    """What a kernel is compiled for."""
    return {"D": width, "T": threads(width), "HALF": HEAD // 2}


def source(candidate: Candidate, metal: bool) -> tuple[str, str]:
    """Header and body of a kernel's text."""
    head, start = (METAL_HEAD, METAL_START) if metal else (CUDA_HEAD, CUDA_START)
    body = start + COMMON + candidate.body
    return head, body.replace("EPS", f"{EPS:.1e}f")


@cache
def kernel(index: int) -> Callable[..., Any]:
    """Compile a candidate for the GPU that is here."""
    candidate, metal = CANDIDATES[index], is_metal()
    head, body = source(candidate, metal)
    # MLX keeps compiled CUDA by name on the disk, whatever the text
    digest = hashlib.sha256((head + body).encode()).hexdigest()[:8]
    make = mx.fast.metal_kernel if metal else mx.fast.cuda_kernel
    return make(
        name=f"wan_{candidate.outputs[-1]}_{digest}",
        input_names=list(candidate.inputs),
        output_names=list(candidate.outputs),
        source=body,
        header=head,
    )


def launch(index: int, arrays: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """Run a candidate on rows x (L, D)."""
    candidate = CANDIDATES[index]
    tokens, width = arrays["x"].shape
    group = threads(width)
    return tuple(
        kernel(index)(
            inputs=[arrays[name] for name in candidate.inputs],
            template=list(constants(width).items()),
            grid=(tokens * group, 1, 1),
            threadgroup=(group, 1, 1),
            output_shapes=[(tokens, width)] * len(candidate.outputs),
            output_dtypes=list(candidate.dtypes),
        )
    )


def modulated(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """A norm, then one pass that modulates and narrows."""
    normed = mx.fast.layer_norm(a["x"], None, None, EPS)
    return (modulate(normed, a["shift"], a["scale"], dtype=mx.bfloat16),)


def added(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """The same with the addition before."""
    stream = add_gated(a["x"], a["y"], a["gate"], dtype=mx.float32)
    return stream, *modulated({**a, "x": stream})


def turned(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """A norm, then one pass that scales and turns."""
    tokens, width = a["x"].shape
    normed = mx.fast.rms_norm(a["x"], None, EPS).reshape(tokens, -1, HEAD)  # (L, N, D / N)
    table = a["cosine"].reshape(tokens, 1, -1, 1), a["sine"].reshape(tokens, 1, -1, 2)
    return (rope.rotate(normed, a["weight"], table).reshape(tokens, width),)  # (L, D)


def package_modulated(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """As Block has it."""
    x, shift, scale = (a[name][None] for name in ("x", "shift", "scale"))
    like = {"eps": EPS, "dtype": mx.bfloat16}
    return (layers.norm_modulate(x, shift[:, None], scale[:, None], **like)[0],)


def package_added(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """As Block has it."""
    gate, shift, scale = (a[name][None, None] for name in ("gate", "shift", "scale"))
    like = {"plus_one": True, "eps": EPS, "dtype": mx.bfloat16}
    stream, normed = layers.add_norm(a["x"][None], a["y"][None], gate, shift, scale, **like)
    return stream[0], normed[0]


def package_turned(a: dict[str, mx.array]) -> tuple[mx.array, ...]:
    """As SelfAttention has it."""
    tokens = len(a["x"])
    table = a["cosine"].reshape(tokens, 1, -1, 1), a["sine"].reshape(tokens, 1, -1, 2)
    return (rope.norm_rotate(a["x"], a["weight"], table, width=HEAD, eps=EPS),)


def exact_modulated(a: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The same in NumPy."""
    x = a["x"] - a["x"].mean(axis=-1, keepdims=True)
    normed = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS)
    return (normed * (1 + a["scale"]) + a["shift"],)


def exact_added(a: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The same in NumPy."""
    stream = a["x"] + a["y"] * a["gate"]
    return stream, *exact_modulated({**a, "x": stream})


def exact_turned(a: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The same in NumPy, with complex numbers."""
    x = a["x"] / np.sqrt((a["x"] ** 2).mean(axis=-1, keepdims=True) + EPS) * a["weight"]
    pairs = (x[:, ::2] + 1j * x[:, 1::2]).reshape(len(x), -1, HEAD // 2)  # (L, N, D / N / 2)
    sine = a["sine"].reshape(len(x), -1, 2)[..., 1]
    pairs = pairs * (a["cosine"] + 1j * sine)[:, None]
    return (np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape),)  # (L, D)


CANDIDATES = (
    Candidate(
        name="norm and modulation",
        body=MODULATED + NORM,
        inputs=("x", "shift", "scale"),
        outputs=("normed",),
        dtypes=(mx.bfloat16,),
        twin=modulated,
        package=package_modulated,
        exact=exact_modulated,
        moved=4 + 2,
        twin_moved=4 + 4 + 4 + 2,
    ),
    Candidate(
        name="gated addition, norm and modulation",
        body=ADDED + NORM,
        inputs=("x", "y", "gate", "shift", "scale"),
        outputs=("stream", "normed"),
        dtypes=(mx.float32, mx.bfloat16),
        twin=added,
        package=package_added,
        exact=exact_added,
        moved=4 + 2 + 4 + 2,
        twin_moved=4 + 2 + 4 + 4 + 4 + 4 + 2,
    ),
    Candidate(
        name="norm and rotation",
        body=TURNED,
        inputs=("x", "weight", "cosine", "sine"),
        outputs=("turned",),
        dtypes=(mx.bfloat16,),
        twin=turned,
        package=package_turned,
        exact=exact_turned,
        moved=2 + 2,
        twin_moved=2 + 2 + 2 + 2,
    ),
)


def draw(candidate: Candidate, grid: tuple[int, int, int], width: int) -> dict[str, mx.array]:
    """Draw the inputs of a candidate, of the dtypes and shapes that a block has."""
    tokens = grid[0] * grid[1] * grid[2]
    wide = mx.bfloat16 if candidate.outputs[-1] == "turned" else mx.float32
    cosine, sine = rope.tables(grid, HEAD)
    arrays = {
        "x": (3 * mx.random.normal((tokens, width)) + 0.5).astype(wide),
        "y": mx.random.normal((tokens, width)).astype(mx.bfloat16),
        "cosine": cosine.reshape(tokens, -1),
        "sine": sine.reshape(tokens, -1),
        **{name: mx.random.normal((width,)) for name in ("gate", "shift", "scale", "weight")},
    }
    chosen = {name: arrays[name] for name in candidate.inputs}
    mx.eval(chosen)
    return chosen


def check(
    rows: Rows, subject: str, results: Sequence[mx.array], exact: Sequence[np.ndarray]
) -> None:
    """Print how far the last rows of some results are from the exact ones."""
    for result, reference in zip(results, exact, strict=True):
        ours = np.array(result[-CHECKED:].astype(mx.float32), dtype=np.float64)
        rows.tell(
            f"{subject}, {str(result.dtype).removeprefix('mlx.core.')}",
            relative_l2=relative(ours, reference),
            largest=float(np.abs(ours - reference).max()),
        )


def bench(index: int, grid: tuple[int, int, int], width: int, repeats: int, rows: Rows) -> None:
    """Compare and time one candidate at one width."""
    candidate = CANDIDATES[index]
    sets = [draw(candidate, grid, width) for _ in range(SETS)]
    subject = f"{candidate.name}, {sets[0]['x'].shape[0]} x {width}"
    last = {
        name: np.array((x[-CHECKED:] if x.ndim > 1 else x).astype(mx.float32), dtype=np.float64)
        for name, x in sets[0].items()
    }
    exact = candidate.exact(last)
    ways = {"twin": (candidate.twin, candidate.twin_moved)}
    if is_cuda():
        ways["package"] = candidate.package, candidate.moved
    if is_gpu():
        ways["kernel"] = lambda arrays: launch(index, arrays), candidate.moved
    else:
        rows.tell(f"{subject}, kernel", skipped="no GPU here")
    numbers = sets[0]["x"].size
    for name, (way, moved) in ways.items():
        check(rows, f"{subject}, {name}", way(sets[0]), exact)
        work = [sets[number % SETS] for number in range(COPIES)]
        took = measure(lambda way=way, work=work: mx.eval([way(one) for one in work]), repeats)
        limit = moved * numbers / limits.BANDWIDTH
        rows.tell(
            f"{subject}, {name}",
            ms=1e3 * took.seconds / COPIES,
            limit_ms=1e3 * limit,
            over_limit=took.seconds / COPIES / limit,
        )


def main() -> None:
    """Compare and time every candidate at the widths of 1.3B and 14B."""
    asked = parser(__doc__).parse_args()
    mx.random.seed(0)
    rows = Rows(asked.json)
    rows.start()
    for width in (256,) if asked.small else WIDTHS:
        for index in range(len(CANDIDATES)):
            bench(index, SMALL if asked.small else GRID, width, asked.repeats, rows)
            mx.clear_cache()


if __name__ == "__main__":
    main()
