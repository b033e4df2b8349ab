// Runs csrc/noise.cuh on the host: its intrinsics are single IEEE operations, which the compiler must
// not contract (-ffp-contract=off).
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__

namespace {

float __fadd_rn(float a, float b) { return a + b; }
float __fmul_rn(float a, float b) { return a * b; }
float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
float __int2float_rn(int32_t x) { return static_cast<float>(x); }
float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }
uint64_t __float2ull_rz(float x) { return static_cast<uint64_t>(x); }

template <typename To, typename From>
To bits(From x) {
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
int32_t __float_as_int(float x) { return bits<int32_t>(x); }
float __int_as_float(int32_t x) { return bits<float>(x); }

float rounded_down(double exact, float nearest) {
  return nearest > exact ? std::nextafter(nearest, -INFINITY) : nearest;
}
float __fadd_rd(float a, float b) { return rounded_down(double{a} + double{b}, a + b); }
float __uint2float_rd(uint32_t x) { return rounded_down(x, static_cast<float>(x)); }

}  // namespace

#include "noise.cuh"

extern "C" {

void gumbels(const uint32_t* tokens, int64_t count, int64_t position, int64_t seed,
             uint32_t stream, float* noise, float* uniforms) {
  const wanspec::NoiseKey key{position, seed, stream};
  for (int64_t i = 0; i < count; ++i) {
    noise[i] = wanspec::gumbel(tokens[i], key);
    uniforms[i] = wanspec::uniform(tokens[i], key);
  }
}

void weights(const float* x, int64_t count, int64_t* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = static_cast<int64_t>(wanspec::weight(x[i]));
}

// gumbel_of each word, and the bound by its upper half; `fine` is any token for refinement.
void bounds(const uint32_t* words, int64_t count, uint32_t fine, float* noise, float* most) {
  const wanspec::NoiseKey key{7, 8, 0};
  for (int64_t i = 0; i < count; ++i) {
    noise[i] = wanspec::gumbel_of(words[i], fine, key);
    most[i] = wanspec::most_gumbel_of_half(words[i] >> 16);
  }
}
}
