// The rejection rule: draws are tested in order, and the residual is held where a draft changes it.
//
// A draft changes the residual on its support only, so the union of a node's supports, its entries,
// is all there is to hold: elsewhere the residual stays the target's. Masses are in units of the
// row's largest weight. Every block of the cluster decides for itself, from the same numbers.
#pragma once

#include <cstdint>

#include "draws.cuh"
#include "walk.cuh"

namespace wanspec {

constexpr double kUnit = 1.0 / (1ull << kWeightBits);
// Below it a residual mass is no normal float32, and is taken for 0.
constexpr double kLeastMass = 1e-37;

// What the filters leave of a target's row.
struct Target {
  uint32_t largest_key;
  int32_t largest_token;  // for greedy decoding alone
  float cutoff;           // least logit
  Interval mass;          // 0 if the row is invalid
  int32_t few;            // candidates that hold all that is left, or -1

  __device__ bool is_rough() const { return mass.low != mass.high; }
};

// The target of a row without filters: its mass is summed as the row arrives.
template <typename Logit>
__device__ void weigh_all(const RowSlice<Logit>& row, float inverse_temperature,
                          const uint8_t* allowed, Target& target, Cluster& cluster) {
  const float scale = inverse_temperature * kLog2E;
  float mass;
  const Peak peak = row.find_peak(allowed, inverse_temperature, mass);
  const uint64_t key = cluster.over_block<Max>(key_of(peak.value)).a;
  const float unit = fmaxf(value_of(static_cast<uint32_t>(key)), kLowest);
  mass *= exp2_of((fmaxf(peak.value, kLowest) - unit) * scale);
  const Pair* blocks = cluster.gather({key, cluster.over_block<Sum>(fixed_point(mass)).a});
  // A block a lane.
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  const Pair block = lane < cluster.size ? blocks[lane] : Pair{0, 0};
  target.largest_key = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(block.a));
  if (!is_valid(target.largest_key)) return;
  const float largest = value_of(target.largest_key);
  float sum = 0.0f;
  if (lane < cluster.size) {
    const float below = fmaxf(value_of(static_cast<uint32_t>(block.a)), kLowest) - largest;
    sum = static_cast<float>(block.b) * exp2_of(below * scale);
  }
#pragma unroll
  for (int32_t step = 1; step < 32; step *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, step);
  }
  target.mass = roughly(static_cast<double>(sum) * 0x1p-32);
}

template <typename Logit>
__device__ Target filter_target(RowSlice<Logit>& row, const Request& request,
                                const uint8_t* allowed, Cluster& cluster,
                                Candidates& candidates) {
  const float inverse_temperature = request.inverse_temperature;
  const Filters& filters = request.filters;
  Target target{0, -1, kLowest, exactly(0.0), -1};
  if (inverse_temperature != 0.0f && !filters.any()) {
    weigh_all(row, inverse_temperature, allowed, target, cluster);
    return target;
  }
  const Peak peak = row.find_peak(allowed);
  if (inverse_temperature == 0.0f) {
    const Pair largest = greedy(row, peak, cluster);
    target.largest_key = static_cast<uint32_t>(largest.b);
    target.largest_token = static_cast<int32_t>(winner_token(largest.a));
    target.mass = exactly(is_valid(target.largest_key) ? 1.0 : 0.0);
    return target;
  }

  target.largest_key = start_filters(row, peak, request, target.few, cluster, candidates);
  if (!is_valid(target.largest_key)) return target;
  const float largest = value_of(target.largest_key);
  if (target.few >= 0) {
    const Ranked mine = rank_candidates(target.few, filters, cluster, candidates.buffers);
    const uint32_t key = mine.kept ? ~key_of(mine.x) : 0;
    const Pair left = cluster.over_block<Max, Sum>(key, mine.kept ? mine.weight : 0);
    target.cutoff = value_of(~static_cast<uint32_t>(left.a));
    target.mass = exactly(static_cast<double>(left.b) * kUnit);
    return target;
  }
  target.cutoff = cutoff(row, filters, target.largest_key, inverse_temperature, cluster);
  target.mass = roughly(rough_mass(row, largest, inverse_temperature, target.cutoff, cluster));
  return target;
}

template <typename Logit>
__device__ void weigh_exactly(const RowSlice<Logit>& row, float inverse_temperature, Target& target,
                              Cluster& cluster) {
  const float largest = value_of(target.largest_key);
  const uint64_t mine = row.masses(largest, inverse_temperature, target.cutoff, largest).a;
  target.mass = exactly(static_cast<double>(cluster.over_cluster<Sum>(mine).a) * kUnit);
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
    buffers.residual[e] = exactly(mass);
  }
}

// What test_draws() says, to all threads.
__device__ inline int32_t tested(const DrawInputs& draws, const NodeDraws& here,
                                 const int32_t* tree_tokens, const Request& request, int32_t depth,
                                 const Target& target, RejectionBuffers& buffers) {
  if (threadIdx.x < 32) {
    const NoiseKey coins = request.noise(depth, kCoinStream);
    const int32_t child = test_draws(draws, here, tree_tokens, coins, target.mass, buffers);
    if (threadIdx.x == 0) buffers.child = child;
  }
  __syncthreads();
  return buffers.child;
}

// The score of an entry, given the residual's mass there; -inf if that is none.
__device__ inline float residual_score(double mass, float noise) {
  return mass > kLeastMass ? __fadd_rn(natural_log(static_cast<float>(mass)), noise) : -INFINITY;
}

