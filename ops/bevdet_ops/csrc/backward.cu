// Backward: the same division of work as forward.cu. A corner needs one dot product <value, grad_output> for the
// gradients of weight and position; the value gradient is scattered. Only what has a pointer is computed. Gradients that
// all cameras share are summed in registers and written once, so nothing has to be zeroed but grad_value.
#include "head_gradient.cuh"

template <typename T, int VEC, int GROUP, int DIM, int LEVELS, int POINTS> struct Backward {
    using A = arithmetic<T>;
    using H = Head<GROUP, DIM, LEVELS, POINTS>;
    static constexpr int CHUNKS = H::CHUNKS;
    static constexpr int TILES = DIM > 0 ? (DIM + VEC * GROUP - 1) / (VEC * GROUP) : 1;
    static constexpr bool FULL = DIM == TILES * VEC * GROUP;  // no lane is ever idle

    // What the cameras that share weights and offsets add up to.
    struct Totals {
        A activated[CHUNKS], weight[CHUNKS], dx[CHUNKS], dy[CHUNKS];
        bool seen;
        Normalizer<A> norm;
    };

    const BackwardTensors<T, A>& tensors;
    const Problem& problem;
    const H head;
    const int first_channel;
    const bool offsets_shared, weights_shared, of_points;
    A scale;             // of the reduction over cameras
    const T* grad_row;   // [D] of grad_output
    A grad[TILES][VEC];  // the same times scale, where D is known

    __device__ __forceinline__ Backward(const BackwardTensors<T, A>& tensors, const Problem& problem)
        : tensors(tensors), problem(problem), head(problem), first_channel(head.lane * VEC),
          offsets_shared(problem.offset_stride_n == 0), weights_shared(problem.weight_stride_n == 0),
          of_points(tensors.grad_reference != nullptr || tensors.grad_offsets != nullptr ||
                    tensors.grad_weights != nullptr) {}

    __device__ __forceinline__ unsigned cameras_from(int first, int64 b) const {
        return visible_cameras<GROUP>(problem, tensors.reference_points, tensors.visible, b, head.q, first, head.lane,
                                      head.active);
    }

    // Row of a tensor [B, N or 1, Q, M, ...].
    __device__ __forceinline__ int64 row(int64 b, int n, bool shared) const {
        return ((shared ? b : b * problem.N + n) * problem.Q + head.q) * problem.M + head.m;
    }

    __device__ __forceinline__ void run(int64 b) {
        int visible_count = 0;
        if (problem.reduction == REDUCTION_MEAN_VISIBLE)
            for (int first = 0; first < problem.N; first += 32) visible_count += __popc(cameras_from(first, b));
        scale = reduction_factor<A>(problem, visible_count);
        grad_row = tensors.grad_output + row(b, 0, true) * head.D;
        if constexpr (DIM > 0) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) load_grad(tile, grad[tile]);
        }

        // Rows that belong to one camera are written even where it is hidden: as zeros.
        const bool every_camera = tensors.grad_reference != nullptr ||
                                  (tensors.grad_offsets != nullptr && !offsets_shared) ||
                                  (tensors.grad_weights != nullptr && !weights_shared);
        for (int slice = 0; slice < head.points; slice += CHUNKS * GROUP) {
            Totals totals = {};
            for (int first = 0; first < problem.N; first += 32) {
                const unsigned cameras = cameras_from(first, b);
                const int count = problem.N - first;
                unsigned visits = every_camera ? (count < 32 ? (1u << count) - 1 : FULL_WARP) : cameras;
                while (__any_sync(FULL_WARP, visits != 0)) {
                    const int bit = visits != 0 ? __ffs(visits) - 1 : 0;
                    const bool visit = head.active && visits != 0;
                    visits &= visits - 1;
                    visit_camera(b, first + bit, slice, visit, visit && (cameras >> bit & 1u), totals);
                }
            }
            write_shared(b, slice, totals);
        }
    }

    __device__ __forceinline__ void load_grad(int tile, A (&out)[VEC]) const {
        const int channel = first_channel + tile * GROUP * VEC;
        load<T, VEC>(grad_row + channel, head.active && (FULL || channel < head.D), out);
#pragma unroll
        for (int i = 0; i < VEC; ++i) out[i] *= scale;
    }

    __device__ __forceinline__ void visit_camera(int64 b, int n, int slice, bool visit, bool look, Totals& totals) {
        const View<T, A> view = make_view<T, A>(tensors, problem, b, n, head.q, head.m);
        const Normalizer<A> norm = make_normalizer<GROUP>(problem, view.weights, look, head.lane, head.points);
        if (look) totals.norm = norm;
        totals.seen |= look;

        const int own = slice + head.lane;
        PointGradient<A> found[CHUNKS] = {};
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int start = slice + chunk * GROUP, j = start + head.lane, own_level = j < head.points ? j / head.P : 0;
            const bool mine = look && j < head.points;
            Sample<A> sample = {};
            Placement<A> at = {};
            if (mine) {
                totals.activated[chunk] = activate(problem, norm, load(view.weights + j));
                at = place(problem, view.reference, view.offsets, own_level, j % head.P, head.P);
                sample = make_sample(at.x, at.y, totals.activated[chunk], problem.height[own_level],
                                     problem.width[own_level]);
            } else if (!weights_shared) {
                totals.activated[chunk] = 0;
            }
            SampleGradient<A> own_gradient = {};
#pragma unroll(CHUNKS > 2 ? 1 : 2)  // more would not fit the instruction cache
            for (int k = 0; k < GROUP; ++k) {
                if (start + k >= head.points) break;
                const SampleGradient<A> gradient =
                    visit_sample(b, n, view.value, broadcast<GROUP>(sample, k), (start + k) / head.P);
                if (head.lane == k) own_gradient = gradient;
            }
            if (mine)
                found[chunk] = point_gradient(problem, at, totals.activated[chunk], own_gradient, own_level, head.P);
        }

        A weight[CHUNKS], dx[CHUNKS], dy[CHUNKS];
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            totals.weight[chunk] += weight[chunk] = found[chunk].weight;
            totals.dx[chunk] += dx[chunk] = found[chunk].dx;
            totals.dy[chunk] += dy[chunk] = found[chunk].dy;
        }
        if (tensors.grad_reference != nullptr) {
            const int numbers = problem.reference_levels * problem.anchors * problem.reference_numbers;
            write_reference_gradients<GROUP>(problem, tensors.grad_reference + row(b, n, false) * numbers, found,
                                             slice == 0, visit, own, head.lane, head.P);
        }
        if (tensors.grad_offsets != nullptr && !offsets_shared)
            write_offset_gradients<GROUP>(tensors.grad_offsets + row(b, n, false) * head.points * 2, dx, dy, visit, own,
                                          head.points);
        if (tensors.grad_weights != nullptr && !weights_shared)
            write_weights(view.weights, tensors.grad_weights + row(b, n, false) * head.points, weight, totals.activated,
                          norm, visit, look, slice);
    }

    __device__ __forceinline__ void write_shared(int64 b, int slice, const Totals& totals) {
        const int own = slice + head.lane;
        if (tensors.grad_offsets != nullptr && offsets_shared)
            write_offset_gradients<GROUP>(tensors.grad_offsets + row(b, 0, true) * head.points * 2, totals.dx, totals.dy,
                                          head.active, own, head.points);
        if (tensors.grad_weights != nullptr && weights_shared)
            write_weights(make_view<T, A>(tensors, problem, b, 0, head.q, head.m).weights,
                          tensors.grad_weights + row(b, 0, true) * head.points, totals.weight, totals.activated,
                          totals.norm, head.active, totals.seen, slice);
    }

    __device__ __forceinline__ void write_weights(const A* weights, A* grads, const A (&raw)[CHUNKS],
                                                  const A (&activated)[CHUNKS], const Normalizer<A>& norm, bool active,
                                                  bool seen, int slice) {
        write_weight_gradients<GROUP, H::ALL_POINTS>(problem, grads, raw, activated, active, slice + head.lane,
                                                     head.points);
        const bool last_slice = slice + CHUNKS * GROUP >= head.points;
        if (!H::ALL_POINTS && last_slice && problem.activation == ACTIVATION_SOFTMAX)
            softmax_backward<GROUP>(problem, weights, grads, norm, seen, head.lane, head.points);
    }

    // Scatters the value gradient of one sample; returns the gradients of its weight and position to all lanes.
    __device__ __forceinline__ SampleGradient<A> visit_sample(int64 b, int n, const T* value, const Sample<A>& sample,
                                                              int level) {
        const int width = problem.width[level];
        const Corners<A> corners = unpack(sample, width);
        const T* map = value + problem.level_start[level] * problem.value_stride_s + first_channel;
        const int64 plane = (b * problem.N + n) * problem.S + problem.level_start[level];
        const int tiles = DIM > 0 ? TILES : (head.D + VEC * GROUP - 1) / (VEC * GROUP);
        A dot[4] = {};
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
            const int channel = tile * GROUP * VEC;
            const bool mine = FULL || first_channel + channel < head.D;
            A terms[VEC];
            if constexpr (DIM > 0) {
#pragma unroll
                for (int i = 0; i < VEC; ++i) terms[i] = grad[tile][i];
            } else {
                load_grad(tile, terms);
            }
            if (of_points) {
                A corner[4][VEC];
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    load<T, VEC>(map + corners.pixel(c, width) * problem.value_stride_s + channel,
                                 mine && corners.inside[c], corner[c]);
#pragma unroll
                for (int c = 0; c < 4; ++c)
#pragma unroll
                    for (int i = 0; i < VEC; ++i) dot[c] += corner[c][i] * terms[i];
            }
            if (tensors.grad_value != nullptr) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int64 cell = (plane + corners.pixel(c, width)) * problem.M + head.m;
                    if (mine && corners.inside[c])
                        accumulate<A, VEC>(tensors.grad_value, cell * head.D + first_channel + channel, terms,
                                           corners.factor[c] * sample.weight, tensors.fixed_point);
                }
            }
        }
        if (!of_points) return {};
        const A fx = sample.fx, fy = sample.fy;
        return {group_sum<GROUP>(corners.factor[0] * dot[0] + corners.factor[1] * dot[1] + corners.factor[2] * dot[2] +
                                 corners.factor[3] * dot[3]),
                group_sum<GROUP>((1 - fy) * (dot[1] - dot[0]) + fy * (dot[3] - dot[2])),
                group_sum<GROUP>((1 - fx) * (dot[2] - dot[0]) + fx * (dot[3] - dot[1]))};
    }
};

#define INSTANTIATE_BACKWARD(name, T, VEC, GROUP, DIM, LEVELS, POINTS)                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const BackwardTensors<T, arithmetic<T>> tensors, const Problem problem) {                                 \
        Backward<T, VEC, GROUP, DIM, LEVELS, POINTS> backward(tensors, problem);                                       \
        for (int64 b = blockIdx.z; b < problem.B; b += gridDim.z) backward.run(b);                                     \
    }
