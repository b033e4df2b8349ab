// Device code of derive_tree: what follows from the parents of a ragged batch of trees.
//
// Nothing is kept in shared memory, so no tree is too large. The intrinsics used are few, so that
// tests/csrc/derive_tree_host.cpp can run this file without a GPU.
#pragma once

#include <cstdint>

namespace wanspec {

constexpr int32_t kWarpSize = 32;
constexpr int32_t kBitsPerWord = 64;

// Writes the ancestor bits of `node`, itself included, and returns its depth. Parents precede their
// children, so the walk meets its bits from high to low and fills each word in a register. Nodes
// that do not fit in `words` words are left out.
__device__ inline int32_t walk_to_root(
    const int32_t* parents,  // [tree_nodes]
    int32_t node, int32_t words,
    int64_t* bits_row) {  // [words], out
  int32_t depth = -1;
  int32_t word = words - 1;
  uint64_t bits = 0;
  for (int32_t at = node; at >= 0; at = parents[at]) {
    for (; word > at / kBitsPerWord; --word) {
      bits_row[word] = static_cast<int64_t>(bits);
      bits = 0;
    }
    if (word == at / kBitsPerWord) bits |= uint64_t{1} << (at % kBitsPerWord);
    ++depth;
  }
  for (; word >= 0; --word) {
    bits_row[word] = static_cast<int64_t>(bits);
    bits = 0;
  }
  return depth;
}

// One warp links the children of one tree. It takes the nodes from the last to the first, a warp's
// width at a time: `first_child[p]` is the lowest child of p met so far, which is the next sibling
// of the highest one met now.
__device__ inline void link_siblings(
    const int32_t* parents,  // [tree_nodes]
    int32_t tree_nodes, int32_t lane,
    int32_t* first_child,     // [tree_nodes], out
    int32_t* next_sibling) {  // [tree_nodes], out
  constexpr unsigned kAllLanes = 0xffffffffu;
  constexpr int32_t kNoNode = -2;  // no node has this parent
  const unsigned lanes_below = (1u << lane) - 1u;
  const unsigned lanes_above = ~lanes_below & ~(1u << lane);

  for (int32_t node = lane; node < tree_nodes; node += kWarpSize) first_child[node] = -1;
  __syncwarp();
  for (int32_t start = (tree_nodes - 1) / kWarpSize * kWarpSize; start >= 0; start -= kWarpSize) {
    const int32_t node = start + lane;
    const int32_t parent = node < tree_nodes ? parents[node] : kNoNode;
    const unsigned siblings = __match_any_sync(kAllLanes, parent);
    const int32_t next_lane = __ffs(static_cast<int>(siblings & lanes_above)) - 1;
    if (node < tree_nodes) {
      const int32_t met_before = parent >= 0 ? first_child[parent] : -1;
      next_sibling[node] = next_lane >= 0 ? start + next_lane : met_before;
    }
    __syncwarp();
    if (parent >= 0 && (siblings & lanes_below) == 0) first_child[parent] = node;
    __syncwarp();
  }
}

// One block a tree, and one more for the padding behind the last tree: grid [batch + 1], at least
// two warps a block. The first warp links siblings while the others walk to the root.
__global__ void derive_tree_kernel(
    const int32_t* __restrict__ parents,  // [num_nodes], index within the tree, -1 at a root
    const int32_t* __restrict__ indptr,   // [batch + 1]
    int32_t batch, int32_t num_nodes, int32_t words,
    int32_t* __restrict__ depth,            // [num_nodes], out; -1 in padding
    int32_t* __restrict__ first_child,      // [num_nodes], out; -1 if none, and in padding
    int32_t* __restrict__ next_sibling,     // [num_nodes], out; -1 if none, and in padding
    int64_t* __restrict__ ancestor_bits) {  // [num_nodes, words], out; 0 in padding
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t threads = static_cast<int32_t>(blockDim.x);
  const int32_t tree = static_cast<int32_t>(blockIdx.x);

  if (tree == batch) {
    for (int64_t row = int64_t{indptr[batch]} + thread; row < num_nodes; row += threads) {
      depth[row] = -1;
      first_child[row] = -1;
      next_sibling[row] = -1;
      for (int32_t word = 0; word < words; ++word) ancestor_bits[row * words + word] = 0;
    }
    return;
  }

  const int64_t begin = indptr[tree];
  const int32_t tree_nodes = static_cast<int32_t>(indptr[tree + 1] - begin);
  parents += begin;
  if (thread < kWarpSize) {
    link_siblings(parents, tree_nodes, thread, first_child + begin, next_sibling + begin);
    return;
  }
  for (int32_t node = thread - kWarpSize; node < tree_nodes; node += threads - kWarpSize) {
    const int64_t row = begin + node;
    depth[row] = walk_to_root(parents, node, words, ancestor_bits + row * words);
  }
}

}  // namespace wanspec
