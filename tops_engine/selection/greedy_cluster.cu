// The greedy loop with the tokens of an image divided over the blocks of one thread block cluster (compute capability
// 9.0 or newer). It computes what greedy_kernel.py computes. greedy_cluster.py compiles it and sets BLOCKS, THREADS,
// PER_THREAD, HAS_RELEVANCE, HAS_DIVERSITY, HAS_COVERAGE and MINMAX. A test compiles it for the host (ON_HOST) and
// provides the functions of the next section.

constexpr int WARPS = THREADS / 32;

// What the blocks of a cluster read of each other. A slot is written again only after another cluster_sync(), so that
// no block overwrites what another still reads.
struct Share {
    float warp[6][WARPS];
    double warp_total[WARPS];
    int warp_count[WARPS];
    float sums[6];
    float top;
    int first;
    int left;
    double relevance;
    int num_changed;
    int changed[THREADS * PER_THREAD];
    float low[THREADS * PER_THREAD];
    float high[THREADS * PER_THREAD];
};

// Changed tokens of all blocks, copied to this block before it reads their rows.
struct Piece {
    int column[THREADS];
    float low[THREADS];
    float high[THREADS];
};

#ifndef ON_HOST
#define KERNEL extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(THREADS)
#define SHARED(type, name) __shared__ type name
#define FUNCTION __device__ __forceinline__
#define INFINITE __int_as_float(0x7f800000)

