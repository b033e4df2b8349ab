// Host interface of verification: raw device pointers and a stream, no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace wanspec {

enum class LogitType { kBFloat16, kFloat16, kFloat32 };

struct VerifyOutputs {
  int32_t* token_ids;       // [batch, max_depth + 1]: accepted drafts, the token after, then -1
  int32_t* num_accepted;    // [batch]
  int32_t* accepted_nodes;  // [batch, max_depth], then -1
  int32_t* status;          // [batch]: 1 if a row on the path was invalid
};

struct VerifyInputs {
  const void* logits;  // [num_nodes, vocab], rows row_stride apart
  LogitType logit_type;
  int64_t row_stride;
  const int32_t* token_bitmask;  // [num_nodes, bitmask_words], or null
  int64_t bitmask_words;
  const int32_t* token_ids;   // [num_nodes]
  const int32_t* indptr;      // [batch + 1]
  const int64_t* positions;   // [batch]
  const float* temperature;   // [batch], 0 = greedy
  const int32_t* top_k;       // [batch]
  const float* top_p;         // [batch]
  const float* min_p;         // [batch]
  const int64_t* seed;        // [batch]
  int32_t batch, vocab, max_depth;
};

struct DrawInputs {
  const int32_t* indptr;       // [num_nodes + 1]
  const int32_t* children;     // [num_draws]
  const int32_t* rows;         // [num_draws]
  const int32_t* token_ids;    // [num_rows, support], -1 = padding
  const int32_t* weights;      // [num_rows, support]
  const bool* replacement;     // [num_rows]
  int32_t support;
};

// Of one node: its rows times their support.
constexpr int32_t kMaxEntries = 1024;

// One cluster of blocks walks one tree; `cluster` is their number, 1, 2, 4, 8 or 16, or 0 for the one
// that suits the device. Needs compute capability 9.0, and cudaErrorInvalidConfiguration says that no
// cluster can hold a row.
cudaError_t verify_match(
    const VerifyOutputs& out, const VerifyInputs& in, const int32_t* parents, int32_t cluster,
    cudaStream_t stream);

cudaError_t verify_rejection(
    const VerifyOutputs& out, const VerifyInputs& in, const DrawInputs& draws, int32_t cluster,
    cudaStream_t stream);

}  // namespace wanspec
