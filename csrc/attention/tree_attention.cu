#include "tree_attention.h"

#include <algorithm>
#include <cmath>

#include "tensor_map.cuh"
#include "tree_attention.cuh"

namespace wanspec {
namespace {

using namespace attention;

cudaError_t count_blocks(int32_t* blocks) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int* value, cudaDeviceAttr what) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, what, device);
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(blocks, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess && (major != 9 || minor != 0)) return cudaErrorNotSupported;
  *blocks -= *blocks % kCluster;
  return error;
}

bool is_valid(const TreeAttentionInputs& in) {
  if (in.dim != 64 && in.dim != 128 && in.dim != 256) return false;
  if (in.page_size < 16 || in.page_size > 256 || in.page_size & (in.page_size - 1)) return false;
  if (in.kv_heads < 1 || in.heads % in.kv_heads != 0 || in.heads < in.kv_heads) return false;
  if (in.heads / in.kv_heads > 16 || in.num_pages < 1 || in.max_nodes < 1 || in.words < 1) return false;
  if (in.kv_heads > 1 && (in.k_head_stride % kAtomColumns || in.v_head_stride % kAtomColumns)) {
    return false;
  }
  for (const void* pointer : {static_cast<const void*>(in.out), in.query, in.k_pages, in.v_pages,
                              static_cast<const void*>(in.workspace)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return in.scale > 0 && std::isfinite(in.scale);
}

template <typename T, int kDim>
cudaError_t launch(const TreeAttentionInputs& in, int32_t blocks, cudaStream_t stream) {
  using S = Shape<kDim>;
  const auto kernel = tree_attention_kernel<T, kDim>;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  // Built for other targets than sm_90a the kernel is empty.
  if (attributes.numRegs < 64) return cudaErrorNotSupported;
  constexpr int32_t kBytes = sizeof(Shared<kDim>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;

  Problem problem{};
  problem.out = in.out;
  problem.page_table = in.page_table;
  problem.context_lens = in.context_lens;
  problem.indptr = in.indptr;
  problem.ancestor_bits = in.ancestor_bits;
  problem.page_table_stride = in.page_table_stride;
  problem.batch = in.batch;
  problem.heads = in.heads;
  problem.kv_heads = in.kv_heads;
  problem.group = in.heads / in.kv_heads;
  problem.words = in.words;
  problem.nodes_a_block = kBlockRows / problem.group;
  problem.nodes_a_box = std::min(problem.nodes_a_block, in.max_nodes);
  while (1 << problem.page_shift < in.page_size) ++problem.page_shift;
  problem.slots_a_box = std::min(in.page_size, S::kTile / kCluster);
  problem.k_head_columns = static_cast<int32_t>(in.k_head_stride / kAtomColumns);
  problem.v_head_columns = static_cast<int32_t>(in.v_head_stride / kAtomColumns);
  problem.may_have_pairs = in.max_nodes > problem.nodes_a_block;
  problem.scale_log2 = in.scale * 1.44269504f;
  const Workspace workspace(in.workspace, blocks, kDim);

  CUtensorMap query_map, k_map, v_map;
  error = map_query(&query_map, in, problem.nodes_a_box);
  if (error == cudaSuccess) {
    error = map_pages(&k_map, in, in.k_pages, in.k_page_stride, in.k_slot_stride, in.k_head_stride,
                      problem.slots_a_box);
  }
  if (error == cudaSuccess) {
    error = map_pages(&v_map, in, in.v_pages, in.v_page_stride, in.v_slot_stride, in.v_head_stride,
                      problem.slots_a_box);
  }
  if (error != cudaSuccess) return error;

  // Both kernels take their places while the one before still runs, and wait for its end before
  // they read.
  cudaLaunchAttribute launch_attributes[2]{};
  launch_attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  launch_attributes[0].val.programmaticStreamSerializationAllowed = 1;
  launch_attributes[1].id = cudaLaunchAttributeClusterDimension;
  launch_attributes[1].val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = launch_attributes;
  config.numAttrs = 2;
  error = cudaLaunchKernelEx(&config, kernel, query_map, k_map, v_map, problem, workspace);
  if (error != cudaSuccess) return error;
  config.gridDim.y = kGroups * (kDim / kSliceColumns);
  config.gridDim.z = problem.may_have_pairs ? kLines : 1;
  config.blockDim = dim3(kGroupThreads);
  config.dynamicSmemBytes = 0;
  config.numAttrs = 1;  // no clusters
  return cudaLaunchKernelEx(&config, merge_partials_kernel<T, kDim>, problem, workspace);
}

template <typename T>
cudaError_t launch_dim(const TreeAttentionInputs& in, int32_t blocks, cudaStream_t stream) {
  if (in.dim == 64) return launch<T, 64>(in, blocks, stream);
  if (in.dim == 128) return launch<T, 128>(in, blocks, stream);
  return launch<T, 256>(in, blocks, stream);
}

}  // namespace

size_t tree_attention_workspace_bytes(int32_t dim) {
  int32_t blocks = 0;
  if (dim != 64 && dim != 128 && dim != 256) return 0;
  return count_blocks(&blocks) == cudaSuccess ? Workspace::bytes(blocks, dim) : 0;
}

cudaError_t tree_attention(const TreeAttentionInputs& in, cudaStream_t stream) {
  int32_t blocks = 0;
  const cudaError_t error = count_blocks(&blocks);
  if (error != cudaSuccess) return error;
  if (!is_valid(in)) return cudaErrorInvalidConfiguration;
  if (in.batch == 0 || in.num_nodes == 0) return cudaSuccess;
  return in.type == AttentionType::kBFloat16 ? launch_dim<__nv_bfloat16>(in, blocks, stream)
                                             : launch_dim<__half>(in, blocks, stream);
}

}  // namespace wanspec
