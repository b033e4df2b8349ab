// The rejection rule: draws are tested in order, and the residual is held where a draft changes it.
//
// A draft changes the residual on its support only, so the union of a node's supports, its entries,
// is all there is to hold: elsewhere the residual stays the target's. Masses are in units of the
// row's largest weight. Every block of the cluster decides for itself, from the same numbers.
#pragma once

#include <cstdint>

#include "walk.cuh"

namespace wanspec {

constexpr double kUnit = 1.0 / (1ull << kWeightBits);
// Below it a residual mass is no normal float32, and is taken for 0.
constexpr double kLeastMass = 1e-37;

struct RejectionBuffers : WalkBuffers {
  int32_t entry_tokens[kMaxEntries];  // -1 at padding, and outside the vocabulary
  int32_t first_entry[kMaxEntries];   // that has the same token
  float entry_logits[kMaxEntries];
  double residual[kMaxEntries];  // at first entries
  int32_t child;
};

// The draws at one node.
struct NodeDraws {
  int32_t first, last, first_row, num_entries;

  __device__ NodeDraws(const DrawInputs& draws, int64_t node)
      : first(draws.indptr[node]), last(draws.indptr[node + 1]), first_row(0), num_entries(0) {
    if (last == first) return;
    first_row = draws.rows[first];
    num_entries = (draws.rows[last - 1] + 1 - first_row) * draws.support;
  }
};

// What the filters leave of a target's row.
struct Target {
  uint32_t largest_key;
  int32_t largest_token;  // for greedy decoding alone
  float cutoff;           // least logit
  double mass;            // 0 if the row is invalid
  bool rough;             // the mass is but an upper bound, within 2 * kRoughError
  int32_t few;            // candidates that hold all that is left, or -1
};

template <typename Logit>
__device__ void load_entries(const VerifyInputs& in, const DrawInputs& draws, const NodeDraws& here,
                             const Logit* row, const uint8_t* allowed, RejectionBuffers& buffers) {
  const int32_t* tokens = draws.token_ids + int64_t{here.first_row} * draws.support;
  for (int32_t e = threadIdx.x; e < here.num_entries; e += kThreads) {
    const int32_t token = tokens[e];
    const bool inside = token >= 0 && token < in.vocab;
    const bool may_be = inside && (allowed == nullptr || (allowed[token / 8] >> token % 8 & 1) != 0);
    buffers.entry_tokens[e] = inside ? token : -1;
    buffers.entry_logits[e] = may_be ? to_float(row[token]) : -INFINITY;
  }
}

__device__ inline void link_entries(int32_t num_entries, RejectionBuffers& buffers) {
  for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
    int32_t first = 0;
    while (buffers.entry_tokens[first] != buffers.entry_tokens[e]) ++first;
    buffers.first_entry[e] = first;
  }
}

template <typename Logit>
__device__ Target filter_target(RowSlice<Logit>& row, const Request& request,
                                const uint8_t* allowed, Cluster& cluster,
                                Candidates& candidates) {
  const Peak peak = row.find_peak(allowed);
  const float inverse_temperature = request.inverse_temperature;
  const Filters& filters = request.filters;
  Target target{0, -1, kLowest, 0.0, false, -1};
  if (inverse_temperature == 0.0f) {
    const Pair largest = greedy(row, peak, cluster);
    target.largest_key = static_cast<uint32_t>(largest.b);
    target.largest_token = static_cast<int32_t>(winner_token(largest.a));
    target.mass = is_valid(target.largest_key) ? 1.0 : 0.0;
    return target;
  }

  target.largest_key = start_filters(row, peak, filters, target.few, cluster, candidates);
  if (!is_valid(target.largest_key)) return target;
  const float largest = value_of(target.largest_key);
  if (target.few >= 0) {
    const Ranked mine = rank_candidates(target.few, filters, largest, inverse_temperature, cluster,
                                        candidates.buffers, [] {});
    const uint32_t key = mine.kept ? ~key_of(candidates.buffers.all[threadIdx.x].x) : 0;
    const Pair left = cluster.over_block<Max, Sum>(key, mine.kept ? mine.weight : 0);
    target.cutoff = value_of(~static_cast<uint32_t>(left.a));
    target.mass = static_cast<double>(left.b) * kUnit;
    return target;
  }
  if (filters.any()) {
    target.cutoff = cutoff(row, filters, target.largest_key, inverse_temperature, cluster);
  }
  const float rough =
      row.rough_masses(largest, inverse_temperature, target.cutoff, largest).all;
  const double sum = static_cast<double>(cluster.over_cluster<Sum>(fixed_point(rough)).a);
  target.mass = sum * 0x1p-32 * (1 + kRoughError);
  target.rough = true;
  return target;
}

