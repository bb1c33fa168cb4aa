// Backward: the same division of work as forward.cu. A corner needs one dot product <value, grad_output> for the
// gradients of weight and position; the value gradient is scattered. Only what has a pointer is computed.
// Gradients that all cameras share are summed in registers and written once, so nothing has to be zeroed but grad_value.
#include "camera.cuh"
#include "head_gradient.cuh"

template <typename T, int VEC, int GROUP, int DIM, int LEVELS, int POINTS>
__device__ __forceinline__ void backward(const BackwardTensors<T, arithmetic<T>>& tensors, const Problem& problem) {
    using A = arithmetic<T>;
    constexpr int KNOWN_TILES = DIM > 0 ? (DIM + VEC * GROUP - 1) / (VEC * GROUP) : 1;
    constexpr int CHUNKS = LEVELS > 0 ? (LEVELS * POINTS + GROUP - 1) / GROUP : 1;
    constexpr bool ALL_POINTS = LEVELS > 0;
    const int D = DIM > 0 ? DIM : problem.D;
    const int tiles = DIM > 0 ? KNOWN_TILES : (problem.D + VEC * GROUP - 1) / (VEC * GROUP);
    const int P = POINTS > 0 ? POINTS : problem.P;
    const int points = LEVELS > 0 ? LEVELS * POINTS : problem.L * problem.P;
    const int M = problem.M, N = problem.N, Q = problem.Q;

    const bool offsets_shared = problem.offset_stride_n == 0, weights_shared = problem.weight_stride_n == 0;
    const bool of_points = tensors.grad_reference != nullptr || tensors.grad_offsets != nullptr ||
                           tensors.grad_weights != nullptr;
    // Rows of hidden cameras are written too, as zeros.
    const bool every_camera = tensors.grad_reference != nullptr ||
                              (tensors.grad_offsets != nullptr && !offsets_shared) ||
                              (tensors.grad_weights != nullptr && !weights_shared);

    const int lane = threadIdx.x % GROUP;
    const unsigned group = blockIdx.x * (BLOCK / GROUP) + threadIdx.x / GROUP;
    const bool active = group < static_cast<unsigned>(Q) * M;
    const int q = active ? group / M : 0, m = active ? group % M : 0;
    const int first_channel = lane * VEC;
    const int slots = problem.reference_levels * problem.anchors * problem.reference_numbers;

    for (int64 b = blockIdx.z; b < problem.B; b += gridDim.z) {
        int visible_count = 0;
        if (problem.reduction == REDUCTION_MEAN_VISIBLE)
            for (int first = 0; first < N; first += 32)
                visible_count += __popc(visible_cameras<GROUP>(problem, tensors.reference_points, tensors.visible, b, q,
                                                               first, lane, active));
        const A scale = reduction_factor<A>(problem, visible_count);

        const T* grad_output = tensors.grad_output + ((b * Q + q) * M + m) * D + first_channel;
        A known_grad[KNOWN_TILES][VEC];  // of the output, times scale; from memory in every use where D is not known
        if constexpr (DIM > 0) {
#pragma unroll
            for (int tile = 0; tile < KNOWN_TILES; ++tile) {
                const int channel = tile * GROUP * VEC;
                load<T, VEC>(grad_output + channel, active && first_channel + channel < D, known_grad[tile]);
#pragma unroll
                for (int i = 0; i < VEC; ++i) known_grad[tile][i] *= scale;
            }
        }

        for (int slice = 0; slice < points; slice += CHUNKS * GROUP) {
            const bool last_slice = slice + CHUNKS * GROUP >= points;
            const int own = slice + lane;
            A activated[CHUNKS] = {}, sum_weight[CHUNKS] = {}, sum_dx[CHUNKS] = {}, sum_dy[CHUNKS] = {};
            bool seen = false;
            Normalizer<A> seen_norm = {A(0), A(1)};

            for (int first = 0; first < N; first += 32) {
                const unsigned cameras = visible_cameras<GROUP>(problem, tensors.reference_points, tensors.visible, b, q,
                                                                first, lane, active);
                unsigned visits = every_camera ? (N - first < 32 ? (1u << (N - first)) - 1 : FULL_WARP) : cameras;
                while (__any_sync(FULL_WARP, visits != 0)) {
                    const int bit = visits != 0 ? __ffs(visits) - 1 : 0;
                    const bool visit = active && visits != 0;
                    const bool look = visit && (cameras >> bit & 1u);
                    const int n = first + bit;
                    visits &= visits - 1;

                    const A* reference = tensors.reference_points + ((b * N + n) * Q + q) * slots;
                    const A* offsets = tensors.sampling_offsets == nullptr ? nullptr
                        : tensors.sampling_offsets + b * problem.offset_stride_b + n * problem.offset_stride_n
                              + q * problem.offset_stride_q + m * problem.offset_stride_m;
                    const A* weights = tensors.attention_weights + b * problem.weight_stride_b
                                       + n * problem.weight_stride_n + q * problem.weight_stride_q
                                       + m * problem.weight_stride_m;
                    const T* value = tensors.value + b * problem.value_stride_b + n * problem.value_stride_n
                                     + static_cast<int64>(m) * D + first_channel;
                    const Normalizer<A> norm = make_normalizer<GROUP>(problem, weights, look, lane, points);
                    if (look) seen_norm = norm;
                    seen |= look;

                    PointGradient<A> found[CHUNKS] = {};
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        const int chunk_start = slice + chunk * GROUP;
                        const int j = chunk_start + lane, own_level = j < points ? j / P : 0;
                        Sample<A> sample = {};
                        Placement<A> at = {};
                        if (look && j < points) {
                            activated[chunk] = activate(problem, norm, load(weights + j));
                            at = place(problem, reference, offsets, own_level, j % P, P);
                            sample = make_sample(at.x, at.y, activated[chunk], problem.height[own_level],
                                                 problem.width[own_level]);
                        } else if (!weights_shared) {
                            activated[chunk] = 0;
                        }
                        A own_weight = 0, own_x = 0, own_y = 0;
#pragma unroll 2
                        for (int k = 0; k < GROUP; ++k) {
                            if (chunk_start + k >= points) break;
                            const int level = (chunk_start + k) / P;
                            const Sample<A> shared = broadcast<GROUP>(sample, k);
                            const Corners<A> corners = unpack(shared, problem.width[level]);
                            const T* map = value + problem.level_start[level] * problem.value_stride_s;
                            A dot[4] = {};
#pragma unroll
                            for (int tile = 0; tile < tiles; ++tile) {
                                const int channel = tile * GROUP * VEC;
                                const bool mine = DIM == KNOWN_TILES * GROUP * VEC || first_channel + channel < D;
                                A grad[VEC];
                                if constexpr (DIM > 0) {
#pragma unroll
                                    for (int i = 0; i < VEC; ++i) grad[i] = known_grad[tile][i];
                                } else {
                                    load<T, VEC>(grad_output + channel, active && mine, grad);
#pragma unroll
                                    for (int i = 0; i < VEC; ++i) grad[i] *= scale;
                                }
                                int64 pixel[4];
#pragma unroll
                                for (int c = 0; c < 4; ++c)
                                    pixel[c] = corners.pixel + (c & 1) + (c >> 1) * problem.width[level];
                                if (of_points) {
                                    A corner[4][VEC];
#pragma unroll
                                    for (int c = 0; c < 4; ++c)
                                        load<T, VEC>(map + pixel[c] * problem.value_stride_s + channel,
                                                     mine && corners.inside[c], corner[c]);
#pragma unroll
                                    for (int c = 0; c < 4; ++c)
#pragma unroll
                                        for (int i = 0; i < VEC; ++i) dot[c] += corner[c][i] * grad[i];
                                }
                                if (tensors.grad_value != nullptr) {
                                    const int64 plane = (b * N + n) * problem.S + problem.level_start[level];
#pragma unroll
                                    for (int c = 0; c < 4; ++c)
                                        if (mine && corners.inside[c])
                                            accumulate<A, VEC>(tensors.grad_value,
                                                               ((plane + pixel[c]) * M + m) * D + first_channel + channel,
                                                               grad, corners.factor[c] * shared.weight,
                                                               tensors.fixed_point);
                                }
                            }
                            if (of_points) {
                                const A weight = group_sum<GROUP>(corners.factor[0] * dot[0] + corners.factor[1] * dot[1] +
                                                                  corners.factor[2] * dot[2] + corners.factor[3] * dot[3]);
                                const A x = group_sum<GROUP>((1 - shared.fy) * (dot[1] - dot[0]) +
                                                             shared.fy * (dot[3] - dot[2]));
                                const A y = group_sum<GROUP>((1 - shared.fx) * (dot[2] - dot[0]) +
                                                             shared.fx * (dot[3] - dot[1]));
                                if (lane == k) own_weight = weight, own_x = x, own_y = y;
                            }
                        }
                        if (look && j < points)
                            found[chunk] = point_gradient(problem, at, activated[chunk], own_weight, own_x, own_y,
                                                          own_level, P);
                    }

                    if (tensors.grad_reference != nullptr)
                        write_reference_gradients<GROUP, CHUNKS>(
                            problem, tensors.grad_reference + (((b * N + n) * Q + q) * M + m) * slots, found, slice == 0,
                            visit, own, lane, P);
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        const int j = own + chunk * GROUP;
                        sum_weight[chunk] += found[chunk].weight;
                        sum_dx[chunk] += found[chunk].dx;
                        sum_dy[chunk] += found[chunk].dy;
                        if (tensors.grad_offsets != nullptr && !offsets_shared && visit && j < points) {
                            A* grad = tensors.grad_offsets + ((((b * N + n) * Q + q) * M + m) * points + j) * 2;
                            grad[0] = found[chunk].dx;
                            grad[1] = found[chunk].dy;
                        }
                    }
                    if (tensors.grad_weights != nullptr && !weights_shared) {
                        A raw[CHUNKS];
#pragma unroll
                        for (int chunk = 0; chunk < CHUNKS; ++chunk) raw[chunk] = found[chunk].weight;
                        A* grads = tensors.grad_weights + (((b * N + n) * Q + q) * M + m) * points;
                        write_weight_gradients<GROUP, CHUNKS>(problem, grads, raw, activated, ALL_POINTS, visit, own, points);
                        if (!ALL_POINTS && last_slice && problem.activation == ACTIVATION_SOFTMAX)
                            softmax_backward<GROUP>(problem, weights, grads, norm, look, lane, points);
                    }
                }
            }

            const int64 row = (b * Q + q) * M + m;
            if (tensors.grad_offsets != nullptr && offsets_shared) {
#pragma unroll
                for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                    const int j = own + chunk * GROUP;
                    if (!active || j >= points) continue;
                    A* grad = tensors.grad_offsets + (row * points + j) * 2;
                    grad[0] = sum_dx[chunk];
                    grad[1] = sum_dy[chunk];
                }
            }
            if (tensors.grad_weights != nullptr && weights_shared) {
                const A* weights = tensors.attention_weights + b * problem.weight_stride_b + q * problem.weight_stride_q
                                   + m * problem.weight_stride_m;
                A* grads = tensors.grad_weights + row * points;
                write_weight_gradients<GROUP, CHUNKS>(problem, grads, sum_weight, activated, ALL_POINTS, active, own, points);
                if (!ALL_POINTS && last_slice && problem.activation == ACTIVATION_SOFTMAX)
                    softmax_backward<GROUP>(problem, weights, grads, seen_norm, seen, lane, points);
            }
        }
    }
}

#define INSTANTIATE_BACKWARD(name, T, VEC, GROUP, DIM, LEVELS, POINTS)                                                 \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                \
        name(const BackwardTensors<T, arithmetic<T>> tensors, const Problem problem) {                                 \
        backward<T, VEC, GROUP, DIM, LEVELS, POINTS>(tensors, problem);                                                \
    }
