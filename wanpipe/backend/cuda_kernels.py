"""CUDA kernels for norms and elementwise operations, each in one pass over memory.

`layers`, `rope` and `causal_conv` have a function of the same name for each kernel: it is the
reference in plain MLX, runs on Metal and the CPU, and calls the kernel on CUDA. Kernels compute in
float32, whatever the dtype of the arrays. Knows no model.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import mlx.core as mx

from wanpipe.backend.cuda_launch import Kernel, launch

WARP = 32  # threads
ROW_THREADS = 256  # per block at most, for kernels along rows
COLUMN_THREADS = 512  # per block, for kernels down columns
VECTOR = 16  # bytes that a thread reads or writes at once

# one block per row of D values; the rows of a group share gate and modulation; the added rows are
# in arrays y0, y1, ..., all of the same length, except that the last may be shorter
ADD_NORM = """
  constexpr int V = 4, N = (D / V + THREADS - 1) / THREADS;
  __shared__ float warps[THREADS / 32];
  const int part = blockIdx.x / length;
  const size_t row = size_t(blockIdx.x) * D, group = size_t(blockIdx.x / tokens) * D;
  const T* y = PART + (row - size_t(part) * length * D);
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
    Pack<O, V> result;
    for (int j = 0; j < V; ++j)
      result.of[j] = O(held[i].of[j] * factor * (ONE + by.of[j]) + to.of[j]);
    store<O, V>(out + row + at, result);
  }
"""
GATE = "const auto by = load<float, V>(gate + group + at);"

# one block per row of D values: heads of WIDTH
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

# LANES threads per pixel of C channels: copies the two frames before x, then norms and activates x;
# also writes the last two frames to `left`
NORM_CONCAT = """
  constexpr int V = 16 / sizeof(T), N = (C / V + LANES - 1) / LANES;
  const size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x, pixel = thread / LANES;
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
# frame t is the third input frame at t - 2, the second at t - 1 and the first at t
STACKED = """
    for (int place = 0; place < 3; ++place) {
      const int seen = frame - place;
      if (seen < 0 || seen >= frames) continue;
      const size_t row = (pixel - size_t(place) * size) * 3 + place;
      store<T, V>(out + row * C + at, held[i]);
    }
"""

# one block per group of rows and LANE vectors of columns: copies them, and writes their mean to the
# row of that group after all rows
APPEND_GROUP_MEANS = """
  constexpr int V = 16 / sizeof(T), LINES = THREADS / LANE, AT_ONCE = 8;
  __shared__ Pack<float, V> sums[THREADS];
  const int chunks = D / V / LANE, group = blockIdx.x / chunks, line = threadIdx.x / LANE;
  const int at = (blockIdx.x % chunks * LANE + threadIdx.x % LANE) * V;
  const size_t first = size_t(group) * rows / groups, last = size_t(group + 1) * rows / groups;
  Pack<float, V> total = {};
  for (size_t begin = first + line; begin < last; begin += AT_ONCE * LINES) {
    Pack<T, V> held[AT_ONCE];
    for (int i = 0; i < AT_ONCE; ++i) {
      const size_t row = begin + i * LINES;
      if (row < last) held[i] = load<T, V>(x + row * D + at);
    }
    for (int i = 0; i < AT_ONCE; ++i) {
      const size_t row = begin + i * LINES;
      if (row >= last) break;
      for (int j = 0; j < V; ++j) total.of[j] += float(held[i].of[j]);
      store<T, V>(out + row * D + at, held[i]);
    }
  }
  sums[threadIdx.x] = total;
  for (int half = LINES / 2; half > 0; half /= 2) {
    __syncthreads();
    if (line >= half) continue;
    for (int j = 0; j < V; ++j) sums[threadIdx.x].of[j] += sums[threadIdx.x + half * LANE].of[j];
  }
  if (line > 0) return;
  Pack<T, V> mean;
  for (int j = 0; j < V; ++j) mean.of[j] = T(sums[threadIdx.x].of[j] / (last - first));
  store<T, V>(out + (rows + size_t(group)) * D + at, mean);
"""

