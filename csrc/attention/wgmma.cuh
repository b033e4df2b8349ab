// Warpgroup matrix products: tiles in shared memory, results in registers.
//
// Tiles consist of atoms of 8 rows of 128 bytes, swizzled as the copy engine's 128-byte mode does
// it. Of a result, thread t of the warpgroup holds in d[4j .. 4j + 3] columns 8j + t % 4 * 2 and
// the next, of row t / 32 * 16 + t % 32 / 4 and then of the row 8 below.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "hopper.cuh"

namespace wanspec::attention {

constexpr int32_t kAtom = 1024;       // bytes
constexpr int32_t kAtomColumns = 64;  // of 16 bits

// The descriptor of an operand. `group_stride`: bytes from 8 rows to the next 8. `column_stride`:
// from 64 columns to the next 64, if the product goes along the rows (V); unused if along the
// columns (Q, K).
__device__ inline uint64_t describe(const void* start, int32_t column_stride, int32_t group_stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t(group_stride >> 4) << 32 | uint64_t(column_stride >> 4) << 16 |
         (shared_address(start) & 0x3ffff) >> 4;
}

__device__ inline uint64_t advance(uint64_t descriptor, int32_t bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until no more than the `kPending` groups committed last are running. Products run behind
// the compiler's back: it must move no use of their registers across the wait.
template <int kPending, int kCount>
__device__ __forceinline__ void wait_for_products(float (&results)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(results[i])::"memory");
}

#define WANSPEC_OUT_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WANSPEC_OUT_16(d, i) \
  WANSPEC_OUT_4(d, i), WANSPEC_OUT_4(d, i + 4), WANSPEC_OUT_4(d, i + 8), WANSPEC_OUT_4(d, i + 12)
#define WANSPEC_OUT_32(d, i) WANSPEC_OUT_16(d, i), WANSPEC_OUT_16(d, i + 16)
#define WANSPEC_NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WANSPEC_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define WANSPEC_ROWS_BY_ROWS(n, type, names, a_name, b_name, p_name, ...)                         \
  asm volatile(                                                                                   \
      "{\n.reg .pred p;\nsetp.ne.b32 p, " p_name ", 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" names "}, " a_name ", " \
      b_name ", p, 1, 1, 0, 0;\n}\n"                                                              \
      : __VA_ARGS__                                                                               \
      : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)))

#define WANSPEC_ROWS_BY_COLUMNS(n, type, names, a_names, b_name, ...)                         \
  asm volatile(                                                                               \
      "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" names "}, {" a_names \
      "}, " b_name ", 1, 1, 1, 1;\n"                                                          \
      : __VA_ARGS__                                                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d = A B' + (accumulate ? d : 0), A [64, 16] and B [n, 16] in shared memory; n is 2 * kCount.
template <typename T, int kCount>
__device__ __forceinline__ void multiply_rows(float (&d)[kCount], uint64_t a, uint64_t b,
                                              bool accumulate) {
  static_assert(kCount == 32 || kCount == 64);
  constexpr bool kBFloat = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kCount == 32 && kBFloat) {
    WANSPEC_ROWS_BY_ROWS("64", "bf16", WANSPEC_NAMES_32, "%32", "%33", "%34", WANSPEC_OUT_32(d, 0));
  } else if constexpr (kCount == 32) {
    WANSPEC_ROWS_BY_ROWS("64", "f16", WANSPEC_NAMES_32, "%32", "%33", "%34", WANSPEC_OUT_32(d, 0));
  } else if constexpr (kBFloat) {
    WANSPEC_ROWS_BY_ROWS("128", "bf16", WANSPEC_NAMES_64, "%64", "%65", "%66", WANSPEC_OUT_32(d, 0),
                         WANSPEC_OUT_32(d, 32));
  } else {
    WANSPEC_ROWS_BY_ROWS("128", "f16", WANSPEC_NAMES_64, "%64", "%65", "%66", WANSPEC_OUT_32(d, 0),
                         WANSPEC_OUT_32(d, 32));
  }
}

// d[kFirst ..] += A B, A [64, 16] in registers and B [16, n] in shared memory; n is 2 * kCount.
template <typename T, int kFirst, int kCount, int kTotal>
__device__ __forceinline__ void multiply_columns(float (&d)[kTotal], const uint32_t* a, uint64_t b) {
  static_assert(kCount == 32 || kCount == 64);
  constexpr bool kBFloat = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kCount == 32 && kBFloat) {
    WANSPEC_ROWS_BY_COLUMNS("64", "bf16", WANSPEC_NAMES_32, "%32, %33, %34, %35", "%36",
                            WANSPEC_OUT_32(d, kFirst));
  } else if constexpr (kCount == 32) {
    WANSPEC_ROWS_BY_COLUMNS("64", "f16", WANSPEC_NAMES_32, "%32, %33, %34, %35", "%36",
                            WANSPEC_OUT_32(d, kFirst));
  } else if constexpr (kBFloat) {
    WANSPEC_ROWS_BY_COLUMNS("128", "bf16", WANSPEC_NAMES_64, "%64, %65, %66, %67", "%68",
                            WANSPEC_OUT_32(d, kFirst), WANSPEC_OUT_32(d, kFirst + 32));
  } else {
    WANSPEC_ROWS_BY_COLUMNS("128", "f16", WANSPEC_NAMES_64, "%64, %65, %66, %67", "%68",
                            WANSPEC_OUT_32(d, kFirst), WANSPEC_OUT_32(d, kFirst + 32));
  }
}

#undef WANSPEC_ROWS_BY_ROWS
#undef WANSPEC_ROWS_BY_COLUMNS
#undef WANSPEC_NAMES_32
#undef WANSPEC_NAMES_64
#undef WANSPEC_OUT_4
#undef WANSPEC_OUT_16
#undef WANSPEC_OUT_32

}  // namespace wanspec::attention
