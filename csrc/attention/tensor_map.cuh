// Tensor maps: how the copy engine sees queries and pages.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "tree_attention.h"

namespace wanspec::attention {

constexpr uint32_t kMapColumns = 64;  // of 16 bits: the 128 bytes of a swizzled row

template <int kRank>
struct BoxedTensor {
  const void* data;
  cuuint64_t sizes[kRank];
  int64_t strides[kRank - 1];  // elements, of all dimensions but the first
  cuuint32_t box[kRank];
};

// The driver's function without linking to the driver.
inline cudaError_t find_encoder(decltype(&cuTensorMapEncodeTiled)* encode) {
  cudaDriverEntryPointQueryResult found;
  void* function = nullptr;
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  *encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  return cudaSuccess;
}

template <int kRank>
cudaError_t encode_map(CUtensorMap* map, const BoxedTensor<kRank>& tensor, AttentionType type) {
  decltype(&cuTensorMapEncodeTiled) encode = nullptr;
  const cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  cuuint64_t byte_strides[kRank - 1];
  for (int i = 0; i < kRank - 1; ++i) {
    // A dimension of one entry may have any stride; the driver wants one that it could take.
    const int64_t bytes = tensor.sizes[i + 1] > 1 ? 2 * tensor.strides[i] : 16;
    if (bytes <= 0 || bytes % 16 != 0) return cudaErrorInvalidConfiguration;
    byte_strides[i] = static_cast<cuuint64_t>(bytes);
  }
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result = encode(
      map, type == AttentionType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                            : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      kRank, const_cast<void*>(tensor.data), tensor.sizes, byte_strides, tensor.box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidConfiguration;
}

// Rows (node, head of the group) of a block, 64 columns a box. Coordinates: column, head, node.
inline cudaError_t map_query(CUtensorMap* map, const TreeAttentionInputs& in, int32_t nodes_a_box) {
  const BoxedTensor<3> query{
      in.query,
      {cuuint64_t(in.dim), cuuint64_t(in.heads), cuuint64_t(in.num_nodes)},
      {in.query_head_stride, in.query_node_stride},
      {kMapColumns, cuuint32_t(in.heads / in.kv_heads), cuuint32_t(nodes_a_box)}};
  return encode_map(map, query, in.type);
}

// Slots of one head of one page, eight by eight: in shared memory a box is [slots / 8][dim / 64]
// atoms, so pages of any size lie one behind the other as one tile. Coordinates: column, slot, 64
// columns of a head, 8 slots, page; heads are `head_stride / 64` of the third apart.
inline cudaError_t map_pages(CUtensorMap* map, const TreeAttentionInputs& in, const void* pages,
                             int64_t page_stride, int64_t slot_stride, int64_t head_stride,
                             int32_t slots_a_box) {
  const int64_t columns = (in.kv_heads - 1) * (head_stride / kMapColumns) + in.dim / kMapColumns;
  const BoxedTensor<5> tensor{
      pages,
      {kMapColumns, 8, cuuint64_t(columns), cuuint64_t(in.page_size / 8), cuuint64_t(in.num_pages)},
      {slot_stride, kMapColumns, 8 * slot_stride, page_stride},
      {kMapColumns, 8, cuuint32_t(in.dim / kMapColumns), cuuint32_t(slots_a_box / 8), 1}};
  return encode_map(map, tensor, in.type);
}

}  // namespace wanspec::attention
