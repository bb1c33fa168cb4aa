// Which cameras a query looks at, as one bit each, and what their sum is divided by.
#pragma once
#include "group.cuh"
#include "problem.cuh"

// Cameras first .. first + 31 that are visible and whose references are all finite; the same in every lane of a group.
template <int GROUP, typename A>
__device__ __forceinline__ unsigned visible_cameras(const Problem& problem,
                                                    const A* reference_points,     // [B, N, Q, Lr, Z, 2 | 4]
                                                    const unsigned char* visible,  // [B, N, Q] or null
                                                    int64 b, int q, int first, int lane, bool active) {
    const int count = problem.N - first < 32 ? problem.N - first : 32;
    const int numbers = problem.reference_levels * problem.anchors * problem.reference_numbers;
    unsigned hidden = 0;
    for (int n = 0; n < count; ++n) {
        const int64 row = (b * problem.N + first + n) * problem.Q + q;
        bool look = active && (visible == nullptr || __ldg(visible + row) != 0);
        for (int i = lane; look && i < numbers; i += GROUP) look = isfinite(load(reference_points + row * numbers + i));
        hidden |= look ? 0u : 1u << n;
    }
    const unsigned all = count == 32 ? FULL_WARP : (1u << count) - 1;
    return ~group_or<GROUP>(hidden) & all;
}

template <typename A> __device__ __forceinline__ A reduction_factor(const Problem& problem, int visible_count) {
    if (problem.reduction == REDUCTION_MEAN) return A(1) / problem.N;
    if (problem.reduction == REDUCTION_MEAN_VISIBLE) return A(1) / (visible_count > 1 ? visible_count : 1);
    return A(1);
}
