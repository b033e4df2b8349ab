#include "derive_tree.h"

#include "derive_tree.cuh"

namespace wanspec {

cudaError_t derive_tree(
    const int32_t* parents, const int32_t* indptr, int32_t batch, int32_t num_nodes, int32_t words,
    int32_t* depth, int32_t* first_child, int32_t* next_sibling, int64_t* ancestor_bits,
    cudaStream_t stream) {
  if (num_nodes == 0) return cudaSuccess;
  constexpr int32_t kThreads = 8 * kWarpSize;  // one warp links, seven walk
  const unsigned blocks = static_cast<unsigned>(batch) + 1u;
  derive_tree_kernel<<<blocks, kThreads, 0, stream>>>(
      parents, indptr, batch, num_nodes, words, depth, first_child, next_sibling, ancestor_bits);
  return cudaGetLastError();
}

}  // namespace wanspec
