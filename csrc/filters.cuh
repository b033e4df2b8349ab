// What top_k, top_p and min_p leave of a row: sampling.cutoff of the Python side, bit for bit.
//
// Usually few tokens are left. Then every block learns of a few hundred candidates that hold them
// all, and decides on these alone. Otherwise the cutoff is found by bisection over whole rows.
#pragma once

#include <cstdint>

#include "row.cuh"

namespace wanspec {

constexpr int32_t kMaxCandidates = 512;
constexpr int32_t kMaxOfBlock = 128;  // candidates that one block may send
constexpr int32_t kMaxTopK = 128;     // above it, bisection
constexpr int32_t kPeaks = kWarps * kMaxCluster;  // largest logits of as many parts of a row
// A weight in a sum that also counts: no sum of kMaxCandidates weights reaches it.
constexpr uint64_t kOne = 1ull << (kWeightBits + 10);
static_assert(kMaxCandidates <= kThreads && kMaxCandidates < 1 << 10);

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
  int32_t token;
};

struct CandidateBuffers {
  Candidate of_blocks[kMaxCluster][kMaxOfBlock];
  Candidate all[kMaxCandidates];
  uint64_t weights[kMaxCandidates];  // and kOne each
  uint64_t above[kThreads];          // sums of some of the weights above a candidate
  uint32_t peaks[kPeaks];
  uint64_t arrived, peaks_arrived;
  int32_t found;  // by this block
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
      if (reached <= least + least / 8) break;
    }
  }
  return low << shift;
}

// Sends every block all logits of the row from `floor` on: their number, or -1 if they are too many.
// Every block takes part.
template <typename Logit>
__device__ int32_t collect_candidates(const RowSlice<Logit>& row, float floor, Cluster& cluster,
                                      Candidates& candidates) {
  CandidateBuffers& buffers = candidates.buffers;
  row.for_each_from(floor, [&](float x, uint32_t token) {
    const int32_t slot = atomicAdd(&buffers.found, 1);
    if (slot >= kMaxOfBlock) return;
    const uint64_t bits = uint64_t{token} << 32 | static_cast<uint32_t>(__float_as_int(x));
    for (int32_t block = 0; block < cluster.size; ++block) {
      Mailbox::send(&buffers.of_blocks[cluster.rank][slot], &buffers.arrived, block, bits);
    }
  });
  __syncthreads();
  const Pair* found = cluster.gather(static_cast<uint64_t>(buffers.found));
  int32_t total = 0, sent = 0;
  for (int32_t block = 0; block < cluster.size; ++block) {
    const int32_t count = static_cast<int32_t>(found[block].a);
    total += count;
    sent += min(count, kMaxOfBlock);
  }
  if (threadIdx.x == 0) {
    Mailbox::expect(&buffers.arrived, sent * static_cast<int32_t>(sizeof(Candidate)));
  }
  Mailbox::wait(&buffers.arrived, candidates.collections++);
  if (sent != total || total > kMaxCandidates) return -1;
  int32_t end = 0;
  for (int32_t block = 0; block < cluster.size; ++block) {
    const int32_t count = static_cast<int32_t>(found[block].a);
    if (threadIdx.x < count) buffers.all[end + threadIdx.x] = buffers.of_blocks[block][threadIdx.x];
    end += count;
  }
  __syncthreads();
  return total;
}

// What one thread knows of its candidate.
struct Ranked {
  uint64_t weight;
  bool kept;
};

// Filters the candidates, which hold all that top_k leaves: thread i has the i-th. `meanwhile` is
// work that needs no answer.
template <typename Meanwhile>
__device__ Ranked rank_candidates(int32_t count, const Filters& filters, float largest,
                                  float inverse_temperature, Cluster& cluster,
                                  CandidateBuffers& buffers, Meanwhile meanwhile) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  Ranked own{0, false};
  if (thread < count) {
    const float below = __fmul_rn(__fadd_rn(buffers.all[thread].x, -largest), inverse_temperature);
    own.weight = weight(below);
    buffers.weights[thread] = kOne + own.weight;
  }
  __syncthreads();

  // Several threads a candidate: each sums over its share of the others.
  int32_t width = 32;
  while (width < count) width *= 2;
  const int32_t parts = kThreads / width, share = (count + parts - 1) / parts;
  const int32_t candidate = thread % width, first = thread / width * share;
  uint64_t above = 0;
  if (candidate < count) {
    const float x = buffers.all[candidate].x;
#pragma unroll 4
    for (int32_t j = first; j < min(first + share, count); ++j) {
      above += buffers.all[j].x > x ? buffers.weights[j] : 0;
    }
  }
  buffers.above[thread] = above;
  meanwhile();
  __syncthreads();

  above = 0;
  if (thread < count) {
    for (int32_t part = 0; part < parts; ++part) above += buffers.above[part * width + thread];
    own.kept = above / kOne < static_cast<uint64_t>(filters.top_k) &&
               static_cast<double>(own.weight) >= filters.least_weight();
  }
  if (filters.top_p < 1.0f) {
    const bool by_top_k = thread < count && above / kOne < static_cast<uint64_t>(filters.top_k);
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
