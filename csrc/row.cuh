// One row of logits in the shared memory of a cluster, and the passes over it.
//
// A stripe of the row is a chunk for every block, so that likely tokens, which often have neighbouring
// ids, are spread evenly. In a block thread t owns vectors t, t + kThreads, ...: it alone reads and
// writes them during a pass, so passes need no barriers between them.
#pragma once

#include <cstdint>

#include "cluster.cuh"
#include "logits.cuh"
#include "noise.cuh"

namespace wanspec {

constexpr int32_t kVec = 8;                   // tokens
constexpr int32_t kSweep = kThreads * kVec;   // tokens of a block that its threads look at together
constexpr int32_t kMaxStages = 4;             // parts of a row that are waited for one by one
constexpr int32_t kSweepsAtOnce = 4;          // a wait costs more than what so few of them overlap

// Tokens of a chunk, which is one bulk copy. Clusters, and so chunks, are powers of two; they divide
// sweeps.
__host__ __device__ inline int32_t chunk_size(int32_t cluster) {
  return cluster < 4 ? kSweep : kSweep * 4 / cluster;
}

__host__ __device__ inline size_t tokens_of_block(int32_t vocab, int32_t cluster) {
  const size_t chunk = static_cast<size_t>(chunk_size(cluster)), stripe = chunk * cluster;
  return (static_cast<size_t>(vocab) + stripe - 1) / stripe * chunk;
}

__device__ inline int32_t log2_of(int32_t power) { return __ffs(power) - 1; }

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
  __device__ float score(float x, uint32_t token) const {
    return __fadd_rn(scaled(x), gumbel(token, noise));
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

// Two to the power of x, within 2^-22.
__device__ inline float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Relative error of a rough mass at most: a few times what exponentials of arguments down to -40, and
// fp32 sums of some thirty vectors, can be off.
constexpr double kRoughError = 1e-5;

// A rough mass as an integer, whose sums do not depend on their order.
__device__ inline uint64_t fixed_point(float mass) {
  return __float2ull_rz(mass * 0x1p32f);
}

__device__ inline float sum_of(const float (&terms)[kVec]) {
  return ((terms[0] + terms[1]) + (terms[2] + terms[3])) +
         ((terms[4] + terms[5]) + (terms[6] + terms[7]));
}

template <typename Logit>
class RowSlice {
  static constexpr int32_t kPerCopy = 16 / sizeof(Logit);
  static constexpr int32_t kUnroll = 8 / sizeof(Logit);  // as many as registers hold

 public:
  // `slice` has room for tokens_of_block() logits, 128-byte aligned, and `noise` for a number a
  // vector of them. The kMaxStages `barriers` are initialised by others, before load().
  __device__ RowSlice(Logit* slice, uint16_t* noise, uint64_t* barriers, const Cluster& cluster,
                      int32_t vocab)
      : slice_(slice),
        noise_(noise),
        barriers_(barriers),
        vocab_(vocab),
        rank_(cluster.rank),
        chunk_(chunk_size(cluster.size)),
        chunk_bits_(log2_of(chunk_)),
        stripe_bits_(log2_of(chunk_ * cluster.size)),
        num_vecs_(static_cast<int32_t>(tokens_of_block(vocab, cluster.size)) / kVec) {
    const int32_t sweeps = (num_vecs_ * kVec + kSweep - 1) / kSweep;
    stage_ = (sweeps > kSweepsAtOnce ? (sweeps + kMaxStages - 1) / kMaxStages : sweeps) * kSweep;
    const int32_t from_here = vocab - rank_ * chunk_;
    const int32_t whole_chunks = from_here < chunk_ ? 0 : (from_here - chunk_ >> stripe_bits_) + 1;
    const int32_t rest = max(from_here - (whole_chunks << stripe_bits_), 0);
    num_copied_ = whole_chunks * chunk_ + rest / kPerCopy * kPerCopy;
    // Behind the last token, where no load comes.
    for (int32_t v = num_copied_ / kVec + threadIdx.x; v < num_vecs_; v += kThreads) {
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) {
        if (token_of(v) + i >= vocab) slice_[v * kVec + i] = from_float<Logit>(-INFINITY);
      }
    }
  }

  __device__ int32_t vocab() const { return vocab_; }
  __device__ int32_t num_vecs() const { return num_vecs_; }
  __device__ Vec8<Logit> vec(int32_t v) const { return Vec8<Logit>(slice_ + v * kVec); }
  __device__ float at(int32_t index) const { return to_float(slice_[index]); }

  // First token of a vector.
  __device__ int32_t token_of(int32_t v) const {
    const int32_t index = v * kVec, in_chunk = index & (chunk_ - 1);
    return token_of_chunk(index - in_chunk) + in_chunk;
  }
  // Where a token lies in this block's slice; -1 if in another's.
  __device__ int32_t index_of(int32_t token) const {
    const int32_t stripe = token >> stripe_bits_;
    const int32_t in_chunk = token - (stripe << stripe_bits_) - rank_ * chunk_;
    const bool mine = in_chunk >= 0 && in_chunk < chunk_;
    return mine ? (stripe << chunk_bits_) + in_chunk : -1;
  }

  // Begin to load a row; a barrier of the block. find_peak() waits for it. `masked`: rows come with
  // bitmasks.
  __device__ void load(const Logit* row, bool masked) {
    if (masked || !copied_) {
      // What ordinary stores may have written is overwritten by the copy engine.
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    copied_ = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    if (copied_) {
      ++copies_;
      start_copies(row);
      load_tail(row);
    } else {
      load_plainly(row);
    }
  }

  // The noise of the row's tokens, as far as bounds need it: of a vector, most_gumbel_of_half of the
  // least upper half, as the upper half of a float, rounded up. It does not depend on the logits: its
  // place is while they are loaded.
  __device__ void draw_noise(const NoiseKey& key) const {
    for_each_vec([&](int32_t v, uint32_t token) {
      uint32_t words[4];
      philox4(token / kVec, key, words);
      const uint32_t pair = __vminu2(__vminu2(words[0], words[1]), __vminu2(words[2], words[3]));
      const float most = most_gumbel_of_half(min(pair & 0xFFFF, pair >> 16));
      noise_[v] = static_cast<uint16_t>((__float_as_int(most) + 0xFFFF) >> 16);
    });
  }

  // The largest logit of this thread, once its part of the row is here. `allowed` is the row's
  // bitmask or null.
  __device__ Peak find_peak(const uint8_t* allowed) const {
    Peak peak{-INFINITY, -1};
    float all = -INFINITY;
    for_each_arriving(allowed, true, [&](int32_t v, float largest) {
      all = nan_max(all, largest);
      if (largest > peak.value) peak = {largest, v};
    });
    if (all != all) peak.value = all;
    return peak;
  }

  // The same, and roughly the mass of the thread's logits, in units of the weight of the peak's.
  __device__ Peak find_peak(const uint8_t* allowed, float inverse_temperature, float& mass) const {
    const float scale = inverse_temperature * kLog2E;
    Peak peak{-INFINITY, -1};
    float all = -INFINITY, unit = kLowest;
    mass = 0.0f;
    for_each_arriving(allowed, true, [&](int32_t v, float largest) {
      all = nan_max(all, largest);
      if (largest > peak.value) {
        peak = {largest, v};
        mass *= exp2_of((unit - largest) * scale);
        unit = largest;
      }
      const Vec8<Logit> logits = vec(v);
      float terms[kVec];
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) terms[i] = exp2_of((logits[i] - unit) * scale);
      mass += sum_of(terms);
    });
    if (all != all) peak.value = all;
    return peak;
  }

  // The same, and the bounds of the thread's scores under the sampler's noise.
  __device__ Bounds find_bounds(const Sampler& sampler, const uint8_t* allowed,
                                float& largest_logit) const {
    Bounds bounds;
    largest_logit = -INFINITY;
    // Noise has taken the time in which the row came.
    for_each_arriving(allowed, false, [&](int32_t v, float largest) {
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

  // Calls visit(v) for each of the thread's vectors whose scores may reach `limit`.
  template <typename Visit>
  __device__ void for_each_that_may_reach(const Sampler& sampler, float limit, Visit visit) const {
    for_each_vec([&](int32_t v, uint32_t) {
      if (most_score(sampler, v, vec(v).largest()) >= limit) visit(v);
    });
  }

  // Eight lanes have one vector, whose number is `v` in all of them, or -1: a token each, and its score;
  // 0 if it is not kept.
  __device__ uint64_t score_of_lane(const Sampler& sampler, int32_t v) const {
    const int32_t i = static_cast<int32_t>(threadIdx.x % kVec);
    const float x = v >= 0 ? at(v * kVec + i) : -INFINITY;
    const uint32_t token = static_cast<uint32_t>(token_of(max(v, 0)) + i);
    return sampler.keeps(x) ? winner_key(sampler.score(x, token), token) : 0;
  }

  // Weight of the thread's logits from `floor` on, and of those above `above`.
  __device__ Pair masses(float largest, float inverse_temperature, float floor, float above) const {
    constexpr float kWeightless = -27.8f;  // a little below -kWeightBits * ln(2)
    Pair mass{0, 0};
    for_each_vec([&](int32_t v, uint32_t) {
      const Vec8<Logit> logits = vec(v);
      if ((logits.largest() - largest) * inverse_temperature < kWeightless) return;
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

  // Weight of the thread's logits from each of the `floors` on, the least of which is first: in units
  // of the largest weight, within kRoughError, and for a quarter of the work of masses().
  template <int32_t N>
  __device__ void rough_masses(float largest, float inverse_temperature, const float (&floors)[N],
                               float (&masses)[N]) const {
    const float scale = inverse_temperature * kLog2E;
#pragma unroll
    for (int32_t n = 0; n < N; ++n) masses[n] = 0.0f;
    for_each_vec([&](int32_t v, uint32_t) {
      const Vec8<Logit> logits = vec(v);
      if (!(logits.largest() >= floors[0])) return;
      float weights[kVec];
#pragma unroll
      for (int32_t i = 0; i < kVec; ++i) weights[i] = exp2_of((logits[i] - largest) * scale);
#pragma unroll
      for (int32_t n = 0; n < N; ++n) {
        float terms[kVec];
#pragma unroll
        for (int32_t i = 0; i < kVec; ++i) terms[i] = logits[i] >= floors[n] ? weights[i] : 0.0f;
        masses[n] += sum_of(terms);
      }
    });
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
  Logit* slice_;
  uint16_t* noise_;
  uint64_t* barriers_;
  int32_t vocab_, rank_;
  int32_t chunk_, chunk_bits_, stripe_bits_;  // tokens, and powers of two
  int32_t num_vecs_;
  int32_t stage_;       // tokens that are waited for together
  int32_t num_copied_;  // of the slice, from its beginning, by the copy engine
  uint32_t copies_ = 0xFFFFFFFFu;  // number of the last load by the copy engine, from 0
  bool copied_ = false;            // the last load was by the copy engine

  // First token of the chunk that begins at an index of the slice.
  __device__ int32_t token_of_chunk(int32_t index) const {
    return (index >> chunk_bits_ << stripe_bits_) + rank_ * chunk_;
  }

  // Calls visit(vector, its first token) for each of the thread's.
  template <typename Visit>
  __device__ void for_each_vec(Visit visit) const {
    uint32_t token = static_cast<uint32_t>(token_of(static_cast<int32_t>(threadIdx.x)));
    const uint32_t step = static_cast<uint32_t>(kSweep >> chunk_bits_ << stripe_bits_);
#pragma unroll kUnroll
    for (int32_t v = threadIdx.x; v < num_vecs_; v += kThreads, token += step) visit(v, token);
  }

  __device__ void wait_for(int32_t stage) const {
    if (copied_) Mailbox::wait(&barriers_[stage], copies_);
  }

  // Calls visit(vector, its largest logit) for each of the thread's: in parts as they arrive, or once all
  // are here.
  template <typename Visit>
  __device__ void for_each_arriving(const uint8_t* allowed, bool in_parts, Visit visit) const {
    const int32_t part = stage_ / kVec;
    if (!in_parts) {
      for (int32_t stage = 0; stage * part < num_vecs_; ++stage) wait_for(stage);
    }
    int32_t v = threadIdx.x;
    for (int32_t stage = 0; v < num_vecs_; ++stage) {
      if (in_parts) wait_for(stage);
      const int32_t end = in_parts ? min(part * (stage + 1), num_vecs_) : num_vecs_;
      if (allowed != nullptr) {
        for (int32_t u = v; u < end; u += kThreads) forbid(u, allowed);
      }
#pragma unroll kUnroll
      for (; v < end; v += kThreads) visit(v, vec(v).largest());
    }
  }

  __device__ float most_score(const Sampler& sampler, int32_t v, float largest) const {
    return __fadd_rn(sampler.scaled(largest), __int_as_float(noise_[v] << 16));
  }

  // What the copy engine brings of some tokens from an index of the slice on.
  __device__ int32_t copy_bytes(int32_t index, int32_t tokens) const {
    return max(min(num_copied_ - index, tokens), 0) * static_cast<int32_t>(sizeof(Logit));
  }

  // A warp a copy: a warp's own take their turns.
  __device__ void start_copies(const Logit* row) const {
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    if (thread < kMaxStages) {
      Mailbox::expect(&barriers_[thread], copy_bytes(thread * stage_, stage_));
    }
    if (thread % 32 != 0) return;
    for (int32_t i = thread / 32 * chunk_; i < num_copied_; i += kWarps * chunk_) {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
              "r"(shared_address(slice_ + i)),
          "l"(__cvta_generic_to_global(row + token_of_chunk(i))), "r"(copy_bytes(i, chunk_)),
          "r"(shared_address(&barriers_[i / stage_]))
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
    for (int32_t v = threadIdx.x; v < num_vecs_; v += kThreads) {
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
