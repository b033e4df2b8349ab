// One row of logits in the shared memory of a cluster, and the passes over it.
//
// Chunks of the row go to the blocks in turn, so that likely tokens, which often have neighbouring
// ids, are spread evenly. In a block thread t owns vectors t, t + kThreads, ...: it alone reads and
// writes them during a pass, so passes need no barriers between them.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "logits.cuh"
#include "noise.cuh"

namespace wanspec {

constexpr int32_t kVec = 8;                   // tokens
constexpr int32_t kChunk = 1024;              // tokens: one bulk copy
constexpr int32_t kChunkVecs = kChunk / kVec;
constexpr int32_t kStages = 4;                // parts of a row that are waited for one by one

// Chunks that each of `cluster` blocks holds.
__host__ __device__ inline int32_t chunks_of_block(int32_t vocab, int32_t cluster) {
  return (vocab + kChunk * cluster - 1) / (kChunk * cluster);
}

// What decides among the tokens of a row: its filters as far as one token shows them, its noise.
struct Sampler {
  NoiseKey noise;
  float inverse_temperature;
  float shift;         // subtracted from every logit
  float floor;         // least logit that may be chosen; kLowest if there is no such filter
  float largest;       // of the row, for min_p alone
  double least_weight; // min_p's; 0 is off

  __device__ float scaled(float x) const {
    return __fmul_rn(__fadd_rn(x, -shift), inverse_temperature);
  }
  __device__ bool keeps(float x) const {
    if (!(x >= floor)) return false;
    if (least_weight == 0) return true;
    const float below = __fmul_rn(__fadd_rn(x, -largest), inverse_temperature);
    return static_cast<double>(weight(below)) >= least_weight;
  }
  __device__ float score(float x, uint32_t token, uint32_t word) const {
    return __fadd_rn(scaled(x), gumbel_of(word, token, noise));
  }
  __device__ float score(float x, uint32_t token) const {
    return score(x, token, word_of(token, noise));
  }
};

// The largest logit a thread owns: its value (NaN if one is NaN) and its vector.
struct Peak {
  float value;
  int32_t vec;
};

// A thread's vectors by the most that a score in them can be.
struct Bounds {
  float most = -INFINITY;    // in vector `vec`
  int32_t vec = -1;
  float second = -INFINITY;  // in all others
};

// Probability masses, roughly.
struct RoughMasses {
  float all, above;
};
// Relative error of a rough mass at most: fp32 sums of a thread's few hundred exponentials.
constexpr double kRoughError = 1e-4;

template <typename Logit>
class RowSlice {
 public:
  // `slice` has room for chunks_of_block(vocab, cluster.size) chunks, 128-byte aligned, and
  // `noise` for a number a vector of them.
  __device__ RowSlice(Logit* slice, uint16_t* noise, uint64_t* barriers, const Cluster& cluster,
                      int32_t vocab)
      : slice_(slice),
        noise_(noise),
        barriers_(barriers),
        vocab_(vocab),
        rank_(cluster.rank),
        size_(cluster.size),
        num_chunks_(chunks_of_block(vocab, cluster.size)) {
    const int32_t sweeps = (num_vecs() + kThreads - 1) / kThreads;
    sweeps_per_stage_ = (sweeps + kStages - 1) / kStages;
    if (threadIdx.x < kStages) Mailbox::init(&barriers[threadIdx.x]);
    // Behind the last token, where no load comes.
    const int32_t whole_chunks = vocab / (kChunk * size_);
    for (int32_t v = whole_chunks * kChunkVecs + threadIdx.x; v < num_vecs(); v += kThreads) {
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) {
        if (token_of(v) + i >= vocab) slice_[v * kVec + i] = from_float<Logit>(-INFINITY);
      }
    }
  }

  __device__ int32_t num_vecs() const { return num_chunks_ * kChunkVecs; }
  __device__ Vec8<Logit> vec(int32_t v) const { return Vec8<Logit>(slice_ + v * kVec); }
  __device__ float at(int32_t index) const { return to_float(slice_[index]); }