GELU = """
  constexpr int V = 16 / sizeof(T);
  const size_t vector = size_t(blockIdx.x) * blockDim.x + threadIdx.x, at = vector * V;
  if (vector >= count) return;
  auto pack = load<T, V>(x + at);
  for (int j = 0; j < V; ++j) {
    const float value = pack.of[j];
    // 1 + tanh(u) is 2 / (1 + exp(-2 u))
    const float u = 1.5957691216f * (value + 0.044715f * value * value * value);
    pack.of[j] = T(value / (1 + (sizeof(T) == 2 ? __expf(-u) : expf(-u))));
  }
  store<T, V>(out + at, pack);
"""

# arrays of the same shape, or one row of C channels for all positions
SUM_TERMS = """
  constexpr int V = 16 / sizeof(T);
  const size_t vector = size_t(blockIdx.x) * blockDim.x + threadIdx.x, at = vector * V;
  if (vector >= count) return;
  const int channel = unsigned(vector) % (C / V) * V;
  float total[V];
  auto pack = load<T, V>(y0 + at);
  for (int j = 0; j < V; ++j) total[j] = float(pack.of[j]);
  SUMS
  for (int j = 0; j < V; ++j) pack.of[j] = T(total[j]);
  store<T, V>(out + at, pack);
"""
SUM = """
  pack = load<T, V>(FROM);
  for (int j = 0; j < V; ++j) total[j] += float(pack.of[j]);
"""


def has_whole_vectors(x: mx.array) -> bool:
    """Return whether the rows of an array are whole vectors, as the kernels require."""
    return x.shape[-1] * x.itemsize % VECTOR == 0


def block_threads(vectors: int) -> int:
    """Return the most threads that divide `vectors` evenly, else ROW_THREADS."""
    even = [n for n in range(WARP, ROW_THREADS + 1, WARP) if vectors % n == 0]
    return max(even, default=ROW_THREADS)


