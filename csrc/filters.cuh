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

// The key of a logit whose key, without the bits that its dtype never uses, is this.
__device__ inline uint32_t full_key(uint32_t key, uint32_t shift) {
  const bool is_negative = key >> (31 - shift) == 0;
  return key << shift | (is_negative ? (1u << shift) - 1 : 0u);
}

// The least key in [low, high] for which `enough` holds; it holds for `high`, and from there down
// to some key.
template <typename Enough>
__device__ uint32_t least_key(uint32_t low, uint32_t high, uint32_t shift, Enough enough) {
  low >>= shift;
  high >>= shift;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (enough(full_key(middle, shift))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return full_key(low, shift);
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

// Weight of the row's logits from `floor` on, roughly, in units of the largest weight.
template <typename Logit>
__device__ double rough_mass(const RowSlice<Logit>& row, float largest, float inverse_temperature,
                             float floor, Cluster& cluster) {
  const float floors[1] = {floor};
  float mine[1];
  row.rough_masses(largest, inverse_temperature, floors, mine);
  return static_cast<double>(cluster.over_cluster<Sum>(fixed_point(mine[0])).a) * 0x1p-32;
}

// The least logit of the nucleus: top_p of the mass from `low` on. A pass weighs roughly what lies above
// four logits; exact masses decide between the few that this leaves.
template <typename Logit>
__device__ uint32_t top_p_cutoff(const RowSlice<Logit>& row, float top_p, uint32_t low,
                                 uint32_t largest_key, float inverse_temperature,
                                 Cluster& cluster) {
  constexpr uint32_t kShift = Vec8<Logit>::kKeyShift;
  constexpr int32_t kProbes = 4;
  // A share of the mass, of two rough masses and a fixed point of 30 bits in every thread.
  constexpr double kShareError = 4 * kRoughError;
  const float largest = value_of(largest_key), floor = value_of(low);
  const double p = top_p;
  const double total = rough_mass(row, largest, inverse_temperature, floor, cluster);
  const float units = static_cast<float>(0x1p30 / total);
  // From so far below the largest logit, a whole vocabulary would weigh half of what the nucleus leaves.
  const float share = static_cast<float>(0.5 * (1.0 - p) * total / row.vocab());
  const float outside = __fadd_rd(largest, fminf(logf(share), 0.0f) / inverse_temperature);

  uint32_t first = max(low, key_of(outside)) >> kShift, last = largest_key >> kShift;
  for (bool by_value = true, narrowed = true; narrowed && first < last; by_value = !by_value) {
    // Logits are spread over values rather than over keys, but steps by value alone need not end.
    const float from = value_of(full_key(first, kShift)), to = value_of(full_key(last, kShift));
    uint32_t keys[kProbes];
    float floors[kProbes], rough[kProbes];
#pragma unroll
    for (int32_t i = 0; i < kProbes; ++i) {
      const float way = static_cast<float>(i + 1) / (kProbes + 1);
      const uint32_t of_value = key_of(from * (1.0f - way) + to * way) >> kShift;
      const uint64_t of_key = uint64_t{last - first} * (i + 1) / (kProbes + 1) + first;
      const uint32_t key = by_value ? of_value : static_cast<uint32_t>(of_key);
      keys[i] = min(max(key, i == 0 ? first : keys[i - 1]), last - 1);
      floors[i] = value_of(full_key(keys[i], kShift) + 1);
    }
    row.rough_masses(largest, inverse_temperature, floors, rough);
    uint64_t halves[kProbes];
#pragma unroll
    for (int32_t i = 0; i < kProbes; ++i) halves[i] = __float2ull_rz(rough[i] * units);
    const Pair sums = cluster.over_cluster<Sum, Sum>(halves[0] << 32 | halves[1],
                                                     halves[2] << 32 | halves[3]);
    narrowed = false;
#pragma unroll
    for (int32_t i = 0; i < kProbes; ++i) {
      const uint64_t pair = i < 2 ? sums.a : sums.b;
      const double above = static_cast<uint32_t>(i % 2 == 0 ? pair >> 32 : pair) * 0x1p-30;
      if (above + kShareError < p) {
        last = min(last, keys[i]);
        narrowed = true;
      } else if (above - kShareError > p) {
        first = keys[i] + 1;
        narrowed = true;
      }
    }
  }
  return least_key(full_key(first, kShift), full_key(last, kShift), kShift, [&](uint32_t key) {
    const Pair mine = row.masses(largest, inverse_temperature, floor, value_of(key));
    const Pair mass = cluster.over_cluster<Sum, Sum>(mine.a, mine.b);
    return static_cast<double>(mass.b) < p * static_cast<double>(mass.a);
  });
}

// The least logit that all filters leave, whatever they are.
template <typename Logit>
__device__ float cutoff(const RowSlice<Logit>& row, const Filters& filters, uint32_t largest_key,
                        float inverse_temperature, Cluster& cluster) {
  const float largest = value_of(largest_key);
  uint32_t low = kMinusInfinityKey + 1;
  if (filters.top_k > 0) low = top_k_cutoff(row, filters.top_k, largest_key, cluster);
  if (filters.top_p < 1.0f) {
    low = top_p_cutoff(row, filters.top_p, low, largest_key, inverse_temperature, cluster);
  }
  if (filters.min_p > 0.0f) {
    low = least_key(low, largest_key, Vec8<Logit>::kKeyShift, [&](uint32_t key) {
      const float below = __fmul_rn(__fadd_rn(value_of(key), -largest), inverse_temperature);
      return static_cast<double>(weight(below)) >= filters.least_weight();
    });
  }
  return value_of(low);
}

}  // namespace wanspec
