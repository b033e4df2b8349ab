// The two warpgroups that multiply.
//
// A block of rows has 128 of (node, head of the group), 64 a warpgroup, and both read each tile. Of
// a block of up to 64 rows, both take all, and every other tile: the second's result is added in
// the end. Tiles go from the last, where the tree is, to the first, so masks come before the long
// plain part.
#pragma once

#include <cstdint>
#include <type_traits>

#include "hopper.cuh"
#include "partials.cuh"
#include "pipeline.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace wanspec::attention {

// Numbers of the barriers among warpgroups, from 1: 0 is __syncthreads.
enum NamedBarrier : int32_t { kTurn = 1, kTail = 3, kExchange = 5 };

// One warpgroup's side of the multiplications.
template <typename T, int kDim>
class Multiplier {
 public:
  using S = Shape<kDim>;

  __device__ __forceinline__ Multiplier(Shared<kDim>& shared, const Problem& problem,
                                        const Workspace& workspace)
      : shared_(shared), problem_(problem), workspace_(workspace),
        group_(__shfl_sync(kAllLanes, static_cast<int32_t>(threadIdx.x) / kGroupThreads - 1, 0)) {}

  __device__ __forceinline__ void run() {
    if (group_ == 1) arrive_threads(kTurn, kMultiplyThreads);
    for (uint32_t count = 0;; ++count) {
      shared_.query_full.wait(count & 1);
      const Piece piece = shared_.piece;
      const int32_t tiles = __shfl_sync(kAllLanes, piece.end - piece.begin, 0);
      if (tiles == 0) return;
      alone_ = __shfl_sync(kAllLanes, piece.nodes * problem_.group <= kGroupRows, 0);
      paired_ = __shfl_sync(kAllLanes, piece.line == kPairs, 0);
      multiply(piece, tiles);
      ordinal_ += tiles;
    }
  }

 private:
  // The stage of the ring that a tile has, numbered over all pieces.
  struct Place {
    int32_t stage;
    uint32_t parity;
    __device__ explicit Place(uint32_t ordinal)
        : stage(ordinal % S::kStages), parity(ordinal / S::kStages & 1) {}
  };

  __device__ __forceinline__ void multiply(const Piece& piece, int32_t tiles) {
    const int32_t rows_before = alone_ ? 0 : group_ * kGroupRows;
    const uint64_t query = describe(shared_.query + rows_before * kAtomColumns * 2, 0, kAtom);
    const int32_t step = alone_ ? kGroups : 1;
    const int32_t first_masked = piece.context_len / S::kTile;
    RowStats stats;
    float results[kDim / 2];
#pragma unroll
    for (float& x : results) x = 0;

    const int32_t first = alone_ ? group_ : 0;
    if (first < tiles) {
      float scores[S::kTile / 2], decay[2];
      uint32_t weights[S::kTile / 4];
      Place place(ordinal_ + first);
      int32_t tile = piece.end - 1 - first;
      wait_for_keys(first);
      begin_products();
      start_scores(scores, query, place.stage);
      commit_products();
      wait_for_products<0>(scores);
      release(shared_.keys_empty[place.stage]);
      if (tile >= first_masked) mask_tile(scores, piece, tile);
      weigh(scores, stats, problem_.scale_log2, decay);
      pack_weights<T>(scores, weights);
      // Weighs the next tile's scores while this tile's values are multiplied.
      const auto advance_tile = [&](auto is_masked) {
        wait_for_values(piece, tile);
        tile -= step;
        const int32_t next = piece.end - 1 - tile;
        const Place next_place(ordinal_ + next);
        wait_for_keys(next);
        if (!alone_) sync_threads(kTurn + group_, kMultiplyThreads);
        begin_products();
        start_scores(scores, query, next_place.stage);
        commit_products();
        start_results(results, weights, place.stage);
        commit_products();
        if (!alone_) arrive_threads(kTurn + 1 - group_, kMultiplyThreads);
        wait_for_products<1>(scores);
        release(shared_.keys_empty[next_place.stage]);
        if constexpr (decltype(is_masked)::value) mask_tile(scores, piece, tile);
        weigh(scores, stats, problem_.scale_log2, decay);
        weigh_before_waiting(stats);
        wait_for_products<0>(results);
        release(shared_.values_empty[place.stage]);
        scale_rows(results, decay);
        pack_weights<T>(scores, weights);
        place = next_place;
      };
      // Two loops: a branch while products are running makes the compiler wait for them.
      while (tile - step >= max(first_masked, piece.begin)) advance_tile(std::true_type{});
      while (tile - step >= piece.begin) advance_tile(std::false_type{});
      if (!alone_) release_query();
      wait_for_values(piece, tile);
      begin_products();
      start_results(results, weights, place.stage);
      commit_products();
      wait_for_products<0>(results);
      release(shared_.values_empty[place.stage]);
    }
    if (alone_ && (tiles - 1) % kGroups != group_) {
      pass(shared_.keys_full, shared_.keys_empty, tiles - 1);
      pass(shared_.values_full, shared_.values_empty, tiles - 1);
    }

    stats.sum[0] = sum_of_quad(stats.sum[0]);
    stats.sum[1] = sum_of_quad(stats.sum[1]);
    if (alone_) {
      exchange(results, stats);
      release_query();
      if (group_ == 1) return;
    }
    if (piece.partial < 0) {
      store_rows<T, kDim>(problem_, piece, rows_before + first_row(), results, stats);
    } else {
      store_partial<kDim>(workspace_, piece.partial, alone_ ? 0 : group_, results, stats,
                          problem_.scale_log2);
    }
  }

