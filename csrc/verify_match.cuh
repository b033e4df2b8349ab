// The match rule: at each node the target samples its own token, and follows the child that has it.
#pragma once

#include <cstdint>

#include "walk.cuh"

namespace wanspec {

constexpr int32_t kTreeNodes = 1024;  // of a tree that is kept in shared memory

struct MatchBuffers : WalkBuffers {
  int32_t token_ids[kTreeNodes], parents[kTreeNodes];
};

// The lowest child of `node` that has `token`, or -1. Each warp finds it for itself.
__device__ inline int32_t find_child(const int32_t* token_ids, const int32_t* parents,
                                     int32_t num_nodes, int32_t node, int32_t token) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  for (int32_t first = node + 1; first < num_nodes; first += 32) {
    const int32_t i = first + lane;
    const bool is_it = i < num_nodes && (parents[i] == node) & (token_ids[i] == token);
    const unsigned found = __ballot_sync(kAllLanes, is_it);
    if (found != 0) return first + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

// Whether top_p keeps a logit: the mass above it is less than top_p of all from `floor` on.
template <typename Logit>
__device__ bool in_nucleus(const RowSlice<Logit>& row, float top_p, const Sampler& sampler,
                           float floor, float logit, Cluster& cluster) {
  const double p = top_p;
  const float floors[2] = {floor, value_of(key_of(logit) + 1)};
  float rough[2];
  row.rough_masses(sampler.largest, sampler.inverse_temperature, floors, rough);
  const Pair sums = cluster.over_cluster<Sum, Sum>(fixed_point(rough[0]), fixed_point(rough[1]));
  constexpr double kCutOff = kThreads * kMaxCluster;  // by fixed points: less than one a thread
  const double all = static_cast<double>(sums.a) * p, above = static_cast<double>(sums.b);
  if ((above + kCutOff) * (1 + kRoughError) < all * (1 - kRoughError)) return true;
  if (above * (1 - kRoughError) > (all + kCutOff) * (1 + kRoughError)) return false;
  const Pair mass = row.masses(sampler.largest, sampler.inverse_temperature, floor, logit);
  const Pair exact = cluster.over_cluster<Sum, Sum>(mass.a, mass.b);
  return static_cast<double>(exact.b) < p * static_cast<double>(exact.a);
}

// The token of the best score; -1 if there is none, or if it has overflowed: then it tells nothing
// about the row's tokens.
__device__ inline int32_t token_of_number(uint64_t best) {
  const bool valid = is_valid(static_cast<uint32_t>(best >> 32));
  return valid ? static_cast<int32_t>(winner_token(best)) : -1;
}

// The target's own token at a node whose row is being loaded; -1 if the row is invalid.
template <typename Logit>
__device__ int32_t own_token(RowSlice<Logit>& row, const Request& request, int32_t depth,
                             const uint8_t* allowed, Cluster& cluster, Candidates& candidates,
                             Contenders& contenders) {
  const float inverse_temperature = request.inverse_temperature;
  const Filters& filters = request.filters;
  Sampler sampler{request.noise(depth, kTokenStream), inverse_temperature, 0.0f, kLowest, 0.0f, 0.0};
  if (inverse_temperature == 0.0f || !filters.any()) {
    Pair best;
    if (inverse_temperature == 0.0f) {
      best = greedy(row, row.find_peak(allowed), cluster);
    } else {
      float largest;
      const Bounds bounds = row.find_bounds(sampler, allowed, largest);
      best = sample(row, bounds, largest, sampler, cluster, contenders);
    }
    return is_valid(static_cast<uint32_t>(best.b)) ? token_of_number(best.a) : -1;
  }

  const Peak peak = row.find_peak(allowed);
  int32_t few;
  const uint32_t largest_key = start_filters(row, peak, request, few, cluster, candidates);
  if (!is_valid(largest_key)) return -1;
  sampler.largest = value_of(largest_key);
  if (few >= 0) {
    const Ranked mine = rank_candidates(few, filters, cluster, candidates.buffers);
    const uint32_t own = static_cast<uint32_t>(mine.token);
    const uint64_t score = mine.kept ? winner_key(sampler.score(mine.x, own), own) : 0;
    return token_of_number(cluster.over_block<Max>(score).a);
  }

  if (keeps_few(filters)) row.draw_noise(sampler.noise);  // there were too many after all
  sampler.least_weight = filters.least_weight();
  uint32_t low = kMinusInfinityKey + 1;
  if (filters.top_k > 0) low = top_k_cutoff(row, filters.top_k, largest_key, cluster);
  const float kept_by_top_k = value_of(low);
  sampler.floor = kept_by_top_k;
  // top_p needs no cutoff: if the winner lies outside the nucleus, so does all that is no larger,
  // and the winner among the larger ones is next.
  while (true) {
    float largest;
    const Bounds bounds = row.find_bounds(sampler, nullptr, largest);
    const Pair best = sample(row, bounds, largest, sampler, cluster, contenders);
    const int32_t token = token_of_number(best.a);
    if (token < 0) return -1;  // there is none if top_p is no number: nothing lies in its nucleus
    if (filters.top_p == 1.0f) return token;
    const int32_t index = row.index_of(token);
    const uint64_t mine = threadIdx.x == 0 && index >= 0 ? key_of(row.at(index)) : 0;
    const uint32_t key = static_cast<uint32_t>(cluster.over_cluster<Max>(mine).a);
    if (in_nucleus(row, filters.top_p, sampler, kept_by_top_k, value_of(key), cluster)) {
      return token;
    }
    sampler.floor = value_of(key + 1);
  }
}

// Grid [batch * cluster], clusters of `cluster` blocks of kThreads.
template <typename Logit>
__global__ void __launch_bounds__(kThreads, 1)
    verify_match_kernel(const __grid_constant__ VerifyOutputs out,
                        const __grid_constant__ VerifyInputs in,
                        const int32_t* __restrict__ all_parents) {  // [num_nodes]
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  MatchBuffers& buffers = *reinterpret_cast<MatchBuffers*>(shared);
  Logit* slice = reinterpret_cast<Logit*>(shared + slice_offset<MatchBuffers>());

  Cluster cluster(buffers.cluster);
  uint16_t* noise = reinterpret_cast<uint16_t*>(
      shared + noise_offset<MatchBuffers, Logit>(in.vocab, cluster.size));
  Candidates candidates{buffers.candidates};
  RowSlice<Logit> row(slice, noise, buffers.barriers, cluster, in.vocab);
  start_cluster(buffers, cluster);
  const Request request(in, static_cast<int32_t>(blockIdx.x) / cluster.size);
  Path path(out, request, in.max_depth, cluster.rank == 0 && threadIdx.x == 0);
  if (request.num_nodes <= 0) {
    path.finish(-1, 0);
    cluster.wait_for_start();
    return;
  }
  const int32_t* token_ids = in.token_ids + request.start;
  const int32_t* parents = all_parents + request.start;
  load_node(row, in, request, 0, candidates);
  if (request.num_nodes <= kTreeNodes) {
    for (int32_t i = threadIdx.x; i < request.num_nodes; i += kThreads) {
      buffers.token_ids[i] = token_ids[i];
      buffers.parents[i] = parents[i];
    }
    token_ids = buffers.token_ids;
    parents = buffers.parents;
  }

  for (int32_t node = 0;;) {
    // While the row is on its way, if all of its noise may be needed.
    if (request.inverse_temperature != 0.0f && !keeps_few(request.filters)) {
      row.draw_noise(request.noise(path.depth, kTokenStream));
    }
    if (node == 0) cluster.wait_for_start();
    const uint8_t* allowed = bitmask_of(in, request, node);
    const int32_t token = own_token(row, request, path.depth, allowed, cluster, candidates,
                                    buffers.contenders);
    const int32_t child =
        token < 0 ? -1 : find_child(token_ids, parents, request.num_nodes, node, token);
    if (child < 0) {
      path.finish(token, token < 0);
      return;
    }
    load_node(row, in, request, child, candidates);
    path.accept(child, token);
    node = child;
  }
#endif
}

}  // namespace wanspec
