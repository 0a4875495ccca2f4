"""The C++ of the kernel of `cuda_conv`: instructions of the GPU, functions, and the kernel itself.

Names in capitals are constants, which `cuda_conv` defines or fills in.
"""

# what C++ has no words for; the kernel itself is plain C++
INSTRUCTIONS = """
// barriers, at addresses in shared memory
__device__ __forceinline__ void start(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
// arrives, and makes the barrier wait for so many bytes too
__device__ __forceinline__ void expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
      :: "r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrive_when_copied(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(barrier) : "memory");
}
__device__ __forceinline__ void wait(unsigned barrier, unsigned phase) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;"
      "@!done bra again;}" :: "r"(barrier), "r"(phase) : "memory");
}

// copies to shared memory: of many bytes, for which a barrier waits; and of 16 bytes, or of zeros
__device__ __forceinline__ void copy(unsigned to, const void* from, int bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
__device__ __forceinline__ void copy_or_clear(unsigned to, const void* from, bool copies) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"(to), "l"(from), "r"(copies ? 16 : 0) : "memory");
}
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
// copies of 16 bytes are ordinary writes, which the tensor cores see after this
__device__ __forceinline__ void show_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// adds the product of 64 positions and OUTPUTS channels; see "matrix descriptor" in the PTX manual
__device__ __forceinline__ void multiply(
    float (&sum)[OUTPUTS / 2], unsigned long long pixels, unsigned long long weights) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64nOUTPUTSk16.f32.KIND.KIND PLACES, 1, 1, 1, 0, 0;"
      : OPERANDS : "l"(pixels), "l"(weights));
}
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// waits until only the last LEFT groups of products are still computed
template <int LEFT>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory");
}
// the compiler must not move sums around while the tensor cores write them
__device__ __forceinline__ void pin(float& sum) { asm volatile("" : "+f"(sum) :: "memory"); }
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// registers that a thread of this group has from here on
__device__ __forceinline__ void have_few_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
}
__device__ __forceinline__ void have_many_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
}
"""

FUNCTIONS = """
// a stage of a ring, and the parity of how often the ring has been gone through
template <int STAGES>
struct Place {
  int stage = 0, phase = 0;
  __device__ void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// of two threads `step` apart, the first gives its b, and the second its a
__device__ __forceinline__ void exchange(unsigned& a, unsigned& b, bool second, int step) {
  const unsigned given = __shfl_xor_sync(0xffffffff, second ? a : b, step);
  if (second) a = given; else b = given;
}

template <typename T>
__device__ __forceinline__ unsigned join(T low, T high) {
  return low.bits | unsigned(high.bits) << 16;
}
// the sums of two pairs of numbers
template <typename T>
__device__ __forceinline__ unsigned add(unsigned a, unsigned b) {
  T parts[4];
  parts[0].bits = a, parts[1].bits = a >> 16, parts[2].bits = b, parts[3].bits = b >> 16;
  return join(T(float(parts[0]) + float(parts[2])), T(float(parts[1]) + float(parts[3])));
}
"""

