// The draws at one node, and their test against a residual known exactly or within bounds.
#pragma once

#include <cstdint>

#include "walk.cuh"

namespace wanspec {

// Where a number lies that is cheaper to bound than to know.
struct Interval {
  double low, high;
};

__device__ inline Interval exactly(double x) { return {x, x}; }
__device__ inline Interval roughly(double x) { return {x * (1 - kRoughError), x * (1 + kRoughError)}; }

// One draw of a node. Those of a node with many are not all kept at hand.
struct Draw {
  int32_t row, child, token;
  bool replaced;
  float coin;

  Draw() = default;
  __device__ Draw(const DrawInputs& draws, const int32_t* tree_tokens, int32_t draw, int32_t number,
                  const NoiseKey& coins)
      : row(draws.rows[draw]),
        child(draws.children[draw]),
        token(tree_tokens[child]),
        replaced(draws.replacement[row]),
        coin(uniform(static_cast<uint32_t>(number), coins)) {}
};
constexpr int32_t kDrawsAtHand = 64;

struct RejectionBuffers : WalkBuffers {
  Draw draws[kDrawsAtHand];
  int32_t entry_tokens[kMaxEntries];  // -1 at padding, and outside the vocabulary
  int32_t entry_weights[kMaxEntries];  // 0 at padding
  int32_t first_entry[kMaxEntries];   // that has the same token
  float entry_logits[kMaxEntries];
  Interval residual[kMaxEntries];  // at first entries
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

// Followed by a barrier.
template <typename Logit>
__device__ void load_entries(const VerifyInputs& in, const DrawInputs& draws, const NodeDraws& here,
                             const int32_t* tree_tokens, const NoiseKey& coins, const Logit* row,
                             const uint8_t* allowed, RejectionBuffers& buffers) {
  const int64_t offset = int64_t{here.first_row} * draws.support;
  const int32_t* tokens = draws.token_ids + offset;
  for (int32_t i = kThreads - 1 - static_cast<int32_t>(threadIdx.x);
       i < min(here.last - here.first, kDrawsAtHand); i += kThreads) {
    buffers.draws[i] = Draw(draws, tree_tokens, here.first + i, i, coins);
  }
  for (int32_t e = threadIdx.x; e < here.num_entries; e += kThreads) {
    const int32_t token = tokens[e];
    const bool inside = token >= 0 && token < in.vocab;
    const bool may_be = inside && (allowed == nullptr || (allowed[token / 8] >> token % 8 & 1) != 0);
    buffers.entry_tokens[e] = inside ? token : -1;
    buffers.entry_weights[e] = token >= 0 ? draws.weights[offset + e] : 0;
    buffers.entry_logits[e] = may_be ? to_float(row[token]) : -INFINITY;
  }
}

// Eight lanes an entry.
__device__ inline void link_entries(int32_t num_entries, RejectionBuffers& buffers) {
  constexpr int32_t kLanes = 8;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % kLanes);
  for (int32_t base = 0; base < num_entries; base += kThreads / kLanes) {
    const int32_t e = base + static_cast<int32_t>(threadIdx.x / kLanes);
    int32_t first = e;
    if (e < num_entries) {
      const int32_t token = buffers.entry_tokens[e];
#pragma unroll 4
      for (int32_t other = lane; other < e; other += kLanes) {
        if (buffers.entry_tokens[other] == token) first = min(first, other);
      }
    }
#pragma unroll
    for (int32_t step = 1; step < kLanes; step *= 2) {
      first = min(first, __shfl_xor_sync(kAllLanes, first, step));
    }
    if (e < num_entries && lane == 0) buffers.first_entry[e] = first;
  }
}

constexpr int32_t kAllRejected = -1, kUndecided = -2;

// One warp tests the draws: the first accepted one's child, or kAllRejected. It leaves the residual
// after the rejections before it. A mass that is known roughly decides most; kUndecided if not.
__device__ inline int32_t test_draws(const DrawInputs& draws, const NodeDraws& here,
                                     const int32_t* tree_tokens, const NoiseKey& coins,
                                     Interval mass, RejectionBuffers& buffers) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x), count = here.last - here.first;
  const auto draw_at = [&](int32_t number) {
    if (number < kDrawsAtHand) return buffers.draws[number];
    return Draw(draws, tree_tokens, here.first + number, number, coins);
  };
  // For what is rounded otherwise than with the mass itself.
  const double slack = mass.low != mass.high ? 1e-12 * mass.high : 0.0;
  int32_t first_of_row = 0, row_before = -1;
  for (int32_t number = 0; number < count; ++number) {
    const Draw draw = draw_at(number);
    if (draw.row != row_before) first_of_row = number;
    row_before = draw.row;
    const int32_t first_entry = (draw.row - here.first_row) * draws.support;
    const int32_t* entries = buffers.first_entry + first_entry;
    // A column's weight, less what was drawn before without replacement.
    const auto weight_of = [&](int32_t column) {
      bool out = false;
      for (int32_t d = first_of_row; d < number && !draw.replaced; ++d) {
        out |= draw_at(d).token == buffers.entry_tokens[first_entry + column];
      }
      return out ? 0 : buffers.entry_weights[first_entry + column];
    };
    int32_t total = 0, token_weight = 0, token_entry = -1;
    for (int32_t column = lane; column < draws.support; column += 32) {
      const int32_t w = weight_of(column);
      total += w;
      if (buffers.entry_tokens[first_entry + column] == draw.token) {
        token_weight = w;
        token_entry = entries[column];
      }
    }
    total = max(__reduce_add_sync(kAllLanes, total), 1);
    token_weight = __reduce_max_sync(kAllLanes, token_weight);
    token_entry = __reduce_max_sync(kAllLanes, token_entry);
    const Interval available = token_entry >= 0 ? buffers.residual[token_entry] : exactly(0.0);
    const double threshold =
        static_cast<double>(draw.coin) * (static_cast<double>(token_weight) / total);
    if (threshold * mass.high < available.low) return draw.child;
    if (threshold * mass.low < available.high) return kUndecided;

    __syncwarp();
    Interval lost = exactly(0.0);
    for (int32_t column = lane; column < draws.support; column += 32) {
      Interval& residual = buffers.residual[entries[column]];
      if (residual.high == 0) continue;  // so no two lanes write the one that all padding shares
      const double share = static_cast<double>(weight_of(column)) / total;
      const Interval before = residual;
      lost.low += before.low - fmax(before.low - share * mass.low, 0.0);
      lost.high += before.high - fmax(before.high - share * mass.high, 0.0);
      residual.low = fmax(before.low - share * mass.high, 0.0);
      residual.high = fmax(before.high - share * mass.low, 0.0);
    }
#pragma unroll
    for (int32_t step = 16; step > 0; step /= 2) {
      lost.low += __shfl_xor_sync(kAllLanes, lost.low, step);
      lost.high += __shfl_xor_sync(kAllLanes, lost.high, step);
    }
    // Rounding alone can leave less than nothing.
    mass = {fmax(mass.low - lost.high - slack, 0.0), fmax(mass.high - lost.low + slack, 0.0)};
    __syncwarp();
  }
  return kAllRejected;
}

}  // namespace wanspec
