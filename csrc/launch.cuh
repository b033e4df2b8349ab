// Launching a kernel of clusters: how large they are, and the shared memory that a row takes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "walk.cuh"

namespace wanspec {

// How a kernel is launched with clusters of one size.
struct ClusterLaunch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};

  ClusterLaunch(int32_t batch, int32_t cluster, size_t bytes, cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.gridDim = dim3(static_cast<unsigned>(batch) * static_cast<unsigned>(cluster));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // the configuration points to the attribute
};

template <typename... Parameters>
cudaError_t allow(void (*kernel)(Parameters...), int32_t cluster, size_t bytes) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess || cluster <= 8) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Clusters of a size that the device runs at once; 0 if it runs none. Asked once.
template <typename... Parameters>
int32_t clusters_at_once(void (*kernel)(Parameters...), int32_t cluster, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int32_t, size_t>, int32_t> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const auto key = std::make_tuple(reinterpret_cast<const void*>(kernel), device, cluster, bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  int count = 0;
  const ClusterLaunch launch(1, cluster, bytes, nullptr);
  if (allow(kernel, cluster, bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config) != cudaSuccess) {
    (void)cudaGetLastError();  // a size that this device lacks is no error
    count = 0;
  }
  return known[key] = count;
}

// The largest clusters that the device runs for the whole batch at once, or the smallest that hold a
// row; 0 if none does.
template <typename Buffers, typename Logit, typename... Parameters>
int32_t cluster_size(void (*kernel)(Parameters...), int32_t batch, int32_t vocab) {
  constexpr int32_t kTokensOfBlock = kThreads * kVec;  // fewer leave threads without work
  int32_t smallest = 0;
  for (int32_t cluster = kMaxCluster; cluster >= 1; cluster /= 2) {
    if (cluster > 1 && vocab <= kTokensOfBlock * (cluster / 2)) continue;
    const size_t bytes = shared_bytes<Buffers, Logit>(vocab, cluster);
    const int32_t at_once = clusters_at_once(kernel, cluster, bytes);
    if (at_once >= batch) return cluster;
    if (at_once > 0) smallest = cluster;
  }
  return smallest;
}

// Calls launch(logit) with a logit of the type.
template <typename Launch>
cudaError_t for_logit_type(LogitType type, Launch launch) {
  switch (type) {
    case LogitType::kBFloat16:
      return launch(__nv_bfloat16{});
    case LogitType::kFloat16:
      return launch(__half{});
    default:
      return launch(float{});
  }
}

// `cluster` is 0 for the size that suits the device.
template <typename Buffers, typename Logit, typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(
    void (*kernel)(Parameters...), int32_t batch, int32_t vocab, int32_t cluster,
    cudaStream_t stream, const Arguments&... arguments) {
  if (cluster == 0) cluster = cluster_size<Buffers, Logit>(kernel, batch, vocab);
  if (cluster == 0) return cudaErrorInvalidConfiguration;
  const size_t bytes = shared_bytes<Buffers, Logit>(vocab, cluster);
  const cudaError_t error = allow(kernel, cluster, bytes);
  if (error != cudaSuccess) return error;
  const ClusterLaunch launch(batch, cluster, bytes, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, arguments...);
}

}  // namespace wanspec
