// Results of blocks of rows: to the output, or as partials that a second kernel merges.
//
// Rows are (node, head of the group). A partial keeps the order in which products leave their
// results, so that both kernels move it in whole vectors, thread by thread.
#pragma once

#include <cstdint>

#include "hopper.cuh"
#include "softmax.cuh"
#include "work_split.cuh"

namespace wanspec::attention {

constexpr int32_t kGroups = 2;     // warpgroups that multiply
constexpr int32_t kGroupRows = 64;
constexpr int32_t kSliceColumns = 32;  // a quad's four lanes have eight neighbours each in turn

// What an item's first piece says of it to the second kernel.
struct alignas(16) MergeTask {
  int32_t num_pieces;  // 0: nothing to merge
  int32_t first_node, rows, kv_head;
};

struct Workspace {
  float4* results;   // [partials, kGroups, dim / 8, kGroupThreads]: products, not yet divided
  float2* stats;     // [partials, kBlockRows]: maximum in powers of two, and sum
  MergeTask* tasks;  // [kLines, blocks], of the item that a block leaves begun

  __host__ __device__ static size_t bytes(int32_t blocks, int32_t dim) {
    const size_t a_partial = kBlockRows * (dim * sizeof(float) + sizeof(float2));
    return size_t{kLines} * blocks * (2 * a_partial + sizeof(MergeTask));
  }
  __host__ Workspace(void* memory, int32_t blocks, int32_t dim) {
    const size_t rows = size_t{2} * kLines * blocks * kBlockRows;
    results = static_cast<float4*>(memory);
    stats = reinterpret_cast<float2*>(results + rows * dim / 4);
    tasks = reinterpret_cast<MergeTask*>(stats + rows);
  }
};

__device__ inline float4* results_of(const Workspace& workspace, int32_t partial, int32_t group,
                                     int32_t dim) {
  return workspace.results + (int64_t{partial} * kGroups + group) * (dim / 8) * kGroupThreads +
         threadIdx.x % kGroupThreads;
}

// The thread's two rows of its warpgroup's 64: this one and the one 8 below.
__device__ inline int32_t first_row() {
  return threadIdx.x % kGroupThreads / 32 * 16 + threadIdx.x % 32 / 4;
}

// Writes kSliceColumns columns from `column` of the thread's two rows.
template <typename T, int kDim>
__device__ __forceinline__ void store_slice(const Problem& problem, int32_t first_node, int32_t rows,
                                            int32_t kv_head, int32_t row, int32_t column,
                                            const float (&values)[16]) {
  const int32_t q = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h, row += 8) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack<T>(values[4 * i + 2 * h], values[4 * i + 2 * h + 1]);
    // Lane q has word q of four vectors of 16 bytes and takes vector q.
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & step) continue;
        const bool upper = q & step;
        const uint32_t theirs =
            __shfl_xor_sync(kAllLanes, upper ? words[i] : words[i + step], step);
        (upper ? words[i] : words[i + step]) = theirs;
      }
    }
    if (row < rows) {
      const int64_t node = first_node + row / problem.group;
      const int32_t head = kv_head * problem.group + row % problem.group;
      T* out = static_cast<T*>(problem.out) + (node * problem.heads + head) * kDim + column + 8 * q;
      *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void store_rows(const Problem& problem, const Piece& piece, int32_t row,
                                           const float (&results)[kDim / 2], const RowStats& stats) {
  const float factor[2] = {1 / stats.sum[0], 1 / stats.sum[1]};
#pragma unroll
  for (int s = 0; s < kDim / kSliceColumns; ++s) {
    float values[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) values[i] = results[16 * s + i] * factor[i / 2 % 2];
    store_slice<T, kDim>(problem, piece.first_node, piece.nodes * problem.group, piece.kv_head, row,
                         s * kSliceColumns, values);
  }
}

template <int kDim>
__device__ __forceinline__ void store_partial(const Workspace& workspace, int32_t partial, int32_t group,
                                              const float (&results)[kDim / 2], const RowStats& stats,
                                              float scale_log2) {
  float4* to = results_of(workspace, partial, group, kDim);
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
    const float* d = results + 4 * i;
    to[i * kGroupThreads] = make_float4(d[0], d[1], d[2], d[3]);
  }
  if (threadIdx.x % 4 == 0) {
    float2* rows = workspace.stats + int64_t{partial} * kBlockRows + group * kGroupRows + first_row();
    rows[0] = make_float2(stats.max[0] * scale_log2, stats.sum[0]);
    rows[8] = make_float2(stats.max[1] * scale_log2, stats.sum[1]);
  }
}

// Block (x, y, line) merges one slice of columns of one warpgroup's rows of the item that block x
// of the first kernel left begun, pieces in their order along the slots: who came first does not
// matter.
template <typename T, int kDim>
__global__ void __launch_bounds__(kGroupThreads)
    merge_partials_kernel(const Problem problem, const Workspace workspace) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int32_t kSlices = kDim / kSliceColumns, kVectors = kSliceColumns / 8;
  const int32_t group = blockIdx.y / kSlices, slice = blockIdx.y % kSlices;
  const int32_t row = group * kGroupRows + first_row();
  const int32_t line = kSingles - static_cast<int32_t>(blockIdx.z);
  let_next_kernel_launch();
  wait_for_last_kernel();
  const MergeTask task = workspace.tasks[line * gridDim.x + blockIdx.x];
  if (task.num_pieces == 0 || group * kGroupRows >= task.rows) return;
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  float values[16] = {};
  constexpr int kAtOnce = 5;  // pieces whose loads are all in flight
  for (int32_t first = 0; first < task.num_pieces; first += kAtOnce) {
    float2 stats[kAtOnce][2];
    float4 results[kAtOnce][kVectors];
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      if (first + p >= task.num_pieces) break;
      const int32_t block = static_cast<int32_t>(blockIdx.x) + (first + p) * blocks_a_share(line);
      const int32_t partial =
          first + p == 0 ? partial_of_left(block, line) : partial_of_begun(block, line);
      const float2* rows = workspace.stats + int64_t{partial} * kBlockRows + row;
      stats[p][0] = rows[0];
      stats[p][1] = rows[8];
      const float4* from =
          results_of(workspace, partial, group, kDim) + slice * kVectors * kGroupThreads;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) results[p][i] = from[i * kGroupThreads];
    }
#pragma unroll
    for (int p = 0; p < kAtOnce; ++p) {
      if (first + p >= task.num_pieces) break;
      float old[2], more[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float new_max = fmaxf(max[h], stats[p][h].x);
        const float base = exponent_base(new_max, 1);
        old[h] = exp2_fast(max[h] - base);
        more[h] = exp2_fast(stats[p][h].x - base);
        max[h] = new_max;
        sum[h] = sum[h] * old[h] + stats[p][h].y * more[h];
      }
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const float4 d = results[p][i];
        values[4 * i] = values[4 * i] * old[0] + d.x * more[0];
        values[4 * i + 1] = values[4 * i + 1] * old[0] + d.y * more[0];
        values[4 * i + 2] = values[4 * i + 2] * old[1] + d.z * more[1];
        values[4 * i + 3] = values[4 * i + 3] * old[1] + d.w * more[1];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) values[i] /= sum[i / 2 % 2];
  store_slice<T, kDim>(problem, task.first_node, task.rows, task.kv_head, row, slice * kSliceColumns,
                       values);
#endif
}

}  // namespace wanspec::attention
