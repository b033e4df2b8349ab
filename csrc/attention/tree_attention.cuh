// Tree attention: warps that copy feed two warpgroups that multiply, through a ring of tiles.
#pragma once

#include <cstdint>

#include "copy_tiles.cuh"
#include "hopper.cuh"
#include "multiply_tiles.cuh"
#include "partials.cuh"
#include "pipeline.cuh"

namespace wanspec::attention {

// Of the 65,536 / kThreads = 168 a thread that a kernel starts with.
constexpr int32_t kCopyRegisters = 72, kMultiplyRegisters = 216;

// To be launched in clusters of kCluster.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    tree_attention_kernel(const __grid_constant__ CUtensorMap query_map,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map,
                          const __grid_constant__ Problem problem,
                          const __grid_constant__ Workspace workspace) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  Shared<kDim>& shared = *reinterpret_cast<Shared<kDim>*>(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&query_map);
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    shared.query_full.init(1);
    shared.query_empty.init(kMultiplyThreads);
    for (int32_t s = 0; s < Shape<kDim>::kStages; ++s) {
      shared.keys_full[s].init(1);
      shared.values_full[s].init(1);
      shared.keys_empty[s].init(kReleases);
      shared.values_empty[s].init(kReleases);
    }
    fence_barrier_init();
  }
  sync_cluster();
  wait_for_last_kernel();
  let_next_kernel_launch();
  if (threadIdx.x < kGroupThreads) {
    shrink_registers<kCopyRegisters>();
    const int32_t warp = threadIdx.x / 32;
    if (warp == 0) {
      copy_tiles<kDim>(shared.keys, shared.keys_full, shared.keys_empty, k_map,
                       problem.k_head_columns, problem);
    } else if (warp == 1) {
      copy_tiles<kDim>(shared.values, shared.values_full, shared.values_empty, v_map,
                       problem.v_head_columns, problem);
    } else if (warp == 2) {
      copy_queries<kDim>(shared, query_map, problem, workspace);
    }
  } else {
    grow_registers<kMultiplyRegisters>();
    Multiplier<T, kDim>(shared, problem, workspace).run();
  }
  sync_cluster();  // the other block may still be arriving here
#endif
}

}  // namespace wanspec::attention
