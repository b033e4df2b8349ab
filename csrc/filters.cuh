// What top_k, top_p and min_p leave of a row: sampling.cutoff of the Python side, bit for bit.
//
// Usually few tokens are left. Then every block learns of a few hundred candidates that hold them
// all, and decides on these alone. Otherwise the cutoff is found by bisection over whole rows.
#pragma once

#include <cstdint>

#include "row.cuh"

namespace wanspec {

constexpr int32_t kMaxCandidates = kThreads;  // of the cluster; blocks have equal shares of them
constexpr int32_t kMaxTopK = 128;             // above it, bisection
constexpr int32_t kPeaks = kWarps * kMaxCluster;  // largest logits of as many parts of a row
// A weight in a sum that also counts: no sum of kMaxCandidates weights reaches it.
constexpr uint64_t kOne = 1ull << (kWeightBits + 10);
static_assert(kMaxCandidates < 1 << 10);

struct Filters {
  int32_t top_k;  // 0 is off
  float top_p;    // 1 is off
  float min_p;    // 0 is off

  __device__ bool any() const { return top_k > 0 || top_p < 1.0f || min_p > 0.0f; }
  // Weights are kept from here on.
  __device__ double least_weight() const {
    return static_cast<double>(min_p) * static_cast<double>(weight(0.0f));
  }
};

struct alignas(8) Candidate {
  float x;
  int32_t token;  // or kNone, kTooMany
};
constexpr int32_t kNone = -1, kTooMany = -2;

struct alignas(16) WeighedCandidate {
  float x;
  int32_t token;
  uint64_t weight;  // and kOne
};

struct CandidateBuffers {
  Candidate of_block[kMaxCandidates];  // this block's, before they are sent
  Candidate received[kMaxCandidates];  // the blocks' shares in turn
  WeighedCandidate all[kMaxCandidates];
  uint32_t peaks[kPeaks];
  uint64_t arrived, peaks_arrived;
  int32_t found, count;  // by this block; by all
};

struct Candidates {
  CandidateBuffers& buffers;
  uint32_t peak_exchanges = 0, collections = 0;
};

// The keys of the largest logits of kPeaks parts of the row, to every warp of the cluster: eight a
// lane. Parts are groups of lanes, the smaller the smaller the cluster. Every block takes part.
__device__ inline void exchange_peaks(uint32_t peak_key, const Cluster& cluster,
                                      Candidates& candidates, uint32_t (&peaks)[kPeaks / 32]) {
  CandidateBuffers& buffers = candidates.buffers;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t warp = static_cast<int32_t>(threadIdx.x / 32);
  const int32_t parts = kMaxCluster / cluster.size;  // of a warp
  for (int32_t step = 1; step < 32 / parts; step *= 2) {
    peak_key = max(peak_key, __shfl_xor_sync(kAllLanes, peak_key, step));
  }
  // Lane i < 16 sends part i / size to block i % size.
  const int32_t part = lane / cluster.size;
  const uint32_t key = __shfl_sync(kAllLanes, peak_key, part * (32 / parts));
  if (threadIdx.x == 0) {
    Mailbox::expect(&buffers.peaks_arrived, kPeaks * static_cast<int32_t>(sizeof(uint32_t)));
  }
  if (lane < kMaxCluster) {
    uint32_t* slot = &buffers.peaks[(cluster.rank * kWarps + warp) * parts + part];
    Mailbox::send(slot, &buffers.peaks_arrived, lane % cluster.size, key);
  }
  Mailbox::wait(&buffers.peaks_arrived, candidates.peak_exchanges++);
#pragma unroll
  for (int32_t i = 0; i < kPeaks / 32; ++i) peaks[i] = buffers.peaks[i * 32 + lane];
}

// A key that at least `least` of the peaks reach, and few more. Each warp finds it for itself.
__device__ inline uint32_t key_reached_by(int32_t least, const uint32_t (&peaks)[kPeaks / 32],
                                          uint32_t shift) {
  uint32_t low = 0xFFFFFFFFu, high = 0;
#pragma unroll
  for (int32_t i = 0; i < kPeaks / 32; ++i) {
    low = min(low, peaks[i]);
    high = max(high, peaks[i]);
  }
  low = __reduce_min_sync(kAllLanes, low) >> shift;
  high = __reduce_max_sync(kAllLanes, high) >> shift;
  while (low < high) {
    const uint32_t middle = high - (high - low) / 2;
    int32_t reached = 0;
#pragma unroll
    for (int32_t i = 0; i < kPeaks / 32; ++i) reached += peaks[i] >> shift >= middle;
    reached = __reduce_add_sync(kAllLanes, reached);
    if (reached < least) {
      high = middle - 1;
    } else {
      low = middle;
      if (reached <= least + least / 4) break;
    }
  }
  return low << shift;
}

// Tells every block all logits of the row from `floor` on, and what they weigh: their number, or -1 if
// they are too many. Every block takes part.
template <typename Logit>
__device__ int32_t collect_candidates(const RowSlice<Logit>& row, float floor, float largest,
                                      float inverse_temperature, const Cluster& cluster,
                                      Candidates& candidates) {
  CandidateBuffers& buffers = candidates.buffers;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t share = kMaxCandidates / cluster.size;
  row.for_each_from(floor, [&](float x, uint32_t token) {
    const int32_t slot = atomicAdd(&buffers.found, 1);
    if (slot < share) buffers.of_block[slot] = {x, static_cast<int32_t>(token)};
  });
  if (thread == 0) {
    Mailbox::expect(&buffers.arrived, kMaxCandidates * static_cast<int32_t>(sizeof(Candidate)));
  }
  __syncthreads();
  // One candidate a thread to one block, with padding: all know beforehand how much will come.
  const int32_t slot = thread % share, found = buffers.found;
  Candidate mine = buffers.of_block[slot];
  if (slot >= found) mine.token = kNone;
  if (found > share) mine.token = kTooMany;
  const uint64_t bits = uint64_t{static_cast<uint32_t>(mine.token)} << 32 |
                        static_cast<uint32_t>(__float_as_int(mine.x));
  Mailbox::send(&buffers.received[cluster.rank * share + slot], &buffers.arrived, thread / share,
                bits);
  Mailbox::wait(&buffers.arrived, candidates.collections++);
  mine = buffers.received[thread];
  if (mine.token >= 0) {
    const int32_t i = atomicAdd(&buffers.count, 1);
    const float below = __fmul_rn(__fadd_rn(mine.x, -largest), inverse_temperature);
    buffers.all[i] = {mine.x, mine.token, kOne + weight(below)};
  }
  const bool too_many = __syncthreads_or(mine.token == kTooMany) != 0;
  return too_many ? -1 : buffers.count;
}

// What one thread knows of its candidate.
struct Ranked {
  float x;
  int32_t token;
  uint64_t weight;
  bool kept;
};

__device__ inline uint64_t sum_over_lanes(uint64_t value, int32_t lanes) {
  for (int32_t step = 1; step < lanes; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Filters the candidates, which hold all that top_k leaves: several threads have one, and the first of
// them says whether it is kept.
__device__ inline Ranked rank_candidates(int32_t count, const Filters& filters, Cluster& cluster,
                                         const CandidateBuffers& buffers) {
  int32_t lanes = 16;  // of a candidate
  while (lanes > 1 && kThreads / lanes < count) lanes /= 2;
  const int32_t candidate = static_cast<int32_t>(threadIdx.x) / lanes;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % lanes;
  Ranked own{-INFINITY, kNone, 0, false};
  uint64_t above = 0;  // weights of larger candidates, and how many they are
  if (candidate < count) {
    const WeighedCandidate mine = buffers.all[candidate];
    own = {mine.x, mine.token, mine.weight - kOne, false};
#pragma unroll 4
    for (int32_t j = lane; j < count; j += lanes) {
      const WeighedCandidate other = buffers.all[j];
      above += other.x > mine.x ? other.weight : 0;
    }
  }
  above = sum_over_lanes(above, lanes);
  const bool by_top_k =
      candidate < count && lane == 0 && above / kOne < static_cast<uint64_t>(filters.top_k);
  own.kept = by_top_k && static_cast<double>(own.weight) >= filters.least_weight();
  if (filters.top_p < 1.0f) {
    const uint64_t total = cluster.over_block<Sum>(by_top_k ? own.weight : 0).a;
    const double nucleus = static_cast<double>(filters.top_p) * static_cast<double>(total);
    own.kept = own.kept && static_cast<double>(above % kOne) < nucleus;
  }
  return own;
}

// The least key in [low, high] for which `enough` holds; it holds for `high`, and from there down
// to some key.
template <typename Enough>
__device__ uint32_t least_key(uint32_t low, uint32_t high, uint32_t shift, Enough enough) {
  low >>= shift;
  high >>= shift;
  const uint32_t ones = (1u << shift) - 1;
  const auto full_key = [&](uint32_t key) {
    return key << shift | (key >> (31 - shift) == 0 ? ones : 0u);
  };
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (enough(full_key(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return full_key(low);
}

// The least logit that top_k leaves, whatever k is; a step of the bisection takes a pass.
template <typename Logit>
__device__ uint32_t top_k_cutoff(const RowSlice<Logit>& row, int32_t top_k, uint32_t largest,
                                 Cluster& cluster) {
  return least_key(kMinusInfinityKey + 1, largest, Vec8<Logit>::kKeyShift, [&](uint32_t key) {
    const uint64_t above = row.count_above(value_of(key));
    return cluster.over_cluster<Sum>(above).a < static_cast<uint64_t>(top_k);
  });
}

// The least logit that all filters leave, whatever they are.
template <typename Logit>
__device__ float cutoff(const RowSlice<Logit>& row, const Filters& filters, uint32_t largest_key,
                        float inverse_temperature, Cluster& cluster) {
  constexpr uint32_t kShift = Vec8<Logit>::kKeyShift;
  const float largest = value_of(largest_key);
  uint32_t low = kMinusInfinityKey + 1;
  if (filters.top_k > 0) low = top_k_cutoff(row, filters.top_k, largest_key, cluster);
  const auto mass_above = [&](float above) {
    const Pair mass = row.masses(largest, inverse_temperature, value_of(low), above);
    return cluster.over_cluster<Sum, Sum>(mass.a, mass.b);
  };
  if (filters.top_p < 1.0f) {
    const double total = static_cast<double>(mass_above(largest).a);
    const double nucleus = static_cast<double>(filters.top_p) * total;
    low = least_key(low, largest_key, kShift, [&](uint32_t key) {
      return static_cast<double>(mass_above(value_of(key)).b) < nucleus;
    });
  }
  if (filters.min_p > 0.0f) {
    low = least_key(low, largest_key, kShift, [&](uint32_t key) {
      const float below = __fmul_rn(__fadd_rn(value_of(key), -largest), inverse_temperature);
      return static_cast<double>(weight(below)) >= filters.least_weight();
    });
  }
  return value_of(low);
}

}  // namespace wanspec
