// The softmax of scores as a product leaves them, two rows a thread, a tile at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "hopper.cuh"

namespace wanspec::attention {

// Of a thread's two rows. `max` is the same in the four lanes that share a row, `sum` this lane's
// part.
struct RowStats {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float max_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ inline float sum_of_quad(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Where a row's exponents are counted from; a row that has seen nothing has no maximum.
__device__ inline float exponent_base(float max, float scale_log2) {
  return max == -INFINITY ? 0.0f : max * scale_log2;
}

// Turns scores into weights; `decay` is what earlier sums and products are worth from now on.
template <int kCount>
__device__ __forceinline__ void weigh(float (&scores)[kCount], RowStats& stats, float scale_log2,
                                      float (&decay)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float max = fmaxf(scores[2 * h], scores[2 * h + 1]);
#pragma unroll
    for (int i = 4; i < kCount; i += 4) {
      max = fmaxf(max, fmaxf(scores[i + 2 * h], scores[i + 2 * h + 1]));
    }
    max = fmaxf(stats.max[h], max_of_quad(max));
    const float base = exponent_base(max, scale_log2);
    decay[h] = exp2_fast(stats.max[h] * scale_log2 - base);
    stats.max[h] = max;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        scores[i + e] = exp2_fast(fmaf(scores[i + e], scale_log2, -base));
        sum += scores[i + e];
      }
    }
    stats.sum[h] = stats.sum[h] * decay[h] + sum;
  }
}

template <int kCount>
__device__ __forceinline__ void scale_rows(float (&d)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    d[i] *= factor[0], d[i + 1] *= factor[0];
    d[i + 2] *= factor[1], d[i + 3] *= factor[1];
  }
}

// Two numbers side by side, `low` first in memory.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// Results become the left operand of the next product: 16 columns are four registers in either
// form.
template <typename T, int kCount>
__device__ __forceinline__ void pack_weights(const float (&scores)[kCount],
                                             uint32_t (&weights)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
}

// Which of the 32 slots from `slot` on node `bits` sees: bit j of them is node j of the tree, which
// lies at context_len + j. Slots of the context come as bits below 0; behind the words nothing is
// seen.
__device__ inline uint32_t seen_slots(const uint32_t* bits, int32_t num_words, int32_t from) {
  const int32_t word = from >> 5;
  const auto at = [&](int32_t i) { return i < 0 ? ~0u : i < num_words ? bits[i] : 0u; };
  return __funnelshift_r(at(word), at(word + 1), from & 31);
}

// Scores of the slots from `from` (counted from the end of the context) that a row's node does not
// see become -inf. `bits`: of the nodes of the thread's two rows, `num_words` of 32 bits.
template <int kCount>
__device__ __forceinline__ void mask(float (&scores)[kCount], const uint32_t* const (&bits)[2],
                                     int32_t num_words, int32_t from) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int w = 0; w < kCount / 16; ++w) {
      const uint32_t seen = seen_slots(bits[h], num_words, from + 32 * w) >> threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[16 * w + 4 * i + 2 * h + e];
          score = seen & 1u << (8 * i + e) ? score : -INFINITY;
        }
      }
    }
  }
}

}  // namespace wanspec::attention