template <typename Logit>
__device__ void weigh_exactly(const RowSlice<Logit>& row, float inverse_temperature, Target& target,
                              Cluster& cluster) {
  const float largest = value_of(target.largest_key);
  const uint64_t mine = row.masses(largest, inverse_temperature, target.cutoff, largest).a;
  target.mass = static_cast<double>(cluster.over_cluster<Sum>(mine).a) * kUnit;
  target.rough = false;
}

// The target's mass at each first entry. Between two barriers of the block.
__device__ inline void start_residual(const Target& target, float inverse_temperature,
                                      int32_t num_entries, RejectionBuffers& buffers) {
  const float largest = value_of(target.largest_key);
  for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
    const float x = buffers.entry_logits[e];
    const int32_t token = buffers.entry_tokens[e];
    double mass = 0.0;
    if (buffers.first_entry[e] == e && token >= 0) {
      if (inverse_temperature == 0.0f) {
        mass = token == target.largest_token ? 1.0 : 0.0;
      } else if (x >= target.cutoff) {
        const float below = __fmul_rn(__fadd_rn(x, -largest), inverse_temperature);
        mass = static_cast<double>(scaled_exp(below)) * kUnit;
      }
    }
    buffers.residual[e] = mass;
  }
}

// One warp tests the draws: the first accepted one's child or -1. It leaves the residual after the
// rejections before it. If the mass is an upper bound only, it tests the first draw and leaves all
// as it was: what that accepts, the mass itself would.
__device__ inline int32_t test_draws(const DrawInputs& draws, const NodeDraws& here,
                                     const int32_t* tree_tokens, const NoiseKey& coins,
                                     double mass, bool rough, RejectionBuffers& buffers) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x);
  int32_t first_of_row = here.first;
  for (int32_t draw = here.first; draw < here.last; ++draw) {
    const int32_t row = draws.rows[draw];
    if (row != draws.rows[first_of_row]) first_of_row = draw;
    const bool replaced = draws.replacement[row];
    const int64_t offset = int64_t{row} * draws.support;
    const int32_t* entries = buffers.first_entry + (row - here.first_row) * draws.support;
    // A column's weight, less what was drawn before without replacement.
    const auto weight_of = [&](int32_t column) {
      const int32_t token = draws.token_ids[offset + column];
      bool out = token < 0;
      for (int32_t d = first_of_row; d < draw && !replaced; ++d) {
        out |= tree_tokens[draws.children[d]] == token;
      }
      return out ? 0 : draws.weights[offset + column];
    };
    const int32_t candidate = draws.children[draw];
    const int32_t token = tree_tokens[candidate];
    int32_t total = 0, token_weight = 0, token_entry = -1;
    for (int32_t column = lane; column < draws.support; column += 32) {
      const int32_t w = weight_of(column);
      total += w;
      if (draws.token_ids[offset + column] == token) {
        token_weight = w;
        token_entry = entries[column];
      }
    }
    total = max(__reduce_add_sync(kAllLanes, total), 1);
    token_weight = __reduce_max_sync(kAllLanes, token_weight);
    token_entry = __reduce_max_sync(kAllLanes, token_entry);
    const double available = token_entry >= 0 ? buffers.residual[token_entry] : 0.0;
    const double coin = uniform(static_cast<uint32_t>(draw - here.first), coins);
    if (coin * (static_cast<double>(token_weight) / total) * mass < available) return candidate;
    if (rough) return -1;

    __syncwarp();
    double lost = 0.0;
    for (int32_t column = lane; column < draws.support; column += 32) {
      if (draws.token_ids[offset + column] < 0) continue;
      double& residual = buffers.residual[entries[column]];
      const double left = fmax(residual - static_cast<double>(weight_of(column)) / total * mass, 0.0);
      lost += residual - left;
      residual = left;
    }
#pragma unroll
    for (int32_t step = 16; step > 0; step /= 2) lost += __shfl_xor_sync(kAllLanes, lost, step);
    mass = fmax(mass - lost, 0.0);  // rounding alone can leave less than nothing
    __syncwarp();
  }
  return -1;
}

// What test_draws() says, to all threads.
__device__ inline int32_t tested(const DrawInputs& draws, const NodeDraws& here,
                                 const int32_t* tree_tokens, const Request& request, int32_t depth,
                                 const Target& target, RejectionBuffers& buffers) {
  if (threadIdx.x < 32) {
    const NoiseKey coins = request.noise(depth, kCoinStream);
    const int32_t child =
        test_draws(draws, here, tree_tokens, coins, target.mass, target.rough, buffers);
    if (threadIdx.x == 0) buffers.child = child;
  }
  __syncthreads();
  return buffers.child;
}

