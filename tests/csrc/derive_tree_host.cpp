// Runs csrc/derive_tree.cuh on the host: thirty-two threads in step make the first warp of every
// block, one more thread plays all the others, which never synchronise.
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__

namespace {

struct Dim {
  unsigned x;
};
thread_local Dim threadIdx, blockIdx;
Dim blockDim;

std::barrier<> warp_barrier{32};
int32_t exchanged[32];

void __syncwarp() { warp_barrier.arrive_and_wait(); }

unsigned __match_any_sync(unsigned, int32_t value) {
  exchanged[threadIdx.x] = value;
  __syncwarp();
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) lanes |= unsigned{exchanged[lane] == value} << lane;
  __syncwarp();
  return lanes;
}

int __ffs(int bits) { return __builtin_ffs(bits); }

}  // namespace

#include "derive_tree.cuh"

extern "C" void derive_tree_host(
    const int32_t* parents, const int32_t* indptr, int32_t batch, int32_t num_nodes, int32_t words,
    int32_t* depth, int32_t* first_child, int32_t* next_sibling, int64_t* ancestor_bits) {
  blockDim = {96};
  const auto run_all_blocks = [&](unsigned thread) {
    for (unsigned block = 0; block <= static_cast<unsigned>(batch); ++block) {
      threadIdx = {thread};
      blockIdx = {block};
      wanspec::derive_tree_kernel(parents, indptr, batch, num_nodes, words, depth, first_child,
                                  next_sibling, ancestor_bits);
    }
  };
  std::vector<std::jthread> warp;
  for (unsigned lane = 0; lane < 32; ++lane) warp.emplace_back(run_all_blocks, lane);
  for (unsigned thread = 32; thread < blockDim.x; ++thread) run_all_blocks(thread);
}
