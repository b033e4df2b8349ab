// Who does what: the tiles of a whole ragged batch in two lines, cut into equal shares.
//
// A tree's rows are cut into blocks of 128. Two blocks of a tree that follow each other are a pair,
// which the two thread blocks of a cluster take together, tile by tile, so that each tile is read
// once for both. What is left is single: the last block of some trees. An item is a pair or single
// block and a KV head: a run of tiles of slots, and kItemCost more for what an item costs besides.
// One line has all pairs, by their number in the tree, then head, then tree, and equal shares go to
// the clusters; the other has what is single, and shares go to the thread blocks. An item that the
// end of a share cuts has several pieces.
#pragma once

#include <cstdint>

#include "hopper.cuh"

namespace wanspec::attention {

constexpr int32_t kCluster = 2;
constexpr int32_t kBlockRows = 128;
constexpr int32_t kItemCost = 1;   // tiles
constexpr int32_t kSplitCost = 5;  // tiles: what partials cost a share, written and merged

// What the kernels read of TreeAttentionInputs, and what follows from it.
struct Problem {
  void* out;
  const int32_t* page_table;
  const int32_t* context_lens;
  const int32_t* indptr;
  const int64_t* ancestor_bits;
  int64_t page_table_stride;
  int32_t batch, heads, kv_heads, group, words;
  int32_t nodes_a_block, nodes_a_box;
  int32_t page_shift, slots_a_box;         // a page has 1 << page_shift slots
  int32_t k_head_columns, v_head_columns;  // from head to head, in 64 columns
  bool may_have_pairs;
  float scale_log2;
};

enum Line : int32_t { kPairs, kSingles, kLines };

// A piece of an item, as one thread block sees it.
struct alignas(16) Piece {
  int32_t first_node, nodes;       // of the whole batch; of this block of rows
  int32_t kv_head, tree;
  int32_t context_len, num_slots;  // num_slots counts the whole tree's
  int32_t begin, end;              // tiles; end == begin only behind the last piece
  int32_t line;
  int32_t partial;                 // where its result goes: -1 to `out`, else to this partial
  int32_t num_pieces;              // of the item, if this one is the first of several; else 0
};

// Each thread block has room for four partials: of the item that its share of a line finds begun,
// and of the one that it leaves.
__device__ inline int32_t partial_of_begun(int32_t block, int32_t line) {
  return 2 * kLines * block + 2 * line;
}
__device__ inline int32_t partial_of_left(int32_t block, int32_t line) {
  return partial_of_begun(block, line) + 1;
}
// From the block that has one piece of an item to that which has the next.
__device__ inline int32_t blocks_a_share(int32_t line) { return line == kPairs ? kCluster : 1; }

// A thread block's pieces of one line, in order. A warp walks together and all lanes know all.
template <int kTile>
class WorkSplit {
 public:
  __device__ WorkSplit(const Problem& problem, int32_t line) : problem_(problem), line_(line) {
    const int32_t lane = threadIdx.x % 32;
    if (lane < problem.batch) tree_of_lane_ = tree_at(lane);
    int32_t num_items = 0, largest = 0;
    total_ = 0;
    for (int32_t b = lane; b < problem.batch; b += 32) {
      const Tree tree = tree_for(b);
      for (int32_t level = 0;; ++level) {
        const int32_t cost = cost_of(tree, level);
        if (cost == 0) break;
        total_ += cost;
        largest = max(largest, cost);
        ++num_items;
      }
    }
    total_ = __reduce_add_sync(kAllLanes, total_) * problem.kv_heads;
    num_items = __reduce_add_sync(kAllLanes, num_items) * problem.kv_heads;
    largest = __reduce_max_sync(kAllLanes, largest);

    const int32_t takers = static_cast<int32_t>(gridDim.x) / blocks_a_share(line);
    me_ = static_cast<int32_t>(blockIdx.x) / blocks_a_share(line);
    // No share is so small that a piece could be empty.
    shares_ = max(1, min(takers, total_ / (kItemCost + 1)));
    share_ = total_ / shares_;
    remainder_ = total_ % shares_;
    const int32_t items_each = (num_items + takers - 1) / takers;
    if (total_ == num_items * largest && items_each * largest <= share_ + kSplitCost) {
      // All alike, and so many that whole ones are as fast.
      share_ = items_each * largest;
      remainder_ = 0;
    }
    begin_ = bound(me_);
    end_ = bound(me_ + 1);
    if (begin_ < end_) {
      find_first(lane);
    } else {
      start_ = end_;
    }
  }

