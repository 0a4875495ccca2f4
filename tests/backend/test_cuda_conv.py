"""The kernel of `cuda_conv` on a CPU: its C++ with other instructions, a thread for each of CUDA's.

That finds wrong indices, borders, and barriers that wait for ever. It says nothing of PTX, or of
writes that another thread may not see yet; `python -m bench.kernels` compares numbers on a GPU.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from wanpipe.backend import cuda_conv
from wanpipe.backend.cuda_conv_source import FUNCTIONS
from wanpipe.models.vae.causal_conv import CausalConv

COMPILER = shutil.which("c++")
# the instructions of `cuda_conv_source`, where an address in shared memory is an offset
EMULATED = r"""
#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(n)
using std::min;
using std::size_t;

struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  explicit bfloat16(float value) {
    unsigned whole;
    std::memcpy(&whole, &value, 4);
    bits = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
  }
  operator float() const {
    const unsigned whole = unsigned(bits) << 16;
    float value;
    std::memcpy(&value, &whole, 4);
    return value;
  }
};
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T of[N]; };

struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
alignas(128) unsigned char shared[SHARED];
static std::unique_ptr<std::barrier<>> whole_block;
static std::vector<std::unique_ptr<std::barrier<>>> whole_warps;
static unsigned lanes[THREADS];

