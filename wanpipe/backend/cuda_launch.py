"""Compiles and launches CUDA kernels from sources without includes.

Most kernels compile in 0.04 s, once for all processes. `mx.fast.cuda_kernel` would prepend MLX's
headers, which take 2.5 s per kernel in every process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import mlx.core as mx

from wanpipe.backend import kernel_cache, nvrtc
from wanpipe.backend.device import architecture

C_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
    mx.uint32: "unsigned",
}

# prepended to every kernel
HEADER = """
struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  __device__ explicit bfloat16(float value) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const unsigned whole = __float_as_uint(value);
    bits = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
#endif
  }
  __device__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};

struct float16 {
  unsigned short bits;
  float16() = default;
  __device__ explicit float16(float value) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  __device__ operator float() const {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
};

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


@dataclass(frozen=True)
class Kernel:
    """A kernel's name, the body of its function, and the `functions` that it calls.

    `shared` counts the bytes of shared memory that a launch gets. A `specific` kernel uses
    instructions that only this GPU's architecture has, and one block of it fills a multiprocessor.
    """

    name: str
    source: str
    functions: str = ""
    shared: int = 0
    specific: bool = False


@cache
def compile_kernel(
    kernel: Kernel,
    threads: int,
    inputs: tuple[tuple[str, mx.Dtype], ...],
    outputs: tuple[tuple[str, mx.Dtype], ...],
    scalars: tuple[str, ...],
    template: tuple[tuple[str, mx.Dtype | int], ...],
) -> tuple[str, bytes]:
    """Compile a kernel with these arguments, and return its unique name and its cubin.

    The entries of `template` become constants and types of its source.
    """
    arguments = [f"const {C_TYPES[dtype]}* {one}" for one, dtype in inputs]
    arguments += [f"{C_TYPES[dtype]}* {one}" for one, dtype in outputs]
    arguments += [f"int {one}" for one in scalars]
    constants = "".join(
        f"  constexpr int {one} = {value};\n"
        if isinstance(value, int)
        else f"  using {one} = {C_TYPES[value]};\n"
        for one, value in template
    )
    body = f"({', '.join(arguments)}) {{\n{constants}{kernel.source}}}\n"
    bounds = f"__launch_bounds__({threads}, 1) " if kernel.specific else ""
    header = HEADER + kernel.functions
    digest = sha256((header + bounds + body).encode()).hexdigest()[:16]
    symbol = f"wanpipe_{kernel.name}_{digest}"
    text = f'{header}\nextern "C" __global__ void {bounds}{symbol}{body}'
    version, gpu = nvrtc.version(), architecture() + ("a" if kernel.specific else "")
    name = f"{symbol}-{gpu}-{version}.cubin"
    return symbol, kernel_cache.compiled(name, lambda: nvrtc.compile(text, gpu))


def launch(
    kernel: Kernel,
    inputs: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    scalars: Mapping[str, int],
    template: Mapping[str, mx.Dtype | int],
    blocks: int,
    threads: int,
) -> list[mx.array]:
    """Run a kernel on `blocks` blocks of `threads` threads; inputs are made contiguous."""
    symbol, cubin = compile_kernel(
        kernel,
        threads,
        tuple((one, array.dtype) for one, array in inputs.items()),
        tuple((one, dtype) for one, (_, dtype) in outputs.items()),
        tuple(scalars),
        tuple(template.items()),
    )
    return mx.fast.precompiled_cuda_kernel(
        name=symbol,
        compiled_source=cubin,
        inputs=list(inputs.values()),
        output_shapes=[tuple(shape) for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        scalars=list(scalars.values()),
        grid=(blocks * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        shared_memory=kernel.shared,
        ensure_row_contiguous=True,
    )
