// Run the cluster kernel on the CPU: one thread a GPU thread, barriers for blocks, warps and the cluster.
#include <array>
#include <barrier>
#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#define ON_HOST
#define FUNCTION inline
#define INFINITE HUGE_VALF
#define KERNEL static void
#define SHARED(type, name) type& name = *static_cast<type*>(shared_memory(sizeof(type)))

struct Warp {
    std::barrier<> barrier{32};
    std::array<double, 32> values{};
};
struct Block {
    explicit Block(int num_threads) : barrier(num_threads), warps(num_threads / 32) {}
    std::barrier<> barrier;
    std::vector<Warp> warps;
    std::vector<std::vector<char>> shared;
};
struct Cluster {
    Cluster(int num_blocks, int num_threads) : barrier(num_blocks * num_threads) {
        for (int i = 0; i < num_blocks; i++) blocks.push_back(std::make_unique<Block>(num_threads));
    }
    std::barrier<> barrier;
    std::vector<std::unique_ptr<Block>> blocks;
};
struct Place {
    Cluster* cluster;
    int image, rank, thread;
    size_t num_shared = 0;
};
inline thread_local Place here;

inline Block& own_block() { return *here.cluster->blocks[here.rank]; }
inline Warp& own_warp() { return own_block().warps[here.thread / 32]; }
inline int thread_rank() { return here.thread; }
inline int image_index() { return here.image; }
inline int block_rank() { return here.rank; }
inline void block_sync() { own_block().barrier.arrive_and_wait(); }
inline void cluster_sync() { here.cluster->barrier.arrive_and_wait(); }

// Every thread of a block asks for its shared variables in the same order; the first one makes them.
inline void* shared_memory(size_t size) {
    const size_t index = here.num_shared++;
    if (here.thread == 0) own_block().shared.emplace_back(size);
    block_sync();
    void* memory = own_block().shared[index].data();
    block_sync();
    return memory;
}
template <typename T> T& share_of(T&, int rank) {
    return *reinterpret_cast<T*>(here.cluster->blocks[rank]->shared[0].data());
}
template <typename T> T shuffle_xor(T value, int lanes) {
    Warp& warp = own_warp();
    warp.values[here.thread % 32] = value;
    warp.barrier.arrive_and_wait();
    const T other = static_cast<T>(warp.values[here.thread % 32 ^ lanes]);
    warp.barrier.arrive_and_wait();
    return other;
}
inline unsigned lanes_where(bool predicate) {
    Warp& warp = own_warp();
    warp.values[here.thread % 32] = predicate;
    warp.barrier.arrive_and_wait();
    unsigned bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= unsigned(warp.values[lane] != 0) << lane;
    warp.barrier.arrive_and_wait();
    return bits;
}
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
using std::fabs;

template <typename Kernel> void run_cluster(int num_images, int num_blocks, int num_threads, Kernel kernel) {
    for (int image = 0; image < num_images; image++) {
        Cluster cluster(num_blocks, num_threads);
        std::vector<std::thread> threads;
        for (int rank = 0; rank < num_blocks; rank++)
            for (int thread = 0; thread < num_threads; thread++)
                threads.emplace_back([&, rank, thread] {
                    here = {&cluster, image, rank, thread};
                    kernel();
                });
        for (std::thread& thread : threads) thread.join();
    }
}
