// Forward: a group of GROUP lanes owns one head of one query; each lane owns TILES packs of VEC channels. Every lane
// works out some of the points and the group shares them by shuffle, so no location is computed twice.
#include "head.cuh"

template <typename T, int VEC, int GROUP, int DIM, int LEVELS, int POINTS> struct Forward {
    using A = arithmetic<T>;
    using H = Head<GROUP, DIM, LEVELS, POINTS>;
    // Where D is not known, blockIdx.y counts slabs of channels that a group can hold.
    static constexpr int TILES = DIM > 0 ? (DIM + VEC * GROUP - 1) / (VEC * GROUP) : 2;
    static constexpr bool FULL = DIM == TILES * VEC * GROUP;  // no lane is ever idle

    const ForwardTensors<T, A>& tensors;
    const Problem& problem;
    const H head;
    const int first_channel;
    A sum[TILES][VEC];

    __device__ __forceinline__ Forward(const ForwardTensors<T, A>& tensors, const Problem& problem)
        : tensors(tensors), problem(problem), head(problem),
          first_channel(blockIdx.y * (TILES * GROUP * VEC) + head.lane * VEC) {}

    __device__ __forceinline__ void run(int64 b) {
        memset(sum, 0, sizeof(sum));
        int visible_count = 0;
        for (int first = 0; first < problem.N; first += 32) {
            unsigned cameras = visible_cameras<GROUP>(problem, tensors.reference_points, tensors.visible, b, head.q,
                                                      first, head.lane, head.active);
            visible_count += __popc(cameras);
            while (__any_sync(FULL_WARP, cameras != 0)) {
                const bool look = cameras != 0;
                const int n = look ? first + __ffs(cameras) - 1 : first;
                cameras &= cameras - 1;
                add_camera(make_view<T, A>(tensors, problem, b, n, head.q, head.m), look);
            }
        }
        write(tensors.output + ((b * problem.Q + head.q) * problem.M + head.m) * head.D,
              reduction_factor<A>(problem, visible_count));
    }

    __device__ __forceinline__ void add_camera(const View<T, A>& view, bool look) {
        const Normalizer<A> norm = make_normalizer<GROUP>(problem, view.weights, look, head.lane, head.points);
#pragma unroll 2
        for (int start = 0; start < head.points; start += GROUP) {
            const int own = start + head.lane;
            Sample<A> sample = {};
            if (look && own < head.points) {
                const int level = own / head.P;
                const Placement<A> at = place(problem, view.reference, view.offsets, level, own % head.P, head.P);
                sample = make_sample(at.x, at.y, activate(problem, norm, load(view.weights + own)),
                                     problem.height[level], problem.width[level]);
            }
#pragma unroll(DIM > 0 ? 4 : 2)  // loads in flight
            for (int k = 0; k < GROUP; ++k) {
                if (start + k >= head.points) break;
                add_sample(view.value, broadcast<GROUP>(sample, k), (start + k) / head.P);
            }
        }
    }

    __device__ __forceinline__ void add_sample(const T* value, const Sample<A>& sample, int level) {
        const int width = problem.width[level];
        const Corners<A> corners = unpack(sample, width);
        const T* map = value + problem.level_start[level] * problem.value_stride_s + first_channel;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int channel = tile * GROUP * VEC;
            const bool mine = FULL || first_channel + channel < head.D;
            A corner[4][VEC];
#pragma unroll
            for (int c = 0; c < 4; ++c)
                load<T, VEC>(map + corners.pixel(c, width) * problem.value_stride_s + channel, mine && corners.inside[c],
                             corner[c]);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const A factor = corners.factor[c] * sample.weight;
#pragma unroll
                for (int i = 0; i < VEC; ++i) sum[tile][i] += factor * corner[c][i];
            }
        }
    }

    __device__ __forceinline__ void write(T* output, A scale) {  // [D]
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int channel = first_channel + tile * GROUP * VEC;
            if (!head.active || channel >= head.D) continue;
#pragma unroll
            for (int i = 0; i < VEC; ++i) sum[tile][i] *= scale;
            store<T, VEC>(output + channel, sum[tile]);
        }
    }
};

#define INSTANTIATE_FORWARD(name, T, VEC, GROUP, DIM, LEVELS, POINTS)                                                  \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const ForwardTensors<T, arithmetic<T>> tensors, const Problem problem) {                                  \
        Forward<T, VEC, GROUP, DIM, LEVELS, POINTS> forward(tensors, problem);                                         \
        for (int64 b = blockIdx.z; b < problem.B; b += gridDim.z) forward.run(b);                                      \
    }
