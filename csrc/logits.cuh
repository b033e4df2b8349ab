// Eight neighbouring logits of any dtype, and floats as integers of the same order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace wanspec {

constexpr float kLowest = -0x1.fffffep127f;  // below every logit but -inf
constexpr uint32_t kInfinityKey = 0xFF800000u;
constexpr uint32_t kMinusInfinityKey = 0x007FFFFFu;

// In the order of the numbers; both zeros are one, and NaN is above all.
__device__ inline uint32_t key_of(float x) {
  if (x != x) return 0xFFFFFFFFu;
  const int32_t bits = __float_as_int(__fadd_rn(x, 0.0f));
  return static_cast<uint32_t>(bits ^ (bits >> 31 | static_cast<int32_t>(0x80000000u)));
}

__device__ inline float value_of(uint32_t key) {
  return __int_as_float(static_cast<int32_t>(key & 0x80000000u ? key ^ 0x80000000u : ~key));
}

// A score and its token in the order that the largest wins, the lowest token among equals.
__device__ inline uint64_t winner_key(float score, uint32_t token) {
  return uint64_t{key_of(score)} << 32 | ~token;
}
__device__ inline uint32_t winner_token(uint64_t key) { return ~static_cast<uint32_t>(key); }

// Spelled out, as torch builds extensions without the implicit conversions.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename Logit>
__device__ Logit from_float(float x);
template <>
__device__ inline float from_float(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half from_float(float x) { return __float2half_rn(x); }

__device__ inline float nan_max(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

template <typename Pair, typename Half>
struct Halves {
  struct alignas(16) Pairs {
    Pair pair[4];
  } raw;
  __device__ explicit Halves(const Half* at) : raw(*reinterpret_cast<const Pairs*>(at)) {}
  __device__ float operator[](int32_t i) const {
    const Pair& pair = raw.pair[i / 2];
    return to_float(i % 2 == 0 ? pair.x : pair.y);
  }
  __device__ float largest() const {
    const Pair four = __hmax2_nan(__hmax2_nan(raw.pair[0], raw.pair[1]),
                                  __hmax2_nan(raw.pair[2], raw.pair[3]));
    return to_float(__hmax_nan(four.x, four.y));
  }
};

// Eight neighbours, 16-byte aligned; largest() is NaN if one is. A float32 that holds such a logit
// ends in kKeyShift zeros, so keys come in steps of 2^kKeyShift.
template <typename Logit>
struct Vec8;

template <>
struct Vec8<__nv_bfloat16> : Halves<__nv_bfloat162, __nv_bfloat16> {
  static constexpr uint32_t kKeyShift = 16;
  using Halves::Halves;
};

template <>
struct Vec8<__half> : Halves<__half2, __half> {
  static constexpr uint32_t kKeyShift = 13;
  using Halves::Halves;
};

template <>
struct Vec8<float> {
  static constexpr uint32_t kKeyShift = 0;
  float4 low, high;
  __device__ explicit Vec8(const float* at)
      : low(reinterpret_cast<const float4*>(at)[0]), high(reinterpret_cast<const float4*>(at)[1]) {}
  __device__ float operator[](int32_t i) const {
    const float4& half = i < 4 ? low : high;
    return i % 4 == 0 ? half.x : i % 4 == 1 ? half.y : i % 4 == 2 ? half.z : half.w;
  }
  __device__ float largest() const {
    return nan_max(nan_max(nan_max(low.x, low.y), nan_max(low.z, low.w)),
                   nan_max(nan_max(high.x, high.y), nan_max(high.z, high.w)));
  }
};

}  // namespace wanspec
