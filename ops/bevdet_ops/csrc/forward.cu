// Forward: a group of GROUP lanes owns one head of one query; each lane owns TILES packs of VEC channels. Every lane
// works out some of the points and the group shares them by shuffle, so no location is computed twice.
// DIM, LEVELS and POINTS are compile-time sizes, or 0 for the general path.
#include "camera.cuh"
#include "point.cuh"

template <typename T, int VEC, int GROUP, int DIM, int LEVELS, int POINTS>
__device__ __forceinline__ void forward(const ForwardTensors<T, arithmetic<T>>& tensors, const Problem& problem) {
    using A = arithmetic<T>;
    constexpr int TILES = DIM > 0 ? (DIM + VEC * GROUP - 1) / (VEC * GROUP) : 4;
    // Points are taken CHUNKS * GROUP at a time; all of them at once where their number is known.
    constexpr int CHUNKS = LEVELS > 0 ? (LEVELS * POINTS + GROUP - 1) / GROUP : 1;
    const int D = DIM > 0 ? DIM : problem.D;
    const int P = POINTS > 0 ? POINTS : problem.P;
    const int points = LEVELS > 0 ? LEVELS * POINTS : problem.L * problem.P;
    const int M = problem.M, N = problem.N;

    const int lane = threadIdx.x % GROUP;
    const unsigned group = blockIdx.x * (BLOCK / GROUP) + threadIdx.x / GROUP;
    const bool active = group < static_cast<unsigned>(problem.Q) * M;
    const int q = active ? group / M : 0, m = active ? group % M : 0;
    const int first_channel = blockIdx.y * (TILES * GROUP * VEC) + lane * VEC;

    for (int64 b = blockIdx.z; b < problem.B; b += gridDim.z) {
        A sum[TILES][VEC] = {};
        int visible_count = 0;
        for (int first = 0; first < N; first += 32) {
            unsigned cameras = visible_cameras<GROUP>(problem, tensors.reference_points, tensors.visible, b, q, first,
                                                      lane, active);
            visible_count += __popc(cameras);
            while (__any_sync(FULL_WARP, cameras != 0)) {
                const bool look = cameras != 0;
                const int n = look ? first + __ffs(cameras) - 1 : 0;
                cameras &= cameras - 1;

                const A* reference = tensors.reference_points + ((b * N + n) * problem.Q + q) * problem.reference_levels *
                                                                    problem.anchors * problem.reference_numbers;
                const A* offsets = tensors.sampling_offsets == nullptr ? nullptr
                    : tensors.sampling_offsets + b * problem.offset_stride_b + n * problem.offset_stride_n
                          + q * problem.offset_stride_q + m * problem.offset_stride_m;
                const A* weights = tensors.attention_weights + b * problem.weight_stride_b + n * problem.weight_stride_n
                                   + q * problem.weight_stride_q + m * problem.weight_stride_m;
                const T* value = tensors.value + b * problem.value_stride_b + n * problem.value_stride_n
                                 + static_cast<int64>(m) * D + first_channel;
                const Normalizer<A> norm = make_normalizer<GROUP>(problem, weights, look, lane, points);

                for (int slice = 0; slice < points; slice += CHUNKS * GROUP) {
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        const int chunk_start = slice + chunk * GROUP;
                        const int own = chunk_start + lane;
                        Sample<A> sample = {};
                        if (look && own < points) {
                            const int level = own / P;
                            const Placement<A> at = place(problem, reference, offsets, level, own % P, P);
                            sample = make_sample(at.x, at.y, activate(problem, norm, load(weights + own)),
                                                 problem.height[level], problem.width[level]);
                        }
#pragma unroll 4
                        for (int k = 0; k < GROUP; ++k) {
                            if (chunk_start + k >= points) break;
                            const int level = (chunk_start + k) / P;
                            const Sample<A> shared = broadcast<GROUP>(sample, k);
                            const Corners<A> corners = unpack(shared, problem.width[level]);
                            const T* map = value + problem.level_start[level] * problem.value_stride_s;
#pragma unroll
                            for (int tile = 0; tile < TILES; ++tile) {
                                const int channel = tile * GROUP * VEC;
                                const bool mine = DIM == TILES * GROUP * VEC || first_channel + channel < D;
                                A corner[4][VEC];
#pragma unroll
                                for (int c = 0; c < 4; ++c) {
                                    const int64 pixel = corners.pixel + (c & 1) + (c >> 1) * problem.width[level];
                                    load<T, VEC>(map + pixel * problem.value_stride_s + channel,
                                                 mine && corners.inside[c], corner[c]);
                                }
#pragma unroll
                                for (int c = 0; c < 4; ++c) {
                                    const A factor = corners.factor[c] * shared.weight;
#pragma unroll
                                    for (int i = 0; i < VEC; ++i) sum[tile][i] += factor * corner[c][i];
                                }
                            }
                        }
                    }
                }
            }
        }

        const A scale = reduction_factor<A>(problem, visible_count);
        T* output = tensors.output + ((b * problem.Q + q) * M + m) * D + first_channel;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int channel = tile * GROUP * VEC;
            if (!active || first_channel + channel >= D) continue;
#pragma unroll
            for (int i = 0; i < VEC; ++i) sum[tile][i] *= scale;
            store<T, VEC>(output + channel, sum[tile]);
        }
    }
}

#define INSTANTIATE_FORWARD(name, T, VEC, GROUP, DIM, LEVELS, POINTS)                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const ForwardTensors<T, arithmetic<T>> tensors, const Problem problem) {                                  \
        forward<T, VEC, GROUP, DIM, LEVELS, POINTS>(tensors, problem);                                                 \
    }
