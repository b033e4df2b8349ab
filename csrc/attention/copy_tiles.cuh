// The warps that copy: pieces of work with their queries, tiles of K, tiles of V.
#pragma once

#include <cstdint>

#include "hopper.cuh"
#include "pipeline.cuh"
#include "work_split.cuh"

namespace wanspec::attention {

// The pieces and their queries.
template <int kDim>
__device__ void copy_queries(Shared<kDim>& shared, const CUtensorMap& map, const Problem& problem,
                             const Workspace& workspace) {
  const bool leads = threadIdx.x % 32 == 0;
  uint32_t parity = 1;
  Piece piece;
  for (int32_t line = problem.may_have_pairs ? kPairs : kSingles; line < kLines; ++line) {
    MergeTask& task = workspace.tasks[line * gridDim.x + blockIdx.x];
    if (leads) task.num_pieces = 0;
    WorkSplit<Shape<kDim>::kTile> split(problem, line);
    for (; split.next(piece); parity ^= 1) {
      shared.query_empty.wait(parity);
      if (!leads) continue;
      if (piece.num_pieces > 0) {
        task = {piece.num_pieces, piece.first_node, piece.nodes * problem.group, piece.kv_head};
      }
      shared.piece = piece;
      constexpr int32_t kRowBytes = kAtomColumns * 2;
      shared.query_full.arrive_expecting(problem.nodes_a_box * problem.group * kRowBytes *
                                         Shape<kDim>::kChunks);
      for (int32_t c = 0; c < Shape<kDim>::kChunks; ++c) {
        copy_box(shared.query + c * kBlockRows * kRowBytes, &map, &shared.query_full, c * kAtomColumns,
                 piece.kv_head * problem.group, piece.first_node);
      }
    }
  }
  shared.query_empty.wait(parity);
  if (leads) {
    shared.piece.begin = shared.piece.end = 0;
    shared.query_full.arrive();
  }
}

// Keys or values of all pieces' tiles, in the order in which they are multiplied. Each block of a
// cluster copies half of a pair's tile to both.
template <int kDim>
__device__ void copy_tiles(char (*stages)[Shape<kDim>::kTileBytes], Barrier* full, Barrier* empty,
                           const CUtensorMap& map, int32_t head_columns, const Problem& problem) {
  using S = Shape<kDim>;
  const int32_t lane = threadIdx.x % 32, rank = static_cast<int32_t>(rank_in_cluster());
  const int32_t boxes = S::kTile / problem.slots_a_box;
  Piece piece;
  uint32_t stage = 0, parity = 1;
  for (int32_t line = problem.may_have_pairs ? kPairs : kSingles; line < kLines; ++line) {
    WorkSplit<S::kTile> split(problem, line);
    while (split.next(piece)) {
      const int32_t* pages = problem.page_table + piece.tree * problem.page_table_stride;
      // Lane i knows the page of box i. What lies behind the last slot is no page, and copied as
      // zeros.
      const auto page_of_lane = [&](int32_t tile) {
        const int32_t slot = tile * S::kTile + lane * problem.slots_a_box;
        const bool used = lane < boxes && tile >= piece.begin && slot < piece.num_slots;
        return used ? pages[slot >> problem.page_shift] : -1;
      };
      int32_t next_page = page_of_lane(piece.end - 1);
      for (int32_t tile = piece.end - 1; tile >= piece.begin; --tile) {
        const int32_t page = next_page;
        next_page = page_of_lane(tile - 1);
        empty[stage].wait(parity);
        if (lane == 0) full[stage].arrive_expecting(S::kTileBytes);
        const int32_t step = line == kPairs ? kCluster : 1;
        for (int32_t i = line == kPairs ? rank : 0; i < boxes; i += step) {
          const int32_t of_box = __shfl_sync(kAllLanes, page, i);
          if (lane != 0) continue;
          char* to = stages[stage] + i * problem.slots_a_box * kDim * 2;
          const int32_t column = piece.kv_head * head_columns;
          const int32_t slot = tile * S::kTile + i * problem.slots_a_box;
          const int32_t eight = (slot & ((1 << problem.page_shift) - 1)) / 8;
          if (line == kPairs) {
            copy_box_to((1 << kCluster) - 1, to, &map, &full[stage], 0, 0, column, eight, of_box);
          } else {
            copy_box(to, &map, &full[stage], 0, 0, column, eight, of_box);
          }
        }
        if (++stage == S::kStages) stage = 0, parity ^= 1;
      }
    }
  }
}

}  // namespace wanspec::attention
