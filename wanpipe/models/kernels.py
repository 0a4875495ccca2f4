"""Elementwise work and norms as CUDA kernels: one pass over memory each, sixteen bytes at a time.

Each has a twin of its name in `layers` or `rope`, the reference in plain MLX that Metal and the CPU
run, and which chooses. Sums and products are float32, whatever the arrays hold. Knows no model.
"""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256

import mlx.core as mx

WARP = 32  # threads
BLOCK = 256  # threads at most
VECTOR = 16  # bytes that a thread reads or writes at once

HEADER = """
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T of[N]; };

template <typename T, int N>
__device__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T, int N>
__device__ void store(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// the sum over LANES threads side by side, for each of them
template <int LANES>
__device__ float sum(float value) {
  for (int step = LANES / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(0xffffffff, value, step);
  return value;
}

// the sum over a block of THREADS, for each of them
template <int THREADS>
__device__ float sum_of_block(float value, float* warps) {
  value = sum<32>(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int warp = 0; warp < THREADS / 32; ++warp) value += warps[warp];
  __syncthreads();
  return value;
}
"""

# one block a row of D values; the rows of a group share a gate and a modulation; the rows that are
# added lie in arrays y0, y1 and so on, all as long as the first, or the last shorter
ADD_NORM = """
  constexpr int V = 4, N = (D / V + THREADS - 1) / THREADS;
  __shared__ float warps[THREADS / 32];
  const int part = blockIdx.x / y0_shape[0];
  const size_t row = size_t(blockIdx.x) * D, group = size_t(blockIdx.x / x_shape[1]) * D;
  const T* y = PART + (row - size_t(part) * y0_shape[0] * D);
  Pack<float, V> held[N];
  float total = 0;
  for (int i = 0; i < N; ++i) {
    const int at = (i * THREADS + threadIdx.x) * V;
    if (at >= D) break;
    held[i] = load<float, V>(x + row + at);
    const auto more = load<T, V>(y + at);
    GATE
    for (int j = 0; j < V; ++j) {
      held[i].of[j] += float(more.of[j])TIMES;
      total += held[i].of[j];
    }
    store<float, V>(stream + row + at, held[i]);
  }
  const float mean = sum_of_block<THREADS>(total, warps) / D;
  total = 0;
  for (int i = 0; i < N; ++i) {
    if ((i * THREADS + threadIdx.x) * V >= D) break;
    for (int j = 0; j < V; ++j) {
      held[i].of[j] -= mean;
      total += held[i].of[j] * held[i].of[j];
    }
  }
  const float factor = rsqrtf(sum_of_block<THREADS>(total, warps) / D + EPS);
  for (int i = 0; i < N; ++i) {
    const int at = (i * THREADS + threadIdx.x) * V;
    if (at >= D) break;
    const auto by = load<float, V>(scale + OF + at), to = load<float, V>(shift + OF + at);
    Pack<T, V> result;
    for (int j = 0; j < V; ++j)
      result.of[j] = T(held[i].of[j] * factor * (ONE + by.of[j]) + to.of[j]);
    store<T, V>(out + row + at, result);
  }
"""
GATE = "const auto by = load<float, V>(gate + group + at);"

# one block a row of D values: heads of WIDTH
ROTATE = """
  constexpr int V = 16 / sizeof(T), N = (D / V + THREADS - 1) / THREADS;
  __shared__ float warps[THREADS / 32];
  const size_t row = size_t(blockIdx.x) * D;
  Pack<T, V> held[N];
  float total = 0;
  for (int i = 0; i < N; ++i) {
    const int at = (i * THREADS + threadIdx.x) * V;
    if (at >= D) break;
    held[i] = load<T, V>(x + row + at);
    for (int j = 0; j < V; ++j) total += float(held[i].of[j]) * float(held[i].of[j]);
  }
  const float factor = rsqrtf(sum_of_block<THREADS>(total, warps) / D + EPS);
  for (int i = 0; i < N; ++i) {
    const int at = (i * THREADS + threadIdx.x) * V;
    if (at >= D) break;
    const size_t pair = (size_t(blockIdx.x) * WIDTH + at % WIDTH) / 2;
    const auto by = load<float, V>(weight + at), sines = load<float, V>(sin + 2 * pair);
    const auto cosines = load<float, V / 2>(cos + pair);
    for (int j = 0; j < V; j += 2) {
      const float a = float(held[i].of[j]) * factor * by.of[j];
      const float b = float(held[i].of[j + 1]) * factor * by.of[j + 1];
      held[i].of[j] = T(a * cosines.of[j / 2] + b * sines.of[j]);
      held[i].of[j + 1] = T(b * cosines.of[j / 2] + a * sines.of[j + 1]);
    }
    store<T, V>(out + row + at, held[i]);
  }
"""

