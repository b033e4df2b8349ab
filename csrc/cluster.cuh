// A thread-block cluster that decides together: reductions over a block, and over its cluster.
//
// Blocks tell each other what they found by asynchronous stores into shared memory that complete on
// the receiver's mbarrier: no fence, no cluster barrier, one way and done. Nobody leaves before it
// has received what it was sent, so nothing is ever written to a block that is gone.
#pragma once

#include <cstdint>

namespace wanspec {

constexpr int32_t kThreads = 512;  // of a block
constexpr int32_t kWarps = kThreads / 32;
constexpr int32_t kMaxCluster = 16;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same place in the shared memory of another block of the cluster.
__device__ inline uint32_t address_in_block(const void* mine, int32_t block) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(mine)), "r"(block));
  return address;
}

// An mbarrier that one thread of this block arms with the bytes to come; `phase` is its use's
// number, from 0.
class Mailbox {
 public:
  __device__ static void init(uint64_t* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  }
  __device__ static void expect(uint64_t* barrier, int32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
  }
  __device__ static void wait(uint64_t* barrier, uint32_t phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(phase & 1)
        : "memory");
  }
  // Stores 4, 8 or 16 bytes at `mine` of another block, whose `barrier` counts them.
  __device__ static void send(const void* mine, uint64_t* barrier, int32_t block, uint32_t a) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            address_in_block(mine, block)),
        "r"(a), "r"(address_in_block(barrier, block))
        : "memory");
  }
  __device__ static void send(const void* mine, uint64_t* barrier, int32_t block, uint64_t a) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
            address_in_block(mine, block)),
        "l"(a), "r"(address_in_block(barrier, block))
        : "memory");
  }
  __device__ static void send(const void* mine, uint64_t* barrier, int32_t block, uint64_t a,
                              uint64_t b) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [%0], {%1, %2}, [%3];" ::"r"(
            address_in_block(mine, block)),
        "l"(a), "l"(b), "r"(address_in_block(barrier, block))
        : "memory");
  }
};

struct Max {
  static __device__ uint64_t combine(uint64_t a, uint64_t b) { return a > b ? a : b; }
  static __device__ uint64_t over_warp(uint64_t value) {
    const uint32_t high = static_cast<uint32_t>(value >> 32);
    const uint32_t largest = __reduce_max_sync(kAllLanes, high);
    const uint32_t low = high == largest ? static_cast<uint32_t>(value) : 0u;
    return uint64_t{largest} << 32 | __reduce_max_sync(kAllLanes, low);
  }
};

// Two numbers of 32 bits, each for itself.
struct MaxOfHalves {
  static __device__ uint64_t over_warp(uint64_t value) {
    const uint32_t high = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(value >> 32));
    return uint64_t{high} << 32 | __reduce_max_sync(kAllLanes, static_cast<uint32_t>(value));
  }
};

struct Sum {
  static __device__ uint64_t over_warp(uint64_t value) {
    // In three parts whose sums over a warp fit into 32 bits.
    constexpr uint32_t kBits = 22, kMask = (1u << kBits) - 1;
    const uint32_t low = static_cast<uint32_t>(value) & kMask;
    const uint32_t middle = static_cast<uint32_t>(value >> kBits) & kMask;
    const uint32_t high = static_cast<uint32_t>(value >> 2 * kBits);
    return uint64_t{__reduce_add_sync(kAllLanes, low)} +
           (uint64_t{__reduce_add_sync(kAllLanes, middle)} << kBits) +
           (uint64_t{__reduce_add_sync(kAllLanes, high)} << 2 * kBits);
  }
};

// Of an over_block or over_cluster that needs but one result.
struct Nothing {
  static __device__ uint64_t over_warp(uint64_t) { return 0; }
};

struct alignas(16) Pair {
  uint64_t a, b;
};

struct ClusterBuffers {
  // In turn, so that what is read late is not yet overwritten.
  Pair of_warps[2][kWarps];
  Pair of_blocks[2][kMaxCluster];
  uint64_t arrived[2];
};

class Cluster {
 public:
  const int32_t rank, size;

  // Followed by wait_for_start(), before anything is sent.
  __device__ explicit Cluster(ClusterBuffers& buffers)
      : rank(special_register_rank()), size(special_register_size()), buffers_(buffers) {}

  // Other blocks may send once this block's mailboxes have been initialised, as they are by now.
  __device__ void announce() const {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }
  __device__ void wait_for_start() const {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  // Every thread of the block gets the result; also a barrier of the block.
  template <typename OpA, typename OpB = Nothing>
  __device__ Pair over_block(uint64_t a, uint64_t b = 0) {
    Pair(&slots)[kWarps] = buffers_.of_warps[block_uses_++ & 1];
    a = OpA::over_warp(a);
    b = OpB::over_warp(b);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = {a, b};
    __syncthreads();
    return over_slots<OpA, OpB>(slots, kWarps);
  }

  // Every thread of the cluster gets the result; also a barrier of the block.
  template <typename OpA, typename OpB = Nothing>
  __device__ Pair over_cluster(uint64_t a, uint64_t b = 0) {
    const Pair mine = over_block<OpA, OpB>(a, b);
    if (size == 1) return mine;
    return over_slots<OpA, OpB>(exchange(mine), size);
  }

  // Every block's numbers, in the order of their ranks: valid until the next but one use.
  __device__ const Pair* gather(const Pair& mine) { return exchange(mine); }

 private:
  ClusterBuffers& buffers_;
  uint32_t block_uses_ = 0, cluster_uses_ = 0;

  __device__ const Pair* exchange(const Pair& mine) {
    const uint32_t turn = cluster_uses_ & 1, phase = cluster_uses_ / 2;
    ++cluster_uses_;
    Pair(&slots)[kMaxCluster] = buffers_.of_blocks[turn];
    uint64_t* arrived = &buffers_.arrived[turn];
    if (threadIdx.x == 0) Mailbox::expect(arrived, size * static_cast<int32_t>(sizeof(Pair)));
    if (threadIdx.x < size) {
      Mailbox::send(&slots[rank], arrived, static_cast<int32_t>(threadIdx.x), mine.a, mine.b);
    }
    Mailbox::wait(arrived, phase);
    return slots;
  }

  template <typename OpA, typename OpB>
  static __device__ Pair over_slots(const Pair* slots, int32_t count) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const Pair mine = lane < count ? slots[lane] : Pair{0, 0};  // 0 changes no max, no sum
    return {OpA::over_warp(mine.a), OpB::over_warp(mine.b)};
  }

  static __device__ int32_t special_register_rank() {
    uint32_t value;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
    return static_cast<int32_t>(value);
  }
  static __device__ int32_t special_register_size() {
    uint32_t value;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(value));
    return static_cast<int32_t>(value);
  }
};

}  // namespace wanspec
