// What both rules share: a cluster's way down one tree.
#pragma once

#include <cstdint>

#include "filters.cuh"
#include "row.cuh"
#include "verify.h"

namespace wanspec {

constexpr int32_t kMaxContenders = 512;

// Vectors of a block whose scores may win.
struct Contenders {
  int32_t count;
  int32_t vecs[kMaxContenders];
};

struct WalkBuffers {
  uint64_t barriers[kMaxStages];
  ClusterBuffers cluster;
  CandidateBuffers candidates;
  Contenders contenders;
};

// Shared memory of a kernel: its buffers, then the slice, then its noise.
template <typename Buffers>
__host__ __device__ constexpr size_t slice_offset() {
  return (sizeof(Buffers) + 127) / 128 * 128;
}

template <typename Buffers, typename Logit>
__host__ __device__ size_t noise_offset(int32_t vocab, int32_t cluster) {
  return slice_offset<Buffers>() + tokens_of_block(vocab, cluster) * sizeof(Logit);
}

template <typename Buffers, typename Logit>
__host__ __device__ size_t shared_bytes(int32_t vocab, int32_t cluster) {
  const size_t vecs = tokens_of_block(vocab, cluster) / kVec;
  return noise_offset<Buffers, Logit>(vocab, cluster) + vecs * sizeof(uint16_t);
}

// Mailboxes are ready once all blocks have passed here, and Cluster::wait_for_start().
__device__ inline void start_cluster(WalkBuffers& buffers, const Cluster& cluster) {
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : buffers.barriers) Mailbox::init(&barrier);
    for (uint64_t& barrier : buffers.cluster.arrived) Mailbox::init(&barrier);
    Mailbox::init(&buffers.candidates.arrived);
    Mailbox::init(&buffers.candidates.peaks_arrived);
    buffers.contenders.count = 0;
  }
  cluster.announce();
}

// One request and its tree.
struct Request {
  int32_t tree, start, num_nodes;
  int64_t position, seed;
  float inverse_temperature;  // 0 = greedy
  Filters filters;

  __device__ Request(const VerifyInputs& in, int32_t b)
      : tree(b),
        start(in.indptr[b]),
        num_nodes(in.indptr[b + 1] - start),
        position(in.positions[b]),
        seed(in.seed[b]),
        filters{in.top_k[b], in.top_p[b], in.min_p[b]} {
    const float temperature = in.temperature[b];
    inverse_temperature = temperature == 0.0f ? 0.0f : __frcp_rn(temperature);
  }

  __device__ NoiseKey noise(int32_t depth, Stream stream) const {
    return {position + depth, seed, stream};
  }
};

template <typename Logit>
__device__ const Logit* row_of(const VerifyInputs& in, const Request& request, int32_t node) {
  const int64_t index = int64_t{request.start} + node;
  return static_cast<const Logit*>(in.logits) + index * in.row_stride;
}

__device__ inline const uint8_t* bitmask_of(
    const VerifyInputs& in, const Request& request, int32_t node) {
  if (in.token_bitmask == nullptr) return nullptr;
  const int64_t index = int64_t{request.start} + node;
  return reinterpret_cast<const uint8_t*>(in.token_bitmask + index * in.bitmask_words);
}

__device__ inline bool keeps_few(const Filters& filters) {
  return filters.top_k > 0 && filters.top_k <= kMaxTopK;
}

__device__ inline bool is_number(float x) { return x > -INFINITY && x < INFINITY; }

__device__ inline bool is_valid(uint32_t largest_key) {
  return largest_key > kMinusInfinityKey && largest_key < kInfinityKey;
}

// The vector with the highest bound among those of eight lanes, to all of them; its owner forgets it.
__device__ inline int32_t take_vector(Bounds& bounds) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  float highest = bounds.most;
#pragma unroll
  for (int32_t step = 1; step < kVec; step *= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, step));
  }
  const bool is_it = bounds.vec >= 0 && bounds.most == highest;
  const unsigned found = __ballot_sync(kAllLanes, is_it);
  const int32_t first = lane / kVec * kVec;
  const int32_t leader = __ffs(static_cast<int>(found >> first & 0xFF)) - 1 + first;
  const int32_t vec = __shfl_sync(kAllLanes, bounds.vec, max(leader, 0));
  __syncwarp();  // its owner may have written it with ordinary stores
  if (lane == leader) bounds.most = -INFINITY;
  return leader < first ? -1 : vec;
}

// The best score in all vectors that may reach `limit`. `has_some`: this thread may own such. Every
// thread of the block takes part.
template <typename Logit>
__device__ uint64_t best_of_contenders(const RowSlice<Logit>& row, const Sampler& sampler,
                                       float limit, bool has_some, Contenders& contenders) {
  if (has_some) {
    row.for_each_that_may_reach(sampler, limit, [&](int32_t v) {
      const int32_t slot = atomicAdd(&contenders.count, 1);
      if (slot < kMaxContenders) contenders.vecs[slot] = v;
    });
  }
  __syncthreads();
  const bool are_listed = contenders.count <= kMaxContenders;
  const int32_t count = are_listed ? contenders.count : row.num_vecs();
  uint64_t best = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) / kVec; i < count; i += kThreads / kVec) {
    best = Max::combine(best, row.score_of_lane(sampler, are_listed ? contenders.vecs[i] : i));
  }
  return best;
}