  // First token of a vector.
  __device__ int32_t token_of(int32_t v) const {
    return (v / kChunkVecs * size_ + rank_) * kChunk + v % kChunkVecs * kVec;
  }
  // Where a token lies in this block's slice; -1 if in another's.
  __device__ int32_t index_of(int32_t token) const {
    const int32_t chunk = token / kChunk;
    return chunk % size_ == rank_ ? chunk / size_ * kChunk + token % kChunk : -1;
  }

  // Begin to load a row; a barrier of the block. find_peak() waits for it.
  __device__ void load(const Logit* row) {
    // What ordinary stores wrote is overwritten by the copy engine.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    copied_ = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    if (copied_) {
      ++copies_;
      if (threadIdx.x < 32) start_copies(row);
      load_tail(row);
    } else {
      load_plainly(row);
    }
  }

  // The noise of the row's tokens, as far as bounds need it: of a vector, most_gumbel of the least
  // upper half, as the upper half of a float, rounded up. It does not depend on the logits: its
  // place is while they are loaded.
  __device__ void draw_noise(const NoiseKey& key) const {
    for_each_vec([&](int32_t v, uint32_t token) {
      uint32_t words[4];
      philox4(token / kVec, key, words);
      const uint32_t pair = __vminu2(__vminu2(words[0], words[1]), __vminu2(words[2], words[3]));
      const uint32_t least = min(pair << 16, pair & 0xFFFF0000u);
      noise_[v] = static_cast<uint16_t>((__float_as_int(most_gumbel(least)) + 0xFFFF) >> 16);
    });
  }

  // The largest logit of this thread, once its part of the row is here. `allowed` is the row's
  // bitmask or null.
  __device__ Peak find_peak(const uint8_t* allowed) const {
    Peak peak{-INFINITY, -1};
    float all = -INFINITY;
    for_each_arriving(allowed, [&](int32_t v, float largest) {
      all = nan_max(all, largest);
      if (largest > peak.value) peak = {largest, v};
    });
    if (all != all) peak.value = all;
    return peak;
  }

  // The same, and the bounds of the thread's scores under the sampler's noise.
  __device__ Bounds find_bounds(const Sampler& sampler, const uint8_t* allowed,
                                float& largest_logit) const {
    Bounds bounds;
    largest_logit = -INFINITY;
    for_each_arriving(allowed, [&](int32_t v, float largest) {
      largest_logit = nan_max(largest_logit, largest);
      const float most = most_score(sampler, v, largest);
      bounds.second = fmaxf(bounds.second, fminf(bounds.most, most));
      if (most > bounds.most || bounds.vec < 0) bounds.vec = v;
      bounds.most = fmaxf(bounds.most, most);
    });
    return bounds;
  }

  // The first token of the peak's vector that has the peak's value, which is a number.
  __device__ uint32_t token_of(const Peak& peak) const {
    int32_t i = 0;
    while (at(peak.vec * kVec + i) != peak.value) ++i;
    return static_cast<uint32_t>(token_of(peak.vec) + i);
  }

  // The thread's best score and its token, if it reaches `limit`; 0 if no token that is kept does.
  __device__ uint64_t best_score(const Sampler& sampler, float limit) const {
    uint64_t best = 0;
    for_each_vec([&](int32_t v, uint32_t token) {
      if (most_score(sampler, v, vec(v).largest()) < limit) return;
#pragma unroll 1
      for (int32_t i = 0; i < kVec; ++i) {
        const float x = at(v * kVec + i);
        if (sampler.keeps(x)) {
          best = Max::combine(best, winner_key(sampler.score(x, token + i), token + i));
        }
      }
    });
    return best;
  }

  // The same for one vector a group of eight lanes, whose number is `v` in all of them, or -1. A
  // lane has one of the vector's tokens. `limit` rises to what some score of the warp reaches.
  __device__ uint64_t best_score_of_groups(const Sampler& sampler, int32_t v, float& limit) const {
    const int32_t i = static_cast<int32_t>(threadIdx.x % kVec);
    const float x = v >= 0 ? at(v * kVec + i) : -INFINITY;
    const bool kept = sampler.keeps(x);
    const uint32_t token = static_cast<uint32_t>(token_of(max(v, 0)) + i);
    const uint32_t word = word_of(token, sampler.noise);
    const float scaled = sampler.scaled(x), most = most_gumbel(word);
    const float reached = kept ? __fadd_rn(scaled, least_gumbel(word, most)) : -INFINITY;
    limit = fmaxf(limit, value_of(__reduce_max_sync(kAllLanes, key_of(reached))));
    const bool may_win = kept && !(__fadd_rn(scaled, most) < limit);
    return may_win ? winner_key(sampler.score(x, token, word), token) : 0;
  }

  // Weight of the thread's logits from `floor` on, and of those above `above`.
  __device__ Pair masses(float largest, float inverse_temperature, float floor, float above) const {
    Pair mass{0, 0};
    for_each_vec([&](int32_t v, uint32_t) {
      const Vec8<Logit> logits = vec(v);
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) {
        const float x = logits[i];
        const float below = __fmul_rn(__fadd_rn(x, -largest), inverse_temperature);
        const uint64_t w = x >= floor ? weight(below) : 0;
        mass.a += w;
        mass.b += x > above ? w : 0;
      }
    });
    return mass;
  }

  // masses() within kRoughError, in units of the largest weight and for a quarter of the work.
  __device__ RoughMasses rough_masses(float largest, float inverse_temperature, float floor,
                                      float above) const {
    constexpr float kLog2E = 1.44269504f;
    const float scale = inverse_temperature * kLog2E;
    RoughMasses mass{0, 0};
    for_each_vec([&](int32_t v, uint32_t) {
      const Vec8<Logit> logits = vec(v);
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) {
        const float x = logits[i];
        float w;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(w) : "f"((x - largest) * scale));
        mass.all += x >= floor ? w : 0.0f;
        mass.above += x > above ? w : 0.0f;
      }
    });
    return mass;
  }

  // How many of the thread's logits lie above `above`.
  __device__ uint32_t count_above(float above) const {
    uint32_t count = 0;
    for_each_vec([&](int32_t v, uint32_t) {
      const Vec8<Logit> logits = vec(v);
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) count += logits[i] > above;
    });
    return count;
  }

  // Calls found(x, token) for each of the thread's logits from `floor` on.
  template <typename Found>
  __device__ void for_each_from(float floor, Found found) const {
    for_each_vec([&](int32_t v, uint32_t token) {
      const Vec8<Logit> logits = vec(v);
      if (!(logits.largest() >= floor)) return;
      uint32_t hits = 0;
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) hits |= static_cast<uint32_t>(logits[i] >= floor) << i;
      for (; hits != 0; hits &= hits - 1) {
        const int32_t i = __ffs(static_cast<int32_t>(hits)) - 1;
        found(at(v * kVec + i), token + i);
      }
    });
  }

  // Overwrite a logit of this block's, between two barriers.
  __device__ void set(int32_t index, float x) { slice_[index] = from_float<Logit>(x); }

 private:
  static constexpr int32_t kPerCopy = 16 / sizeof(Logit);

  Logit* slice_;
  uint16_t* noise_;
  uint64_t* barriers_;
  int32_t vocab_, rank_, size_, num_chunks_, sweeps_per_stage_;
  uint32_t copies_ = 0xFFFFFFFFu;  // number of the last load by the copy engine, from 0
  bool copied_ = false;            // the last load was by the copy engine

  // Calls visit(vector, its first token) for each of the thread's.
  template <typename Visit>
  __device__ void for_each_vec(Visit visit) const {
    uint32_t token = static_cast<uint32_t>(token_of(static_cast<int32_t>(threadIdx.x)));
    const uint32_t step = static_cast<uint32_t>(kThreads / kChunkVecs * kChunk * size_);
    for (int32_t v = threadIdx.x; v < num_vecs(); v += kThreads, token += step) visit(v, token);
  }

  // Calls visit(vector, its largest logit) for each of the thread's, as they arrive.
  template <typename Visit>
  __device__ void for_each_arriving(const uint8_t* allowed, Visit visit) const {
    const int32_t vecs_per_stage = sweeps_per_stage_ * kThreads;
    int32_t v = threadIdx.x;
    for (int32_t stage = 0; v < num_vecs(); ++stage) {
      if (copied_) Mailbox::wait(&barriers_[stage], copies_);
      const int32_t end = min(vecs_per_stage * (stage + 1), num_vecs());
      if (allowed != nullptr) {
        for (int32_t u = v; u < end; u += kThreads) forbid(u, allowed);
      }
#pragma unroll 4
      for (; v < end; v += kThreads) visit(v, vec(v).largest());
    }
  }

  __device__ float most_score(const Sampler& sampler, int32_t v, float largest) const {
    return __fadd_rn(sampler.scaled(largest), __int_as_float(noise_[v] << 16));
  }

  __device__ int32_t copy_bytes(int32_t chunk) const {
    const int32_t left = vocab_ - (chunk * size_ + rank_) * kChunk;
    return max(min(left, kChunk) / kPerCopy, 0) * 16;
  }

  __device__ void start_copies(const Logit* row) const {
    const int32_t chunks_per_stage = sweeps_per_stage_ * kThreads / kChunkVecs;
    if (threadIdx.x < kStages) {
      const int32_t end = min(chunks_per_stage * (threadIdx.x + 1), num_chunks_);
      int32_t bytes = 0;
      for (int32_t c = chunks_per_stage * threadIdx.x; c < end; ++c) bytes += copy_bytes(c);
      Mailbox::expect(&barriers_[threadIdx.x], bytes);
    }
    for (int32_t c = threadIdx.x; c < num_chunks_; c += 32) {
      const int32_t bytes = copy_bytes(c);
      if (bytes == 0) continue;
      const int64_t from = static_cast<int64_t>(c * size_ + rank_) * kChunk;
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
              "r"(shared_address(slice_ + c * kChunk)),
          "l"(__cvta_generic_to_global(row + from)), "r"(bytes),
          "r"(shared_address(&barriers_[c / chunks_per_stage]))
          : "memory");
    }
  }

  // What is left of a row that is no whole number of copies, at most one vector.
  __device__ void load_tail(const Logit* row) {
    const int32_t left = vocab_ % kPerCopy, index = left != 0 ? index_of(vocab_ - left) : -1;
    if (index < 0 || index / kVec % kThreads != threadIdx.x) return;
    for (int32_t i = 0; i < left; ++i) slice_[index + i] = row[vocab_ - left + i];
  }

  __device__ void load_plainly(const Logit* row) {
    for (int32_t v = threadIdx.x; v < num_vecs(); v += kThreads) {
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) {
        const int32_t token = token_of(v) + i;
        if (token < vocab_) slice_[v * kVec + i] = row[token];
      }
    }
  }

  // Token t is allowed if bit t % 8 of byte t / 8 is set.
  __device__ void forbid(int32_t v, const uint8_t* allowed) const {
    const uint32_t token = static_cast<uint32_t>(token_of(v));
    if (token >= static_cast<uint32_t>(vocab_)) return;
    const uint32_t bits = allowed[token / 8];
    if (bits == 0xFF) return;
#pragma unroll
    for (int32_t i = 0; i < kVec; ++i) {
      if ((bits >> i & 1) == 0) slice_[v * kVec + i] = from_float<Logit>(-INFINITY);
    }
  }
};

}  // namespace wanspec