FUNCTION int thread_rank() { return threadIdx.x; }
FUNCTION int image_index() { return blockIdx.x / BLOCKS; }
FUNCTION int block_rank() { return blockIdx.x % BLOCKS; }
FUNCTION void block_sync() { __syncthreads(); }
FUNCTION void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
FUNCTION Share& share_of(Share& own, int rank) {
    unsigned long long address;
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(&own), "r"(rank));
    return *reinterpret_cast<Share*>(address);
}
template <typename T> FUNCTION T shuffle_xor(T value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
FUNCTION unsigned lanes_where(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
FUNCTION int count_bits(unsigned bits) { return __popc(bits); }
#endif

struct Add {
    template <typename T> FUNCTION T operator()(T first, T second) const { return first + second; }
};
struct Lower {
    template <typename T> FUNCTION T operator()(T first, T second) const { return first < second ? first : second; }
};
struct Higher {
    template <typename T> FUNCTION T operator()(T first, T second) const { return first > second ? first : second; }
};

template <typename T, typename Combine> FUNCTION T over_warp(T value, Combine combine) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
    return value;
}

// Combine a value of each thread of a block. Only the first thread has the result.
template <typename T, typename Combine> FUNCTION T over_block(T value, T* of_warps, Combine combine) {
    value = over_warp(value, combine);
    if (thread_rank() % 32 == 0) of_warps[thread_rank() / 32] = value;
    block_sync();
    if (thread_rank() == 0)
        for (int warp = 1; warp < WARPS; warp++) value = combine(value, of_warps[warp]);
    return value;
}

FUNCTION float over_mean(float value, float total, float count) {
    const float mean = total / count;
    return mean > 0 ? value / mean : 0;
}

FUNCTION float over_span(float value, float lowest, float highest, float noise) {
    const float span = highest - lowest;
    return span > noise ? (value - lowest) / span : 0;
}

KERNEL greedy_cluster(
    long long* order, const float* similarity, const float* relevance, const float* closest, const double* coverage,
    const signed char* taken, int num_tokens, int num_keep, double diversity_weight, double coverage_weight,
    double rounding_of_similarity
) {
    SHARED(Share, own);
    SHARED(Piece, piece);
    const int thread = thread_rank(), rank = block_rank();
    const long long image = image_index();
    const int share = (num_tokens + BLOCKS - 1) / BLOCKS;
    const int first_token = rank * share;
    const float rounding = rounding_of_similarity, noise = rounding * num_tokens;
    order += image * num_keep;
    similarity += image * num_tokens * num_tokens;
    relevance += image * num_tokens;

    int token[PER_THREAD];
    bool inside[PER_THREAD], left[PER_THREAD];
    float near[PER_THREAD], value[PER_THREAD];
    double gain[PER_THREAD];
    double relevance_left = 0;
    int num_left = 0;
    for (int i = 0; i < PER_THREAD; i++) {
        const int position = i * THREADS + thread;
        token[i] = first_token + position;
        inside[i] = position < share && token[i] < num_tokens;
        const long long place = image * num_tokens + token[i];
        left[i] = inside[i] && !taken[place];
        near[i] = inside[i] ? closest[place] : INFINITE;
        value[i] = HAS_RELEVANCE && inside[i] ? relevance[token[i]] : 0;
        // Each step subtracts from the gain; in float32 the rest would be mostly rounding error after many steps.
        gain[i] = HAS_COVERAGE && inside[i] ? coverage[place] : 0;
        num_left += left[i];
        relevance_left += left[i] ? fabs(double(value[i])) : 0;
    }
    num_left = over_block(num_left, own.warp_count, Add());
    relevance_left = over_block(relevance_left, own.warp_total, Add());
    if (thread == 0) own.left = num_left, own.relevance = relevance_left;
    cluster_sync();
    num_left = 0, relevance_left = 0;
    for (int block = 0; block < BLOCKS; block++) {
        const Share& other = share_of(own, block);
        num_left += other.left, relevance_left += other.relevance;
    }

    for (int step = 1; step < num_keep; step++) {
        // Differences up to the noise count as 0; otherwise rounding errors would be scaled up in the last steps.
        float distance[PER_THREAD], gained[PER_THREAD];
        float sums[6] = {0, 0, 0, 0, 0, 0};
        if (MINMAX)
            for (int i = 0; i < 3; i++) sums[i] = INFINITE, sums[3 + i] = -INFINITE;
        for (int i = 0; i < PER_THREAD; i++) {
            distance[i] = left[i] && 1 - near[i] > rounding ? 1 - near[i] : 0;
            gained[i] = left[i] && gain[i] > noise ? float(gain[i]) : 0;
            if (!MINMAX) {
                sums[0] += distance[i], sums[1] += gained[i];
            } else if (left[i]) {
                const float criteria[3] = {value[i], distance[i], gained[i]};
                for (int j = 0; j < 3; j++) {
                    sums[j] = Lower()(sums[j], criteria[j]);
                    sums[3 + j] = Higher()(sums[3 + j], criteria[j]);
                }
            }
        }
        for (int j = 0; j < (MINMAX ? 6 : 2); j++) {
            if (!MINMAX) sums[j] = over_warp(sums[j], Add());
            else if (j < 3) sums[j] = over_warp(sums[j], Lower());
            else sums[j] = over_warp(sums[j], Higher());
            if (thread % 32 == 0) own.warp[j][thread / 32] = sums[j];
        }
        block_sync();
        if (thread < (MINMAX ? 6 : 2)) {
            float all = own.warp[thread][0];
            for (int warp = 1; warp < WARPS; warp++) {
                const float more = own.warp[thread][warp];
                all = !MINMAX ? all + more : thread < 3 ? Lower()(all, more) : Higher()(all, more);
            }
            own.sums[thread] = all;
        }
        cluster_sync();
        for (int j = 0; j < (MINMAX ? 6 : 2); j++) {
            sums[j] = share_of(own, 0).sums[j];
            for (int block = 1; block < BLOCKS; block++) {
                const float more = share_of(own, block).sums[j];
                sums[j] = !MINMAX ? sums[j] + more : j < 3 ? Lower()(sums[j], more) : Higher()(sums[j], more);
            }
        }

        const float tokens_left = num_left > 1 ? num_left : 1;
        float score[PER_THREAD], top = -INFINITE;
        for (int i = 0; i < PER_THREAD; i++) {
            score[i] = 0;
            if (MINMAX) {
                if (HAS_RELEVANCE) score[i] += over_span(value[i], sums[0], sums[3], 0);
                if (HAS_DIVERSITY)
                    score[i] += float(diversity_weight) * over_span(distance[i], sums[1], sums[4], rounding);
                if (HAS_COVERAGE) score[i] += float(coverage_weight) * over_span(gained[i], sums[2], sums[5], noise);
            } else {
                if (HAS_RELEVANCE) score[i] += over_mean(value[i], float(relevance_left), tokens_left);
                if (HAS_DIVERSITY) score[i] += float(diversity_weight) * over_mean(distance[i], sums[0], tokens_left);
                if (HAS_COVERAGE) score[i] += float(coverage_weight) * over_mean(gained[i], sums[1], tokens_left);
            }
            if (!left[i]) score[i] = -INFINITE;
            top = Higher()(top, score[i]);
        }
        top = over_block(top, own.warp[0], Higher());
        if (thread == 0) own.top = top;
        cluster_sync();
        top = -INFINITE;
        for (int block = 0; block < BLOCKS; block++) top = Higher()(top, share_of(own, block).top);

        const float tied = top - rounding * Higher()(top < 0 ? -top : top, 1.0f);
        int best = num_tokens - 1;
        for (int i = 0; i < PER_THREAD; i++)
            if (score[i] >= tied && inside[i]) best = Lower()(best, token[i]);
        best = over_block(best, own.warp_count, Lower());
        if (thread == 0) own.first = best, own.num_changed = 0;
        cluster_sync();
        best = num_tokens - 1;
        for (int block = 0; block < BLOCKS; block++) best = Lower()(best, share_of(own, block).first);
        if (rank == 0 && thread == 0) order[step] = best;
        num_left--;
        if (HAS_RELEVANCE) relevance_left -= fabs(double(relevance[best]));

        const float* row = similarity + (long long)best * num_tokens;
        for (int i = 0; i < PER_THREAD; i++) {
            left[i] = left[i] && token[i] != best;
            const float to_best = inside[i] ? row[token[i]] : 0;
            const float after = left[i] ? Higher()(near[i], to_best) : INFINITE;
            if (HAS_COVERAGE) {
                const bool found = after > near[i];
                const unsigned found_in_warp = lanes_where(found);
                if (thread % 32 == 0) own.warp_count[thread / 32] = count_bits(found_in_warp);
                block_sync();
                int place = own.num_changed + count_bits(found_in_warp & ((1u << thread % 32) - 1));
                int found_in_block = 0;
                for (int warp = 0; warp < WARPS; warp++) {
                    if (warp < thread / 32) place += own.warp_count[warp];
                    found_in_block += own.warp_count[warp];
                }
                if (found) {
                    own.changed[place] = token[i];
                    own.low[place] = near[i];
                    own.high[place] = token[i] == best ? INFINITE : to_best;
                }
                block_sync();
                if (thread == 0) own.num_changed += found_in_block;
                block_sync();
            }
            near[i] = after;
        }
        if (!HAS_COVERAGE) continue;

        cluster_sync();
        int until[BLOCKS];
        int num_changed = 0;
        for (int block = 0; block < BLOCKS; block++) {
            num_changed += share_of(own, block).num_changed;
            until[block] = num_changed;
        }
        for (int start = 0; start < num_changed; start += THREADS) {
            const int entry = start + thread;
            if (entry < num_changed) {
                int block = 0, begun = 0;
                for (int i = 0; i + 1 < BLOCKS; i++)
                    if (entry >= until[i]) block = i + 1, begun = until[i];
                const Share& other = share_of(own, block);
                piece.column[thread] = other.changed[entry - begun];
                piece.low[thread] = other.low[entry - begun];
                piece.high[thread] = other.high[entry - begun];
            }
            block_sync();
            const int end = Lower()(num_changed - start, THREADS);
#pragma unroll 4
            for (int i = 0; i < end; i++) {
                const float* covered = similarity + (long long)piece.column[i] * num_tokens;
                const float low = piece.low[i], high = piece.high[i];
                for (int j = 0; j < PER_THREAD; j++) {
                    const float there = inside[j] ? covered[token[j]] : 0;
                    gain[j] -= double(Lower()(Higher()(there, low), high) - low);
                }
            }
            block_sync();
        }
    }
    // Shared memory lasts as long as its block: none ends while another reads.
    cluster_sync();
}