  __device__ __forceinline__ void start_scores(float (&scores)[S::kTile / 2], uint64_t query,
                                               int32_t stage) {
    const uint64_t keys = describe(shared_.keys[stage], 0, S::kChunks * kAtom);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // 16 columns: 32 bytes within the atom
        multiply_rows<T>(scores, advance(query, c * kBlockRows * kAtomColumns * 2 + 32 * k),
                         advance(keys, c * kAtom + 32 * k), c + k > 0);
      }
    }
  }

  __device__ __forceinline__ void start_results(float (&results)[kDim / 2],
                                                const uint32_t (&weights)[S::kTile / 4], int32_t stage) {
    const uint64_t values = describe(shared_.values[stage], kAtom, S::kChunks * kAtom);
#pragma unroll
    for (int k = 0; k < S::kTile / 16; ++k) {
      const uint64_t slots = advance(values, 2 * k * S::kChunks * kAtom);
      if constexpr (kDim <= 128) {
        multiply_columns<T, 0, kDim / 2>(results, weights + 4 * k, slots);
      } else {
        multiply_columns<T, 0, 64>(results, weights + 4 * k, slots);
        multiply_columns<T, 64, 64>(results, weights + 4 * k, advance(slots, 2 * kAtom));
      }
    }
  }

  __device__ __forceinline__ void mask_tile(float (&scores)[S::kTile / 2], const Piece& piece,
                                            int32_t tile) {
    const uint32_t* bits[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t row = (alone_ ? 0 : group_ * kGroupRows) + first_row() + 8 * h;
      // Rows behind the last node are computed and left: they read the last node's.
      const int64_t node = piece.first_node + min(row / problem_.group, piece.nodes - 1);
      bits[h] = reinterpret_cast<const uint32_t*>(problem_.ancestor_bits + node * problem_.words);
    }
    mask(scores, bits, 2 * problem_.words, tile * S::kTile - piece.context_len);
  }

  // A parity tells a stage's use only from the one before: a warpgroup must see every tile come and
  // let it go, those of the other warpgroup too.
  __device__ __forceinline__ void pass(Barrier* full, Barrier* empty, int32_t t) {
    const Place place(ordinal_ + t);
    full[place.stage].wait(place.parity);
    release(empty[place.stage]);
  }

  // For the piece's t-th tile, counted from its last.
  __device__ __forceinline__ void wait_for_keys(int32_t t) {
    if (alone_ && t > 0) pass(shared_.keys_full, shared_.keys_empty, t - 1);
    const Place place(ordinal_ + t);
    shared_.keys_full[place.stage].wait(place.parity);
  }

  // Slots of a page behind the last in use may hold anything, and 0 * NaN is no 0.
  __device__ __forceinline__ void wait_for_values(const Piece& piece, int32_t tile) {
    const int32_t t = piece.end - 1 - tile;
    if (alone_ && t > 0) pass(shared_.values_full, shared_.values_empty, t - 1);
    const Place place(ordinal_ + t);
    shared_.values_full[place.stage].wait(place.parity);
    const int32_t first = piece.num_slots - tile * S::kTile;
    if (first >= S::kTile) return;
    const int32_t threads = alone_ ? kGroupThreads : kMultiplyThreads;
    const int32_t thread = threadIdx.x % threads;  // of the second group's and the first's if not alone
    const int32_t vectors = (S::kTile - first) * (kDim / 8);
    for (int32_t i = thread; i < vectors; i += threads) {
      const int32_t slot = first + i / (kDim / 8), chunk = i % (kDim / 8) / 8, vector = i % 8;
      char* row = shared_.values[place.stage] + (slot / 8 * S::kChunks + chunk) * kAtom + slot % 8 * 128;
      *reinterpret_cast<uint4*>(row + 16 * vector) = make_uint4(0, 0, 0, 0);
    }
    fence_async();
    sync_threads(kTail + (alone_ ? group_ : 0), threads);
  }

  // Adds the second warpgroup's results to the first's.
  __device__ __forceinline__ void exchange(float (&results)[kDim / 2], RowStats& stats) {
    float4* products = reinterpret_cast<float4*>(shared_.query) + threadIdx.x % kGroupThreads;
    float2* rows = shared_.exchanged_stats + first_row();
    sync_threads(kExchange, kMultiplyThreads);  // nobody reads the queries any more
    if (group_ == 1) {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const float* d = results + 4 * i;
        products[i * kGroupThreads] = make_float4(d[0], d[1], d[2], d[3]);
      }
      if (threadIdx.x % 4 == 0) {
        rows[0] = make_float2(stats.max[0], stats.sum[0]);
        rows[8] = make_float2(stats.max[1], stats.sum[1]);
      }
      arrive_threads(kExchange + 1, kMultiplyThreads);
      return;
    }
    sync_threads(kExchange + 1, kMultiplyThreads);
    float mine[2], theirs[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 other = rows[8 * h];
      const float max = fmaxf(stats.max[h], other.x);
      const float base = exponent_base(max, problem_.scale_log2);
      mine[h] = exp2_fast(stats.max[h] * problem_.scale_log2 - base);
      theirs[h] = exp2_fast(other.x * problem_.scale_log2 - base);
      stats.max[h] = max;
      stats.sum[h] = stats.sum[h] * mine[h] + other.y * theirs[h];
    }
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const float4 d = products[i * kGroupThreads];
      results[4 * i] = results[4 * i] * mine[0] + d.x * theirs[0];
      results[4 * i + 1] = results[4 * i + 1] * mine[0] + d.y * theirs[0];
      results[4 * i + 2] = results[4 * i + 2] * mine[1] + d.z * theirs[1];
      results[4 * i + 3] = results[4 * i + 3] * mine[1] + d.w * theirs[1];
    }
  }

  // The assembler would sink the weights' arithmetic behind the wait; not past a branch that needs
  // it.
  static __device__ __forceinline__ void weigh_before_waiting(const RowStats& stats) {
    if (stats.sum[0] + stats.sum[1] == -1) asm volatile("nanosleep.u32 1;");
  }

  __device__ __forceinline__ void release(Barrier& empty) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane == 0) empty.arrive(paired_ ? 1 : kCluster);
    if (lane == 1 && paired_) empty.arrive_at(other_block_, 1);
  }
  __device__ __forceinline__ void release_query() {
    fence_async();
    shared_.query_empty.arrive();
  }

  Shared<kDim>& shared_;
  const Problem& problem_;
  const Workspace& workspace_;
  const int32_t group_;
  const uint32_t other_block_ = rank_in_cluster() ^ 1;
  bool alone_ = false;    // this group has its tiles to itself
  bool paired_ = false;   // tiles are shared with the other block of the cluster
  uint32_t ordinal_ = 0;  // of the piece's first tile
};

}  // namespace wanspec::attention