KERNEL = """
  constexpr int PITCH = COLUMNS + 2, PIXELS = (ROWS + 2) * PITCH, VECTOR = 16;
  constexpr int TAPS = 9, FRAMES = 3, PARTS = 4;
  constexpr int PLANE = PIXELS * VECTOR, PIXEL_BYTES = 2 * PLANE;
  constexpr int WEIGHT_BYTES = 2 * OUTPUTS * VECTOR;
  extern __shared__ __align__(128) unsigned char shared[];
  const unsigned pixels = unsigned(__cvta_generic_to_shared(shared));
  const unsigned weights = pixels + PIXEL_STAGES * PIXEL_BYTES;
  const unsigned pixels_there = weights + WEIGHT_STAGES * WEIGHT_BYTES;
  const unsigned pixels_used = pixels_there + 8 * PIXEL_STAGES;
  const unsigned weights_there = pixels_used + 8 * PIXEL_STAGES;
  const unsigned weights_used = weights_there + 8 * WEIGHT_STAGES;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < PIXEL_STAGES; ++i) {
      start(pixels_there + 8 * i, 96);  // threads that load
      start(pixels_used + 8 * i, 8);  // warps that multiply
    }
    for (int i = 0; i < WEIGHT_STAGES; ++i) {
      start(weights_there + 8 * i, 1);
      start(weights_used + 8 * i, 8);
    }
    show_barriers();
  }
  __syncthreads();
  const int across = (width + COLUMNS - 1) / COLUMNS, down = (height + ROWS - 1) / ROWS;
  const int chunks = inputs / DEPTH, blocks = outputs / OUTPUTS;
  const int tiles = frames * down * across * blocks;

  const auto load_weights = [&] {
    if (lane > 0) return;
    Place<WEIGHT_STAGES> at;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const auto* from = reinterpret_cast<const unsigned char*>(weight)
          + size_t(tile % blocks) * FRAMES * chunks * TAPS * WEIGHT_BYTES;
      for (int i = 0; i < FRAMES * chunks * TAPS; ++i, from += WEIGHT_BYTES, at.advance()) {
        const unsigned there = weights_there + 8 * at.stage;
        wait(weights_used + 8 * at.stage, at.phase ^ 1);
        expect(there, WEIGHT_BYTES);
        copy(weights + at.stage * WEIGHT_BYTES, from, WEIGHT_BYTES, there);
      }
    }
  };
  const auto load_pixels = [&] {
    Place<PIXEL_STAGES> at;
    const int side = lane % 2;  // two threads for the 16 channels of a pixel
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int place = tile / blocks, frame = place / across / down;
      const int top = place / across % down * ROWS - 1, left = place % across * COLUMNS - 1;
      for (int i = 0; i < FRAMES * chunks; ++i, at.advance()) {
        wait(pixels_used + 8 * at.stage, at.phase ^ 1);
        const T* from = x + size_t(frame + i / chunks) * height * width * inputs
            + i % chunks * DEPTH + side * DEPTH / 2;
        const unsigned to = pixels + at.stage * PIXEL_BYTES + side * PLANE;
#pragma unroll 2
        for (int pixel = 16 * (warp - 1) + lane / 2; pixel < PIXELS; pixel += 48) {
          const int row = top + pixel / PITCH, column = left + pixel % PITCH;
          const bool inside = unsigned(row) < height && unsigned(column) < width;
          const int offset = inside ? (row * width + column) * inputs : 0;
          copy_or_clear(to + pixel * VECTOR, from + offset, inside);
        }
        arrive_when_copied(pixels_there + 8 * at.stage);
      }
    }
    end_copies();
  };
  if (group == 2) {
    have_few_registers();
    if (warp == 0)
      load_weights();
    else
      load_pixels();
    return;
  }

  have_many_registers();
  // of a matrix in shared memory, in vectors: from 8 channels to the next 8, and from 8 positions
  // or outputs to the next 8; its first vector is in the lowest bits
  constexpr unsigned long long OF_PIXELS = 1ull * PIXELS << 16 | 1ull * PITCH << 32;
  constexpr unsigned long long OF_WEIGHTS = 1ull * OUTPUTS << 16 | 8ull << 32;
  Place<PIXEL_STAGES> in_pixels;
  Place<WEIGHT_STAGES> in_weights;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sum[PARTS][OUTPUTS / 2];  // a part has 8 rows and 8 columns of positions
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
      for (int j = 0; j < OUTPUTS / 2; ++j) sum[part][j] = 0;
    int used_pixels = -1, used_weights = -1;
    for (int i = 0; i < FRAMES * chunks; ++i) {
      wait(pixels_there + 8 * in_pixels.stage, in_pixels.phase);
      show_copies();
      const unsigned top = pixels + in_pixels.stage * PIXEL_BYTES + 8 * group * PITCH * VECTOR;
#pragma unroll 1
      for (int tap = 0; tap < TAPS; ++tap) {
        wait(weights_there + 8 * in_weights.stage, in_weights.phase);
        const unsigned first = top + (tap / 3 * PITCH + tap % 3) * VECTOR;
        const unsigned first_weight = weights + in_weights.stage * WEIGHT_BYTES;
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
#pragma unroll
          for (int j = 0; j < OUTPUTS / 2; ++j) pin(sum[part][j]);
        begin_products();
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
          multiply(sum[part], first / VECTOR + 8 * part | OF_PIXELS,
                   first_weight / VECTOR | OF_WEIGHTS);
        end_products();
        wait_for_products<1>();  // those of the tap before are done
        if (lane == 0 && used_weights >= 0) {
          arrive(weights_used + 8 * used_weights);
          if (tap == 0) arrive(pixels_used + 8 * used_pixels);
        }
        used_weights = in_weights.stage;
        in_weights.advance();
      }
      used_pixels = in_pixels.stage;
      in_pixels.advance();
    }
    wait_for_products<0>();
#pragma unroll
    for (int part = 0; part < PARTS; ++part)
#pragma unroll
      for (int j = 0; j < OUTPUTS / 2; ++j) pin(sum[part][j]);
    if (lane == 0) {
      arrive(weights_used + 8 * used_weights);
      arrive(pixels_used + 8 * used_pixels);
    }

    // a warp has two rows of a part; of each position, four threads have two channels of every
    // eight, and exchange them, so that a thread has eight neighbours of every 32
    const int channel = tile % blocks * OUTPUTS, place = tile / blocks, quarter = lane % 4;
    const int row = place / across % down * ROWS + 8 * group + 2 * warp;
    const int column = place % across * COLUMNS + lane / 4;
    const size_t top = size_t(place / across / down) * height;
    Pack<unsigned, 4> held[OUTPUTS / 32][PARTS][2];
#pragma unroll
    for (int many = 0; many < OUTPUTS / 32; ++many) {
      float of[8];
#pragma unroll
      for (int j = 0; j < 8; ++j)
        of[j] = float(bias[channel + 32 * many + j / 2 * 8 + 2 * quarter + j % 2]);
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          unsigned pairs[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int at = 4 * (4 * many + j) + 2 * half;
            pairs[j] = join(T(sum[part][at] + of[2 * j]), T(sum[part][at + 1] + of[2 * j + 1]));
          }
          exchange(pairs[0], pairs[1], quarter & 1, 1);
          exchange(pairs[2], pairs[3], quarter & 1, 1);
          exchange(pairs[0], pairs[2], quarter & 2, 2);
          exchange(pairs[1], pairs[3], quarter & 2, 2);
#pragma unroll
          for (int j = 0; j < 4; ++j) held[many][part][half].of[j] = pairs[j];
        }
    }
#pragma unroll
    for (int many = 0; many < OUTPUTS / 32; ++many) {
      keep_order();  // the residual of one round at a time, to save registers
      const int first = channel + 32 * many + 8 * quarter;
      LOAD
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int y = row + half, left = column + 8 * part;
          if (y >= height || left >= width) continue;
          ADD
          T* to = out + ((top + y) * width + left) * outputs + first;
          *reinterpret_cast<Pack<unsigned, 4>*>(to) = held[many][part][half];
        }
    }
  }
"""
LOAD = """
      Pack<unsigned, 4> more[PARTS][2];
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int y = min(row + half, height - 1), left = min(column + 8 * part, width - 1);
          more[part][half] = *reinterpret_cast<const Pack<unsigned, 4>*>(
              residual + ((top + y) * width + left) * outputs + first);
        }
"""
ADD = """
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            unsigned& pair = held[many][part][half].of[j];
            pair = add<T>(pair, more[part][half].of[j]);
          }
"""
