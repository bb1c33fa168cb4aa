// The head that a group of lanes serves, and where its inputs lie.
#pragma once
#include "camera.cuh"
#include "point.cuh"

// LEVELS and POINTS are compile-time sizes, or 0. DIM likewise.
template <int GROUP, int DIM, int LEVELS, int POINTS> struct Head {
    // The backward pass takes CHUNKS * GROUP points at a time, one of each GROUP by each lane; all of them at once where
    // their number is known.
    static constexpr bool ALL_POINTS = LEVELS > 0;
    static constexpr int CHUNKS = ALL_POINTS ? (LEVELS * POINTS + GROUP - 1) / GROUP : 1;

    int lane, q, m;
    bool active;  // false in the last block's spare groups, which look at no camera and write nothing
    int D, P, points;

    __device__ __forceinline__ explicit Head(const Problem& problem) {
        const unsigned group = blockIdx.x * (BLOCK / GROUP) + threadIdx.x / GROUP;
        lane = threadIdx.x % GROUP;
        active = group < static_cast<unsigned>(problem.Q) * problem.M;
        q = active ? group / problem.M : 0;
        m = active ? group % problem.M : 0;
        D = DIM > 0 ? DIM : problem.D;
        P = POINTS > 0 ? POINTS : problem.P;
        points = LEVELS > 0 ? LEVELS * POINTS : problem.L * problem.P;
    }
};

// What one camera offers to one head of one query.
template <typename T, typename A> struct View {
    const T* value;      // [S, ., D] from this head's first channel on
    const A* reference;  // [Lr, Z, 2 | 4]
    const A* offsets;    // [Lo, P, 2] or null
    const A* weights;    // [L, P]
};

template <typename T, typename A, typename Tensors>
__device__ __forceinline__ View<T, A> make_view(const Tensors& tensors, const Problem& problem, int64 b, int n, int q,
                                                int m) {
    const int numbers = problem.reference_levels * problem.anchors * problem.reference_numbers;
    View<T, A> view = {
        tensors.value + b * problem.value_stride_b + n * problem.value_stride_n + static_cast<int64>(m) * problem.D,
        tensors.reference_points + ((b * problem.N + n) * problem.Q + q) * numbers,
        nullptr,
        tensors.attention_weights + b * problem.weight_stride_b + n * problem.weight_stride_n +
            q * problem.weight_stride_q + m * problem.weight_stride_m,
    };
    if (tensors.sampling_offsets != nullptr)
        view.offsets = tensors.sampling_offsets + b * problem.offset_stride_b + n * problem.offset_stride_n +
                       q * problem.offset_stride_q + m * problem.offset_stride_m;
    return view;
}
