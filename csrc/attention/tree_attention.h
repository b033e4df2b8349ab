// Host interface of tree attention: raw device pointers and a stream, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace wanspec {

enum class AttentionType : int32_t { kBFloat16, kFloat16 };

// Strides are in elements; the last dimension of each tensor has stride 1.
struct TreeAttentionInputs {
  void* out;            // [num_nodes, heads, dim], contiguous; rows past indptr[batch] stay as they are
  void* workspace;      // tree_attention_workspace_bytes() of them, with any content
  const void* query;    // [num_nodes, heads, dim], heads of one group side by side
  const void* k_pages;  // [num_pages, page_size, kv_heads, dim]
  const void* v_pages;
  const int32_t* page_table;     // [batch, max_pages]; slot s is row s % page_size of page s / page_size
  const int32_t* context_lens;   // [batch]; node i of tree b has slot context_lens[b] + i
  const int32_t* indptr;         // [batch + 1]: tree b owns rows indptr[b]:indptr[b + 1]
  const int64_t* ancestor_bits;  // [num_nodes, words]: bit j of row i, node i sees node j
  int64_t query_node_stride, query_head_stride;
  int64_t k_page_stride, k_slot_stride, k_head_stride;
  int64_t v_page_stride, v_slot_stride, v_head_stride;
  int64_t page_table_stride;
  int32_t num_nodes, heads, kv_heads, dim;
  int32_t num_pages, page_size;
  int32_t batch, max_nodes, words;  // max_nodes: of one tree, at most
  float scale;                      // of the scores
  AttentionType type;               // of out, query, k_pages and v_pages
};

// What `workspace` must hold on the current device, aligned to 16 bytes; 0 if `dim` is not
// supported.
size_t tree_attention_workspace_bytes(int32_t dim);

// cudaErrorNotSupported: not a device of compute capability 9.0, or built without sm_90a.
// cudaErrorInvalidConfiguration: dim not 64, 128 or 256; page_size not a power of two from 16 to
// 256; more than 16 heads a group; out, query or pages not aligned to 16 bytes; a stride of query
// or pages not a multiple of 8, a head stride of pages not one of 64 (unless there is one head); a
// scale that is not positive.
cudaError_t tree_attention(const TreeAttentionInputs& in, cudaStream_t stream);

}  // namespace wanspec