  // The next piece; false if there is none.
  __device__ bool next(Piece& piece) {
    for (; start_ < end_; advance()) {
      if (cost_of(tree_, level_) == 0) continue;
      const int32_t tiles = cost_of(tree_, level_) - kItemCost;
      piece.begin = cut(begin_, tiles);
      piece.end = cut(end_, tiles);
      if (piece.begin >= piece.end) continue;
      const int32_t before = row_block() * problem_.nodes_a_block;
      piece.first_node = tree_.first + before;
      piece.nodes = min(problem_.nodes_a_block, tree_.nodes - before);
      piece.kv_head = head_;
      piece.tree = b_;
      piece.context_len = tree_.context_len;
      piece.num_slots = tree_.context_len + tree_.nodes;
      piece.line = line_;
      piece.partial = -1;
      piece.num_pieces = 0;
      const int32_t block = static_cast<int32_t>(blockIdx.x);
      if (piece.begin > 0) {
        piece.partial = partial_of_begun(block, line_);
      } else if (piece.end < tiles) {
        piece.partial = partial_of_left(block, line_);
        int32_t last = me_ + 1;
        while (cut(bound(last + 1), tiles) < tiles) ++last;
        piece.num_pieces = last - me_ + 1;
      }
      advance();
      return true;
    }
    return false;
  }

 private:
  struct Tree {
    int32_t first, nodes, context_len;
  };

  __device__ Tree tree_at(int32_t b) const {
    const int32_t first = problem_.indptr[b];
    return {first, problem_.indptr[b + 1] - first, problem_.context_lens[b]};
  }
  // The same for a tree that is this lane's when a warp goes through them 32 at a time.
  __device__ Tree tree_for(int32_t b) const { return b < 32 ? tree_of_lane_ : tree_at(b); }

  // Of the tree's item of the line at a level (the pair's number, or 0), for one head; 0 if it has
  // none.
  __device__ int32_t cost_of(const Tree& tree, int32_t level) const {
    const int32_t nodes_a_pair = kCluster * problem_.nodes_a_block;
    int32_t nodes = tree.nodes - level * nodes_a_pair;
    if (line_ == kPairs) {
      if (nodes <= problem_.nodes_a_block) return 0;
      // No node sees a later one: slots behind the pair's last node are left out.
      nodes = min(tree.nodes, (level + 1) * nodes_a_pair);
    } else {
      if (level > 0) return 0;
      const int32_t rest = tree.nodes % nodes_a_pair;
      if (rest == 0 || rest > problem_.nodes_a_block) return 0;
      nodes = tree.nodes;
    }
    return (tree.context_len + nodes + kTile - 1) / kTile + kItemCost;
  }
  // This thread block's block of the tree's rows.
  __device__ int32_t row_block() const {
    if (line_ == kPairs) return kCluster * level_ + static_cast<int32_t>(blockIdx.x) % kCluster;
    return (tree_.nodes - 1) / problem_.nodes_a_block;
  }

  // Where a share begins. Shares a simple fraction of the line apart are at the same place of pairs
  // of the same trees: what one reads from memory the other finds in L2.
  __device__ int32_t bound(int32_t share) const {
    return min(total_, share * share_ + share * remainder_ / shares_);
  }
  // The tile of the item at start_ where a bound cuts it. Pieces that are small beside a share are
  // left to a neighbour: a partial costs more than they do.
  __device__ int32_t cut(int32_t bound, int32_t tiles) const {
    const int32_t tile = bound - start_ - kItemCost, small = share_ / 32;
    if (tile <= small && tile < tiles - tile) return 0;
    return tile >= tiles - small ? tiles : tile;
  }

  __device__ void find_first(int32_t lane) {
    int32_t of_head;  // all trees' items of the level and one head
    for (level_ = 0;; ++level_) {
      of_head = 0;
      for (int32_t b = lane; b < problem_.batch; b += 32) of_head += cost_of(tree_for(b), level_);
      of_head = __reduce_add_sync(kAllLanes, of_head);
      if (begin_ < start_ + of_head * problem_.kv_heads) break;
      start_ += of_head * problem_.kv_heads;
    }
    head_ = (begin_ - start_) / of_head;
    start_ += head_ * of_head;
    for (int32_t b = 0;; b += 32) {
      const int32_t mine = b + lane < problem_.batch ? cost_of(tree_for(b + lane), level_) : 0;
      int32_t after = mine;
#pragma unroll
      for (int32_t step = 1; step < 32; step *= 2) {
        const int32_t below = __shfl_up_sync(kAllLanes, after, step);
        if (lane >= step) after += below;
      }
      const unsigned beyond = __ballot_sync(kAllLanes, begin_ < start_ + after);
      if (beyond != 0) {
        const int32_t found = __ffs(static_cast<int32_t>(beyond)) - 1;
        b_ = b + found;
        start_ += __shfl_sync(kAllLanes, after - mine, found);
        tree_ = tree_at(b_);
        return;
      }
      start_ += __shfl_sync(kAllLanes, after, 31);
    }
  }

  // To the next item of the line, which may be none.
  __device__ void advance() {
    start_ += cost_of(tree_, level_);
    if (++b_ == problem_.batch) {
      b_ = 0;
      if (++head_ == problem_.kv_heads) {
        head_ = 0;
        ++level_;
      }
    }
    tree_ = tree_at(b_);
  }

  const Problem& problem_;
  const int32_t line_;
  int32_t me_, shares_, share_, remainder_, total_;
  int32_t begin_, end_;  // of this share
  int32_t start_ = 0;    // of the item at (level_, head_, b_)
  int32_t level_, head_, b_;
  Tree tree_;
  Tree tree_of_lane_;  // of the first 32: one trip to memory less for small batches
};

}  // namespace wanspec::attention
