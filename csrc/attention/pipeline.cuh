// What the warps of a thread block share: the queries of a block of rows, and rings of tiles of K
// and V.
#pragma once

#include <cstdint>

#include "hopper.cuh"
#include "partials.cuh"
#include "wgmma.cuh"
#include "work_split.cuh"

namespace wanspec::attention {

constexpr int32_t kThreads = (1 + kGroups) * kGroupThreads;
constexpr int32_t kMultiplyThreads = kGroups * kGroupThreads;

template <int kDim>
struct Shape {
  static constexpr int32_t kTile = kDim == 256 ? 64 : 128;  // slots
  // As many as shared memory holds of K and of V beside the queries.
  static constexpr int32_t kStages = kDim == 64 ? 6 : kDim == 128 ? 3 : 2;
  static constexpr int32_t kChunks = kDim / kAtomColumns;
  static constexpr int32_t kTileBytes = kTile * kDim * 2;
  static constexpr int32_t kQueryBytes = kBlockRows * kDim * 2;
};

template <int kDim>
struct alignas(1024) Shared {
  using S = Shape<kDim>;
  char query[S::kQueryBytes];             // [64 columns each][rows]; then the second group's products
  char keys[S::kStages][S::kTileBytes];   // [8 slots each][64 columns each] atoms
  char values[S::kStages][S::kTileBytes];
  float2 exchanged_stats[kGroupRows];
  Piece piece;
  Barrier query_full, query_empty;
  Barrier keys_full[S::kStages], keys_empty[S::kStages];
  Barrier values_full[S::kStages], values_empty[S::kStages];
};

// Arrivals that free a stage: one from each warp that multiplies in the cluster. Where the blocks
// of the cluster have tiles of their own, a warp arrives for one of the other block too.
constexpr int32_t kReleases = kCluster * kMultiplyThreads / 32;

}  // namespace wanspec::attention