// The recovered token, or the bonus token if nothing was rejected.
template <typename Logit>
__device__ int32_t sample_residual(RowSlice<Logit>& row, const Request& request,
                                   const Target& target, const NoiseKey& noise, int32_t num_entries,
                                   Cluster& cluster, RejectionBuffers& buffers) {
  if (request.inverse_temperature == 0.0f) return target.largest_token;
  const float largest = value_of(target.largest_key);
  const Sampler sampler{noise, request.inverse_temperature, largest, target.cutoff, largest, 0.0};
  uint64_t best = 0;
  for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
    if (buffers.residual[e] <= kLeastMass) continue;
    const uint32_t token = static_cast<uint32_t>(buffers.entry_tokens[e]);
    const float score =
        __fadd_rn(natural_log(static_cast<float>(buffers.residual[e])), gumbel(token, noise));
    best = Max::combine(best, winner_key(score, token));
  }

  if (target.few >= 0) {
    uint64_t mine = 0;
    if (threadIdx.x < target.few) {
      const Candidate& candidate = buffers.candidates.all[threadIdx.x];
      const uint32_t token = static_cast<uint32_t>(candidate.token);
      if (candidate.x >= target.cutoff) mine = winner_key(sampler.score(candidate.x, token), token);
      bool outside = true;
      for (int32_t e = 0; e < num_entries; ++e) {
        outside &= buffers.entry_tokens[e] != candidate.token;
      }
      if (outside) best = Max::combine(best, mine);
    }
    const Pair winners = cluster.over_block<Max, Max>(best, mine);
    // Rounding can leave nothing; any token of the target's will do.
    return static_cast<int32_t>(winner_token(winners.a != 0 ? winners.a : winners.b));
  }

  const auto put_back = [&](bool entries) {
    for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
      const int32_t token = buffers.entry_tokens[e];
      const int32_t index = token >= 0 ? row.index_of(token) : -1;
      if (index >= 0) row.set(index, entries ? buffers.entry_logits[e] : -INFINITY);
    }
    __syncthreads();
  };
  put_back(false);
  best = cluster.over_block<Max>(best).a;
  row.draw_noise(noise);
  const auto best_of_row = [&]() {
    float largest_left;
    const Bounds bounds = row.find_bounds(sampler, nullptr, largest_left);
    return sample(row, bounds, largest_left, sampler, cluster).a;
  };
  best = Max::combine(best, best_of_row());
  if (best == 0) {
    put_back(true);
    best = best_of_row();
  }
  return static_cast<int32_t>(winner_token(best));
}

// Grid [batch * cluster], clusters of `cluster` blocks of kThreads.
template <typename Logit>
__global__ void __launch_bounds__(kThreads, 1)
    verify_rejection_kernel(const __grid_constant__ VerifyOutputs out,
                            const __grid_constant__ VerifyInputs in,
                            const __grid_constant__ DrawInputs draws) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  RejectionBuffers& buffers = *reinterpret_cast<RejectionBuffers*>(shared);
  Logit* slice = reinterpret_cast<Logit*>(shared + slice_offset<RejectionBuffers>());

  Cluster cluster(buffers.cluster);
  Candidates candidates{buffers.candidates};
  uint16_t* noise = reinterpret_cast<uint16_t*>(
      shared + noise_offset<RejectionBuffers, Logit>(in.vocab, cluster.size));
  const Request request(in, static_cast<int32_t>(blockIdx.x) / cluster.size);
  Path path(out, request, in.max_depth, cluster.rank == 0 && threadIdx.x == 0);
  if (request.num_nodes <= 0) {
    path.finish(-1, 0);
    return;
  }
  const int32_t* tree_tokens = in.token_ids + request.start;
  RowSlice<Logit> row(slice, noise, buffers.barriers, cluster, in.vocab);
  start_cluster(buffers, cluster);
  load_node(row, in, request, 0, candidates);
  cluster.wait_for_start();

  for (int32_t node = 0;;) {
    const NodeDraws here(draws, int64_t{request.start} + node);
    const uint8_t* allowed = bitmask_of(in, request, node);
    load_entries(in, draws, here, row_of<Logit>(in, request, node), allowed, buffers);
    Target target = filter_target(row, request, allowed, cluster, candidates);
    if (target.mass == 0.0) {
      path.finish(-1, 1);
      return;
    }
    link_entries(here.num_entries, buffers);
    __syncthreads();
    start_residual(target, request.inverse_temperature, here.num_entries, buffers);
    __syncthreads();
    int32_t child = tested(draws, here, tree_tokens, request, path.depth, target, buffers);
    if (child < 0 && target.rough) {
      weigh_exactly(row, request.inverse_temperature, target, cluster);
      child = tested(draws, here, tree_tokens, request, path.depth, target, buffers);
    }
    if (child < 0) {
      const NoiseKey residual_noise = request.noise(path.depth, kResidualStream);
      path.finish(
          sample_residual(row, request, target, residual_noise, here.num_entries, cluster, buffers),
          0);
      return;
    }
    load_node(row, in, request, child, candidates);
    path.accept(child, tree_tokens[child]);
    node = child;
  }
#endif
}

}  // namespace wanspec