struct Barrier {
  std::mutex mutex;
  std::condition_variable changed;
  int expected = 0, pending = 0, bytes = 0;
  unsigned phases = 0;
  void change(int arrivals, int more) {
    std::lock_guard lock(mutex);
    pending -= arrivals, bytes += more;
    if (pending == 0 && bytes == 0) ++phases, pending = expected, changed.notify_all();
  }
};
static std::vector<std::unique_ptr<Barrier>> barriers;
inline Barrier& at(unsigned address) { return *barriers[(address - FIRST_BARRIER) / 8]; }
inline size_t __cvta_generic_to_shared(const void* p) { return (const unsigned char*)p - shared; }
inline void __syncthreads() { whole_block->arrive_and_wait(); }
inline unsigned __shfl_xor_sync(unsigned, unsigned value, int step) {
  auto& warp = *whole_warps[threadIdx.x / 32];
  lanes[threadIdx.x] = value;
  warp.arrive_and_wait();
  const unsigned given = lanes[threadIdx.x ^ step];
  warp.arrive_and_wait();
  return given;
}
inline void start(unsigned b, int arrivals) { at(b).expected = at(b).pending = arrivals; }
inline void show_barriers() {}
inline void arrive(unsigned b) { at(b).change(1, 0); }
inline void expect(unsigned b, int bytes) { at(b).change(1, bytes); }
inline void arrive_when_copied(unsigned b) { at(b).change(1, 0); }
inline void wait(unsigned b, unsigned phase) {
  std::unique_lock lock(at(b).mutex);
  at(b).changed.wait(lock, [&] { return (at(b).phases & 1) != phase; });
}
inline void copy(unsigned to, const void* from, int bytes, unsigned b) {
  std::memcpy(shared + to, from, bytes);
  at(b).change(0, -bytes);
}
inline void copy_or_clear(unsigned to, const void* from, bool copies) {
  if (copies) std::memcpy(shared + to, from, 16); else std::memset(shared + to, 0, 16);
}
inline void end_copies() {}
inline void show_copies() {}
// the part of a product of 64 x 16 and 16 x OUTPUTS that one thread holds
inline void multiply(float (&sum)[OUTPUTS / 2], uint64_t pixels, uint64_t weights) {
  const auto element = [](uint64_t matrix, int row, int k) {
    const unsigned first = matrix & 0x3fff, next_k = matrix >> 16 & 0x3fff;
    const unsigned next_rows = matrix >> 32 & 0x3fff;
    bfloat16 found;
    std::memcpy(&found, shared + 16 * (first + row / 8 * next_rows + k / 8 * next_k + row % 8)
        + 2 * (k % 8), 2);
    return float(found);
  };
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  for (int i = 0; i < OUTPUTS / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
    const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) sum[i] += element(pixels, row, k) * element(weights, column, k);
  }
}
// a warp goes through these together
inline void begin_products() { whole_warps[threadIdx.x / 32]->arrive_and_wait(); }
inline void end_products() {}
template <int LEFT> inline void wait_for_products() {
  whole_warps[threadIdx.x / 32]->arrive_and_wait();
}
inline void pin(float&) {}
inline void keep_order() {}
inline void have_few_registers() {}
inline void have_many_registers() {}
"""
CALLED = r"""
extern "C" void run(unsigned blocks, const T* x, const T* weight, const T* bias, const T* residual,
    T* out, int frames, int height, int width, int inputs, int outputs) {
  gridDim.x = blocks;
  for (unsigned block = 0; block < blocks; ++block) {
    whole_block = std::make_unique<std::barrier<>>(THREADS);
    whole_warps.clear(), barriers.clear();
    for (int i = 0; i < THREADS / 32; ++i)
      whole_warps.push_back(std::make_unique<std::barrier<>>(32));
    for (unsigned i = FIRST_BARRIER; i < SHARED; i += 8)
      barriers.push_back(std::make_unique<Barrier>());
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < THREADS; ++i)
      threads.emplace_back([=] {
        threadIdx.x = i, blockIdx.x = block;
        kernel(x, weight, bias, residual, out, frames, height, width, inputs, outputs);
      });
    for (auto& one : threads) one.join();
  }
}
"""


def emulated(outputs: int, with_residual: bool, folder: Path) -> ctypes.CDLL:
    """Compile the kernel for blocks of so many outputs."""
    rings = cuda_conv.PIXEL_STAGES * cuda_conv.PIXEL_BYTES
    rings += cuda_conv.WEIGHT_STAGES * 2 * cuda_conv.DEPTH * outputs
    sizes = {
        "OUTPUTS": outputs,
        "DEPTH": cuda_conv.DEPTH,
        "ROWS": cuda_conv.ROWS,
        "COLUMNS": cuda_conv.COLUMNS,
        "PIXEL_STAGES": cuda_conv.PIXEL_STAGES,
        "WEIGHT_STAGES": cuda_conv.WEIGHT_STAGES,
        "THREADS": cuda_conv.THREADS,
        "FIRST_BARRIER": rings,
        "SHARED": rings + 16 * (cuda_conv.PIXEL_STAGES + cuda_conv.WEIGHT_STAGES),
    }
    constants = "".join(f"constexpr int {name} = {value};\n" for name, value in sizes.items())
    signature = (
        "const T* x, const T* weight, const T* bias, const T* residual, T* out, "
        "int frames, int height, int width, int inputs, int outputs"
    )
    body = cuda_conv.source(with_residual)
    text = f"{constants}{EMULATED}{FUNCTIONS}using T = bfloat16;\n"
    text += f"void kernel({signature}) {{{body}}}\n{CALLED}"
    source, library = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(text)
    assert COMPILER is not None
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w"]
    subprocess.run([COMPILER, *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def bits(x: mx.array) -> np.ndarray:
    """The bits of a bfloat16 array."""
    return np.array(mx.contiguous(x).view(mx.uint16))


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("inputs", "outputs", "frames", "blocks", "with_residual"),
    [(32, 96, 2, 3, True), (16, 192, 1, 1, False), (48, 3, 2, 1, False), (3, 32, 2, 2, True)],
)
def test_the_kernel_convolves(
    inputs: int, outputs: int, frames: int, blocks: int, with_residual: bool, tmp_path: Path
) -> None:
    height, width = 19, 37  # two rows and two columns of tiles, which they do not fill
    conv = CausalConv(inputs, outputs)
    scale = (27 * inputs) ** -0.5
    conv.weight = (mx.random.normal(conv.weight.shape) * scale).astype(mx.bfloat16)
    x = mx.random.normal((frames + 2, height, width, inputs)).astype(mx.bfloat16)
    bias = mx.random.normal((outputs,)).astype(mx.bfloat16)
    residual = mx.random.normal((frames, height, width, outputs)).astype(mx.bfloat16)
    tiled = cuda_conv.tile_weight(conv.weight)
    block_outputs = tiled.shape[-2]
    whole, deep = tiled.shape[0] * block_outputs, tiled.shape[2] * cuda_conv.DEPTH
    out = np.zeros((frames, height, width, whole), np.uint16)
    arrays = [
        bits(mx.pad(x, [*[(0, 0)] * 3, (0, deep - inputs)])),
        bits(tiled),
        bits(mx.pad(bias, (0, whole - outputs))),
        bits(residual),
        out,
    ]
    library = emulated(block_outputs, with_residual, tmp_path)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    library.run(blocks, *pointers, frames, height, width, deep, whole)

    got = mx.array(out).view(mx.bfloat16)[..., :outputs].astype(mx.float32)
    conv.weight = conv.weight.astype(mx.float32)
    expected = conv.without_bias(x.astype(mx.float32)) + bias
    expected = expected + residual if with_residual else expected
    error = mx.linalg.norm(got - expected) / mx.linalg.norm(expected)
    assert error < 4e-3  # of rounding to bfloat16, twice with a residual
    assert mx.abs(got - expected).max() < 0.05