# LANES threads a pixel of C channels: first the two frames before, as they are, then those of x,
# normed and activated; the last two are left too
NORM_JOIN = """
  constexpr int V = 16 / sizeof(T), N = (C / V + LANES - 1) / LANES;
  const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, pixel = thread / LANES;
  const int frames = x_shape[0], size = x_shape[1] * x_shape[2];
  const int lane = thread % LANES, frame = pixel / size;
  const bool inside = frame < frames + 2, fresh = frame >= 2;
  const T* from = fresh ? x + (pixel - 2 * size_t(size)) * C : before + pixel * C;
  Pack<T, V> held[N];
  float total = 0;
  for (int i = 0; i < N; ++i) {
    const int at = (i * LANES + lane) * V;
    if (!inside || at >= C) break;
    held[i] = load<T, V>(from + at);
    for (int j = 0; j < V; ++j) total += float(held[i].of[j]) * float(held[i].of[j]);
  }
  const float factor = rsqrtf(sum<LANES>(total) / C + 1e-24f / C);
  for (int i = 0; i < N; ++i) {
    const int at = (i * LANES + lane) * V;
    if (!inside || at >= C) break;
    if (fresh) {
      const auto by = load<float, V>(gamma + at);
      for (int j = 0; j < V; ++j) {
        const float value = float(held[i].of[j]) * factor * by.of[j];
        held[i].of[j] = T(value / (1 + (sizeof(T) == 2 ? __expf(-value) : expf(-value))));
      }
    }
    STORE
    if (frame >= frames) store<T, V>(left + (pixel - size_t(frames) * size) * C + at, held[i]);
  }
"""
JOINED = "store<T, V>(out + pixel * C + at, held[i]);"
# frame t is what the last of three frames sees at t - 2, the second at t - 1 and the first at t
STACKED = """
    for (int place = 0; place < 3; ++place) {
      const int seen = frame - place;
      if (seen < 0 || seen >= frames) continue;
      const size_t row = (pixel - size_t(place) * size) * 3 + place;
      store<T, V>(out + row * C + at, held[i]);
    }
"""

GELU = """
  constexpr int V = 16 / sizeof(T);
  const size_t at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (at >= x_shape[0]) return;
  auto pack = load<T, V>(x + at);
  for (int j = 0; j < V; ++j) {
    const float value = pack.of[j];
    // 1 + tanh(u) is 2 / (1 + exp(-2 u))
    const float u = 1.5957691216f * (value + 0.044715f * value * value * value);
    pack.of[j] = T(value / (1 + (sizeof(T) == 2 ? __expf(-u) : expf(-u))));
  }
  store<T, V>(out + at, pack);
"""


def fits(x: mx.array) -> bool:
    """Whether the rows of an array are whole vectors, which the kernels take."""
    return x.shape[-1] * x.itemsize % VECTOR == 0


def threads(vectors: int) -> int:
    """Threads of a block that share `vectors` evenly, else as many as a block has."""
    even = [n for n in range(WARP, BLOCK + 1, WARP) if vectors % n == 0]
    return max(even, default=BLOCK)


@cache
def compiled(name: str, inputs: str, outputs: str, source: str) -> Callable[..., list[mx.array]]:
    """Make a kernel of these arrays, named with blanks between."""
    # MLX keeps what it compiled on the disk by name alone, whatever the source
    digest = sha256((HEADER + source).encode()).hexdigest()[:8]
    return mx.fast.cuda_kernel(
        name=f"wanpipe_{name}_{digest}",
        input_names=inputs.split(),
        output_names=outputs.split(),
        source=source,
        header=HEADER,
    )


