// Host interface of derive_tree: raw device pointers and a stream, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace wanspec {

// Derives, in one launch, what follows from the parents of a ragged batch of trees. Rows from
// `indptr[batch]` on are padding. The caller has validated the trees, and `words` is at least
// ceil(largest tree / 64).
cudaError_t derive_tree(
    const int32_t* parents,  // [num_nodes], index within the tree, below its own; -1 at a root
    const int32_t* indptr,   // [batch + 1]
    int32_t batch, int32_t num_nodes, int32_t words,
    int32_t* depth,          // [num_nodes], out: 0 at a root, -1 in padding
    int32_t* first_child,    // [num_nodes], out: lowest child, index within the tree, -1 if none
    int32_t* next_sibling,   // [num_nodes], out: next higher child of the same parent, -1 if none
    int64_t* ancestor_bits,  // [num_nodes, words], out: bit j of word w is node 64w + j of the tree
    cudaStream_t stream);

}  // namespace wanspec