// The winner among all tokens of the row that `sampler` keeps, 0 if there is none, and the largest of
// the threads' largest logits as a key. Every block takes part.
template <typename Logit>
__device__ Pair sample(const RowSlice<Logit>& row, Bounds bounds, float largest_logit,
                       const Sampler& sampler, Cluster& cluster, Contenders& contenders) {
  // A vector of every eight lanes first. Mostly no other can hold a better score, and all that is left
  // is to know that.
  uint64_t best = row.score_of_lane(sampler, take_vector(bounds));
  const float unseen = fmaxf(bounds.most, bounds.second);
  const uint64_t keys = uint64_t{key_of(largest_logit)} << 32 | key_of(unseen);
  const Pair found = cluster.over_cluster<Max, MaxOfHalves>(best, keys);
  const uint64_t largest_key = found.b >> 32;
  const uint32_t reached = static_cast<uint32_t>(found.a >> 32);
  if (reached > static_cast<uint32_t>(found.b) || !is_valid(static_cast<uint32_t>(largest_key))) {
    return {found.a, largest_key};
  }
  const float limit = reached != 0 ? value_of(reached) : -INFINITY;
  best = best_of_contenders(row, sampler, limit, unseen >= limit, contenders);
  best = cluster.over_cluster<Max>(Max::combine(best, found.a)).a;
  if (threadIdx.x == 0) contenders.count = 0;
  return {best, largest_key};
}

// The largest logit and its lowest token, 0 if there is none, and the largest of the threads' peak
// keys. Every block takes part.
template <typename Logit>
__device__ Pair greedy(const RowSlice<Logit>& row, const Peak& peak, Cluster& cluster) {
  const uint64_t mine = is_number(peak.value) ? winner_key(peak.value, row.token_of(peak)) : 0;
  return cluster.over_cluster<Max, Max>(mine, key_of(peak.value));
}

// The largest key of the row. If top_k leaves few tokens, `few` becomes their candidates' number;
// else, or if there are too many candidates, or the row is invalid, -1.
template <typename Logit>
__device__ uint32_t start_filters(const RowSlice<Logit>& row, const Peak& peak,
                                  const Request& request, int32_t& few, const Cluster& cluster,
                                  Candidates& candidates) {
  const Filters& filters = request.filters;
  uint32_t peaks[kPeaks / 32];
  exchange_peaks(key_of(peak.value), cluster, candidates, peaks);
  uint32_t largest_key = 0;
#pragma unroll
  for (int32_t i = 0; i < kPeaks / 32; ++i) largest_key = max(largest_key, peaks[i]);
  largest_key = __reduce_max_sync(kAllLanes, largest_key);
  few = -1;
  if (keeps_few(filters) && is_valid(largest_key)) {
    // Peaks are different logits, so as many logits are at least as large.
    const uint32_t floor_key = key_reached_by(filters.top_k, peaks, Vec8<Logit>::kKeyShift);
    const float floor = floor_key <= kMinusInfinityKey ? kLowest : value_of(floor_key);
    few = collect_candidates(row, floor, value_of(largest_key), request.inverse_temperature, cluster,
                             candidates);
  }
  return largest_key;
}

// Begin to load the row of a node; a barrier of the block.
template <typename Logit>
__device__ void load_node(RowSlice<Logit>& row, const VerifyInputs& in, const Request& request,
                          int32_t node, Candidates& candidates) {
  if (threadIdx.x == 0) candidates.buffers.found = candidates.buffers.count = 0;
  row.load(row_of<Logit>(in, request, node), in.token_bitmask != nullptr);
}

// Records the path of one request; one thread of the cluster does.
class Path {
 public:
  __device__ Path(const VerifyOutputs& out, const Request& request, int32_t max_depth, bool writes)
      : out_(out), tree_(request.tree), max_depth_(max_depth), writes_(writes) {}

  __device__ void accept(int32_t node, int32_t token) {
    if (writes_) {
      out_.token_ids[int64_t{tree_} * (max_depth_ + 1) + depth] = token;
      out_.accepted_nodes[int64_t{tree_} * max_depth_ + depth] = node;
    }
    ++depth;
  }

  // `token` follows; -1 and status 1 if there is none for an invalid row.
  __device__ void finish(int32_t token, int32_t status) {
    if (!writes_) return;
    int32_t* tokens = out_.token_ids + int64_t{tree_} * (max_depth_ + 1);
    int32_t* nodes = out_.accepted_nodes + int64_t{tree_} * max_depth_;
    tokens[depth] = token;
    for (int32_t i = depth + 1; i <= max_depth_; ++i) tokens[i] = -1;
    for (int32_t i = depth; i < max_depth_; ++i) nodes[i] = -1;
    out_.num_accepted[tree_] = depth;
    out_.status[tree_] = status;
  }

  int32_t depth = 0;

 private:
  const VerifyOutputs& out_;
  int32_t tree_, max_depth_;
  bool writes_;
};

}  // namespace wanspec