def literal(number: float) -> str:
    """A float32 constant in C++."""
    return f"{number!r}f"


def add_norm(
    x: mx.array,
    parts: Sequence[mx.array],
    gate: mx.array | None,
    shift: mx.array,
    scale: mx.array,
    *,
    plus_one: bool,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Do as `layers.add_norm`."""
    D = x.shape[-1]
    rows = [part.reshape(-1, D) for part in parts]
    names, gates = [f"y{number}" for number in range(len(rows))], [] if gate is None else [gate]
    source = add_norm_source(len(rows), gate is not None, plus_one, eps)
    inputs = " ".join(["x", *names, *(["gate"] if gates else []), "shift scale"])
    kernel, count = compiled("add_norm", inputs, "stream out", source), threads(D // 4)
    stream, out = kernel(
        inputs=[x, *rows, *gates, shift, scale],
        template=[("T", rows[0].dtype), ("D", D), ("THREADS", count)],
        grid=(x.size // D * count, 1, 1),
        threadgroup=(count, 1, 1),
        output_shapes=[x.shape, x.shape],
        output_dtypes=[mx.float32, rows[0].dtype],
    )
    return stream, out


@cache
def add_norm_source(parts: int, gated: bool, plus_one: bool, eps: float) -> str:
    """Source of an addition and a norm: of modulation by group, or with weights that all rows
    share.
    """
    part = "".join(f"part == {number} ? y{number} : " for number in range(parts - 1))
    source = ADD_NORM.replace("PART", f"({part}y{parts - 1})").replace(
        "GATE", GATE if gated else ""
    )
    source = source.replace("TIMES", " * by.of[j]" if gated else "")
    source = source.replace("OF", "group" if plus_one else "0")
    return source.replace("ONE", "1" if plus_one else "0").replace("EPS", literal(eps))


def norm_rotate(
    x: mx.array, weight: mx.array, table: tuple[mx.array, mx.array], *, width: int, eps: float
) -> mx.array:
    """Do as `rope.norm_rotate`."""
    kernel = compiled("norm_rotate", "x weight cos sin", "out", ROTATE.replace("EPS", literal(eps)))
    rows, D = x.shape
    count = threads(D * x.itemsize // VECTOR)
    [out] = kernel(
        inputs=[x, weight, *table],
        template=[("T", x.dtype), ("D", D), ("WIDTH", width), ("THREADS", count)],
        grid=(rows * count, 1, 1),
        threadgroup=(count, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def norm_join(
    before: mx.array, x: mx.array, gamma: mx.array, *, stacked: bool
) -> tuple[mx.array, mx.array]:
    """Do as `causal_conv.Norm.join`; or, `stacked`, give (T, H, W, 3 * C), where every frame has
    the two before it and itself as channels, in place of the joined frames (T + 2, H, W, C).
    """
    T, H, W, C = x.shape
    vectors = C * x.itemsize // VECTOR
    lanes = min(WARP, 1 << (vectors - 1).bit_length())
    kernel = compiled(
        "norm_join",
        "before x gamma",
        "out left",
        NORM_JOIN.replace("STORE", STACKED if stacked else JOINED),
    )
    shape = (T, H, W, 3 * C) if stacked else (T + 2, H, W, C)
    count = (T + 2) * H * W * lanes
    out, left = kernel(
        inputs=[before, x, gamma.astype(mx.float32)],
        template=[("T", x.dtype), ("C", C), ("LANES", lanes)],
        grid=(-(-count // BLOCK) * BLOCK, 1, 1),
        threadgroup=(BLOCK, 1, 1),
        output_shapes=[shape, (2, H, W, C)],
        output_dtypes=[x.dtype, x.dtype],
    )
    return out, left


def gelu(x: mx.array) -> mx.array:
    """Do as `layers.gelu`, in the dtype of `x`."""
    vectors = x.nbytes // VECTOR
    [out] = compiled("gelu", "x", "out", GELU)(
        inputs=[x.flatten()],
        template=[("T", x.dtype)],
        grid=(-(-vectors // BLOCK) * BLOCK, 1, 1),
        threadgroup=(BLOCK, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out
