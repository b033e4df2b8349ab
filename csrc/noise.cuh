// The CUDA twin of wanspec_kernels/noise.py: the same bits, every float operation rounded once.
//
// tests/csrc/noise_host.cpp runs this file without a GPU, so the intrinsics used are few.
#pragma once

#include <cstdint>

namespace wanspec {

constexpr int32_t kRounds = 7;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyIncrement0 = 0x9E3779B9u, kKeyIncrement1 = 0xBB67AE85u;
constexpr uint32_t kRefineBelow = 1u << 16;
constexpr int32_t kWeightBits = 40;
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -0.000212194442f;
constexpr float kLog2E = 1.44269502f;
constexpr int32_t kSqrtHalfBits = 0x3F3504F3;
constexpr float kWord = 0x1p-32f;

enum Stream : uint32_t { kTokenStream = 0, kCoinStream = 4, kResidualStream = 8 };

struct NoiseKey {
  int64_t position;
  int64_t seed;
  uint32_t stream;
};

// One instruction, where the compiler's own 64-bit product adds a zero.
__device__ inline uint64_t wide_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return uint64_t{a} * b;
#endif
}

// Philox4x32-7 of a counter. Of stream s, its halves are the upper halves of the words of tokens
// 8 * counter to 8 * counter + 7; of stream s + 1 the lower ones.
__device__ inline void philox4(uint32_t counter, const NoiseKey& key, uint32_t (&words)[4]) {
  uint32_t c0 = counter, c1 = static_cast<uint32_t>(key.position);
  uint32_t c2 = static_cast<uint32_t>(key.position >> 32), c3 = key.stream;
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
#pragma unroll
  for (int32_t round = 0; round < kRounds; ++round) {
    const uint64_t p0 = wide_product(c0, kMultiplier0), p1 = wide_product(c2, kMultiplier1);
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += kKeyIncrement0;
    k1 += kKeyIncrement1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

__device__ inline uint32_t half_of(uint32_t token, const NoiseKey& key) {
  uint32_t words[4];
  philox4(token / 8, key, words);
  const uint32_t low = token & 2 ? words[1] : words[0], high = token & 2 ? words[3] : words[2];
  return (token & 4 ? high : low) >> 16 * (token & 1) & 0xFFFF;
}

__device__ inline uint32_t word_of(uint32_t token, const NoiseKey& key) {
  const NoiseKey next{key.position, key.seed, key.stream + 1};
  return half_of(token, key) << 16 | half_of(token, next);
}

template <int32_t kDegree>
__device__ inline float polynomial(const float (&coefficients)[kDegree], float x) {
  float result = coefficients[kDegree - 1];
#pragma unroll
  for (int32_t i = kDegree - 2; i >= 0; --i) {
    result = __fadd_rn(__fmul_rn(result, x), coefficients[i]);
  }
  return result;
}

// ln(x) of normal positive numbers.
__device__ inline float natural_log(float x) {
  constexpr float kCoefficients[8] = {-0.49999994f,  0.333336592f, -0.250016093f, 0.199731052f,
                                      -0.165750474f, 0.148064598f, -0.142577946f, 0.0900420249f};
  const int32_t bits = __float_as_int(x) - kSqrtHalfBits;
  const float exponent = __int2float_rn(bits >> 23);
  const float f = __fadd_rn(__int_as_float((bits & 0x7FFFFF) + kSqrtHalfBits), -1.0f);
  const float log1p = __fadd_rn(f, __fmul_rn(__fmul_rn(f, f), polynomial(kCoefficients, f)));
  return __fadd_rn(__fmul_rn(exponent, kLn2High), __fadd_rn(__fmul_rn(exponent, kLn2Low), log1p));
}

// The uniform behind a word, as noise near 0 needs it.
__device__ inline float lower_uniform(uint32_t token, const NoiseKey& key, uint32_t word) {
  if (word >= kRefineBelow) return __fmul_rn(__fadd_rn(__uint2float_rn(word), 0.5f), kWord);
  const uint32_t fine = word_of(token, NoiseKey{key.position, key.seed, key.stream + 2});
  const float fraction = __fmul_rn(__fadd_rn(__uint2float_rn(fine), 0.5f), kWord);
  return __fmul_rn(__fadd_rn(__uint2float_rn(word), fraction), kWord);
}

// Uniform, never 0 and at most 1 - 2^-24.
__device__ inline float uniform(uint32_t token, const NoiseKey& key) {
  const float lower = lower_uniform(token, key, word_of(token, key));
  return lower > 1.0f - 0x1p-24f ? 1.0f - 0x1p-24f : lower;
}

// Standard Gumbel noise of a token whose word is known; the larger the word, the smaller the noise.
__device__ inline float gumbel_of(uint32_t word, uint32_t token, const NoiseKey& key) {
  constexpr float kCoefficients[8] = {0.49999997f,   0.208343267f, 0.124600366f,  0.0931975767f,
                                      0.0219477788f, 0.220975861f, -0.290558934f, 0.327658623f};
  if (word >= 1u << 31) {
    const float upper = __fmul_rn(__fadd_rn(__uint2float_rn(~word), 0.5f), kWord);
    return -natural_log(-natural_log(upper));
  }
  const float lower = lower_uniform(token, key, word);
  const float correction = __fmul_rn(lower, polynomial(kCoefficients, lower));
  return -__fadd_rn(natural_log(lower), correction);
}

__device__ inline float gumbel(uint32_t token, const NoiseKey& key) {
  return gumbel_of(word_of(token, key), token, key);
}

// At least gumbel_of any word with this upper half, for a tenth of the work: that is at most
// -ln(half / 2^16), and the bits of a float, read as a number, lie below its logarithm.
__device__ inline float most_gumbel_of_half(uint32_t half) {
  constexpr float kLn2 = 0.693147181f;
  constexpr float kMargin = 1e-3f;  // a hundred times the rounding
  const float bits = __int2float_rn(__float_as_int(__int2float_rn(static_cast<int32_t>(half))));
  return __fmaf_rn(bits, -kLn2 * 0x1p-23f, (16 + 127) * kLn2 + kMargin);
}

// exp(x) * 2^kWeightBits for x <= 0, before it is rounded down to a weight.
__device__ inline float scaled_exp(float x) {
  constexpr float kCoefficients[5] = {0.5f, 0.166665763f, 0.041666463f, 0.00836319756f,
                                      0.00139336765f};
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > -64.0f ? x : -64.0f;
  const float shifted = __fadd_rd(__fadd_rn(__fmul_rn(x, kLog2E), 0.5f), kMagic);
  const float n = __fadd_rn(shifted, -kMagic);
  const float r =
      __fadd_rn(__fadd_rn(x, -__fmul_rn(n, kLn2High)), -__fmul_rn(n, kLn2Low));
  const float tail = __fmul_rn(__fmul_rn(r, r), polynomial(kCoefficients, r));
  const float mantissa = __fadd_rn(1.0f, __fadd_rn(r, tail));
  const int32_t exponent = __float_as_int(shifted) - __float_as_int(kMagic) + 127 + kWeightBits;
  return __fmul_rn(mantissa, __int_as_float(exponent << 23));
}

// exp(x) for x <= 0 in fixed point with kWeightBits fraction bits.
__device__ inline uint64_t weight(float x) { return __float2ull_rz(scaled_exp(x)); }

}  // namespace wanspec