// Whether an entry but the winner itself might do better, for all that is known of the residual.
__device__ inline bool is_in_doubt(uint64_t winner, const NoiseKey& noise, int32_t num_entries,
                                   const RejectionBuffers& buffers) {
  constexpr float kMargin = 1e-4f;  // a hundred times the rounding of a logarithm
  const float score = value_of(static_cast<uint32_t>(winner >> 32));
  bool doubt = winner == 0;
  for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
    const uint32_t token = static_cast<uint32_t>(buffers.entry_tokens[e]);
    const float most = residual_score(buffers.residual[e].high, gumbel(token, noise));
    doubt |= token != winner_token(winner) && most + kMargin >= score;
  }
  return __syncthreads_or(doubt) != 0;
}

// The best score of the thread's entries, for the least that the residual can be there.
__device__ inline uint64_t best_of_entries(const NoiseKey& noise, int32_t num_entries,
                                           const RejectionBuffers& buffers) {
  uint64_t best = 0;
  for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
    const double least = buffers.residual[e].low;
    if (least <= kLeastMass) continue;
    const uint32_t token = static_cast<uint32_t>(buffers.entry_tokens[e]);
    best = Max::combine(best, winner_key(residual_score(least, gumbel(token, noise)), token));
  }
  return best;
}

// Where few candidates hold all that is left of the target.
__device__ inline int32_t sample_candidates(const Target& target, const Sampler& sampler,
                                            int32_t num_entries, Cluster& cluster,
                                            RejectionBuffers& buffers) {
  uint64_t mine = 0;  // of the target
  uint64_t best = best_of_entries(sampler.noise, num_entries, buffers);
  if (threadIdx.x < target.few) {
    const WeighedCandidate& candidate = buffers.candidates.all[threadIdx.x];
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

// The recovered token, or the bonus token if nothing was rejected. Where the mass, known roughly, does
// not decide it, it is summed, and `test` leaves the residual anew.
template <typename Logit, typename Test>
__device__ int32_t sample_residual(RowSlice<Logit>& row, const Request& request, Target& target,
                                   const NoiseKey& noise, int32_t num_entries, Cluster& cluster,
                                   RejectionBuffers& buffers, Test test) {
  if (request.inverse_temperature == 0.0f) return target.largest_token;
  const float largest = value_of(target.largest_key);
  const Sampler sampler{noise, request.inverse_temperature, largest, target.cutoff, largest, 0.0};
  if (target.few >= 0) return sample_candidates(target, sampler, num_entries, cluster, buffers);

  const auto show_entries = [&](bool shown) {
    for (int32_t e = threadIdx.x; e < num_entries; e += kThreads) {
      const int32_t token = buffers.entry_tokens[e];
      const int32_t index = token >= 0 ? row.index_of(token) : -1;
      if (index >= 0) row.set(index, shown ? buffers.entry_logits[e] : -INFINITY);
    }
    __syncthreads();
  };
  const auto best_of_row = [&] {
    float largest_left;
    const Bounds bounds = row.find_bounds(sampler, nullptr, largest_left);
    return sample(row, bounds, largest_left, sampler, cluster, buffers.contenders).a;
  };
  uint64_t best = best_of_entries(noise, num_entries, buffers);
  row.draw_noise(noise);
  show_entries(false);
  best = cluster.over_block<Max>(best).a;
  const uint64_t outside = best_of_row();  // whatever the mass is
  best = Max::combine(best, outside);
  const bool in_doubt = target.is_rough() && is_in_doubt(best, noise, num_entries, buffers);
  if (in_doubt || best == 0) show_entries(true);
  if (in_doubt) {
    weigh_exactly(row, request.inverse_temperature, target, cluster);
    test();
    best = cluster.over_block<Max>(best_of_entries(noise, num_entries, buffers)).a;
    best = Max::combine(best, outside);
  }
  // Rounding can leave nothing; any token of the target's will do.
  if (best == 0) best = best_of_row();
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
  RowSlice<Logit> row(slice, noise, buffers.barriers, cluster, in.vocab);
  start_cluster(buffers, cluster);
  const Request request(in, static_cast<int32_t>(blockIdx.x) / cluster.size);
  Path path(out, request, in.max_depth, cluster.rank == 0 && threadIdx.x == 0);
  if (request.num_nodes <= 0) {
    path.finish(-1, 0);
    cluster.wait_for_start();
    return;
  }
  const int32_t* tree_tokens = in.token_ids + request.start;
  NodeDraws here(draws, request.start);
  load_node(row, in, request, 0, candidates);
  cluster.wait_for_start();

  for (int32_t node = 0;;) {
    const uint8_t* allowed = bitmask_of(in, request, node);
    load_entries(in, draws, here, tree_tokens, request.noise(path.depth, kCoinStream),
                 row_of<Logit>(in, request, node), allowed, buffers);
    __syncthreads();
    link_entries(here.num_entries, buffers);
    Target target = filter_target(row, request, allowed, cluster, candidates);
    if (target.mass.high == 0.0) {
      path.finish(-1, 1);
      return;
    }
    const auto test = [&] {
      __syncthreads();
      start_residual(target, request.inverse_temperature, here.num_entries, buffers);
      __syncthreads();
      return tested(draws, here, tree_tokens, request, path.depth, target, buffers);
    };
    int32_t child = test();
    if (child == kUndecided) {
      weigh_exactly(row, request.inverse_temperature, target, cluster);
      child = test();
    }
    if (child < 0) {
      const NoiseKey noise = request.noise(path.depth, kResidualStream);
      const int32_t token =
          sample_residual(row, request, target, noise, here.num_entries, cluster, buffers, test);
      path.finish(token, 0);
      return;
    }
    // Before the row, behind which it would wait for long.
    here = NodeDraws(draws, int64_t{request.start} + child);
    load_node(row, in, request, child, candidates);
    path.accept(child, tree_tokens[child]);
    node = child;
  }
#endif
}

}  // namespace wanspec