def float_literal(number: float) -> str:
    """Format a float32 constant in C++."""
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
    dtype: mx.Dtype,
) -> tuple[mx.array, mx.array]:
    """Compute `layers.add_norm`."""
    D = x.shape[-1]
    rows = [part.reshape(-1, D) for part in parts]
    added = {f"y{number}": part for number, part in enumerate(rows)}
    gates = {} if gate is None else {"gate": gate}
    count = block_threads(D // 4)
    stream, out = launch(
        Kernel("add_norm", add_norm_source(len(rows), gate is not None, plus_one, eps)),
        inputs={"x": x, **added, **gates, "shift": shift, "scale": scale},
        outputs={"stream": (x.shape, mx.float32), "out": (x.shape, dtype)},
        scalars={"tokens": x.shape[1], "length": len(rows[0])},
        template={"T": rows[0].dtype, "O": dtype, "D": D, "THREADS": count},
        blocks=x.size // D,
        threads=count,
    )
    return stream, out


@cache
def add_norm_source(parts: int, gated: bool, plus_one: bool, eps: float) -> str:
    """Return the source of `add_norm` for this number of parts and kind of norm."""
    part = "".join(f"part == {number} ? y{number} : " for number in range(parts - 1))
    source = ADD_NORM.replace("PART", f"({part}y{parts - 1})").replace(
        "GATE", GATE if gated else ""
    )
    source = source.replace("TIMES", " * by.of[j]" if gated else "")
    source = source.replace("OF", "group" if plus_one else "0")
    return source.replace("ONE", "1" if plus_one else "0").replace("EPS", float_literal(eps))


def norm_rotate(
    x: mx.array, weight: mx.array, table: tuple[mx.array, mx.array], *, width: int, eps: float
) -> mx.array:
    """Compute `rope.norm_rotate`."""
    rows, D = x.shape
    count = block_threads(D * x.itemsize // VECTOR)
    [out] = launch(
        Kernel("norm_rotate", ROTATE.replace("EPS", float_literal(eps))),
        inputs={"x": x, "weight": weight, "cos": table[0], "sin": table[1]},
        outputs={"out": (x.shape, x.dtype)},
        scalars={},
        template={"T": x.dtype, "D": D, "WIDTH": width, "THREADS": count},
        blocks=rows,
        threads=count,
    )
    return out


def append_group_means(x: mx.array, groups: int) -> mx.array:
    """Compute `layers.append_group_means`."""
    rows, D = x.shape
    lane = max(n for n in (8, 4, 2, 1) if D * x.itemsize // VECTOR % n == 0)
    [out] = launch(
        Kernel("append_group_means", APPEND_GROUP_MEANS),
        inputs={"x": x},
        outputs={"out": ((rows + groups, D), x.dtype)},
        scalars={"rows": rows, "groups": groups},
        template={"T": x.dtype, "D": D, "LANE": lane, "THREADS": COLUMN_THREADS},
        blocks=groups * (D * x.itemsize // VECTOR // lane),
        threads=COLUMN_THREADS,
    )
    return out


def norm_concat(
    before: mx.array, x: mx.array, gamma: mx.array, *, stacked: bool
) -> tuple[mx.array, mx.array]:
    """Compute `causal_conv.Norm.concat`.

    With `stacked`, the first output is (T, H, W, 3 * C), not (T + 2, H, W, C): each frame has the
    two frames before it and itself stacked as channels.
    """
    T, H, W, C = x.shape
    lanes = min(WARP, 1 << (C * x.itemsize // VECTOR - 1).bit_length())
    shape = (T, H, W, 3 * C) if stacked else (T + 2, H, W, C)
    out, left = launch(
        Kernel("norm_concat", NORM_CONCAT.replace("STORE", STACKED if stacked else JOINED)),
        inputs={"before": before, "x": x, "gamma": gamma.astype(mx.float32)},
        outputs={"out": (shape, x.dtype), "left": ((2, H, W, C), x.dtype)},
        scalars={"frames": T, "size": H * W},
        template={"T": x.dtype, "C": C, "LANES": lanes},
        blocks=-(-(T + 2) * H * W * lanes // ROW_THREADS),
        threads=ROW_THREADS,
    )
    return out, left


def gelu(x: mx.array) -> mx.array:
    """Compute `layers.gelu` in the dtype of `x`."""
    return _elementwise("gelu", GELU, {"x": x}, {})


def sum_terms(terms: Sequence[mx.array]) -> mx.array:
    """Compute `causal_conv.sum_terms` in the dtype of the first term."""
    shape = terms[0].shape
    assert all(term.shape in (shape, shape[-1:]) for term in terms), [one.shape for one in terms]
    named = {f"y{number}": term for number, term in enumerate(terms)}
    source = sum_terms_source(tuple(term.ndim > 1 for term in terms))
    return _elementwise("sum_terms", source, named, {"C": shape[-1]})


@cache
def sum_terms_source(whole: tuple[bool, ...]) -> str:
    """Return the source of a sum of terms: `whole` arrays, or one row of channels each."""
    sources = [f"y{number} + {'at' if one else 'channel'}" for number, one in enumerate(whole)]
    return SUM_TERMS.replace("SUMS", "".join(SUM.replace("FROM", one) for one in sources[1:]))


def _elementwise(
    name: str, source: str, inputs: Mapping[str, mx.array], template: Mapping[str, int]
) -> mx.array:
    """Run an elementwise kernel, one vector per thread; the output is like the first input."""
    first = next(iter(inputs.values()))
    vectors = first.nbytes // VECTOR
    [out] = launch(
        Kernel(name, source),
        inputs=inputs,
        outputs={"out": (first.shape, first.dtype)},
        scalars={"count": vectors},
        template={"T": first.dtype, **template},
        blocks=-(-vectors // ROW_THREADS),
        threads=ROW_THREADS,
    )
    return out
