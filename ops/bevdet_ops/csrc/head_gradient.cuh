// Gradients of one head's points, weights and references, from what each lane knows of its own points.
#pragma once
#include "head.cuh"

// <corner, grad_output>, weighed: d loss / d (activated weight, x in pixels, y in pixels); the last two not yet times the
// weight.
template <typename A> struct SampleGradient {
    A weight, x, y;
};

template <typename A> struct PointGradient {
    A weight;        // d loss / d activated weight
    A dx, dy;        // d loss / d offset
    A reference[4];  // d loss / d (x, y[, w, h])
};

template <typename A>
__device__ __forceinline__ PointGradient<A> point_gradient(const Problem& problem, const Placement<A>& at, A weight,
                                                           const SampleGradient<A>& sample, int level, int P) {
    const A x = sample.x * weight, y = sample.y * weight;
    const A along_x = x * problem.width[level], along_y = y * problem.height[level];
    if (problem.reference_numbers == 2) return {sample.weight, x, y, {along_x, along_y, A(0), A(0)}};
    const A half = A(0.5) / P;
    return {sample.weight, along_x * (at.anchor_w * half), along_y * (at.anchor_h * half),
            {along_x, along_y, along_x * (at.dx * half), along_y * (at.dy * half)}};
}

// grads: gradients of activated weights, turned in place into those of the given weights. Each lane reads only what it
// wrote itself.
template <int GROUP, typename A>
__device__ __forceinline__ void softmax_backward(const Problem& problem, const A* weights, A* grads,  // [L * P]
                                                 const Normalizer<A>& norm, bool wanted, int lane, int points) {
    A total = 0;
    for (int j = lane; wanted && j < points; j += GROUP) total += activate(problem, norm, load(weights + j)) * grads[j];
    total = group_sum<GROUP>(total);
    for (int j = lane; wanted && j < points; j += GROUP)
        grads[j] = activate(problem, norm, load(weights + j)) * (grads[j] - total);
}

// The points at hand (own, own + GROUP, ...) of one row of weights. `raw` is the gradient of the activated weight; that
// of the given one is written, except under a softmax of which only some points are at hand: softmax_backward follows
// once all have been written.
template <int GROUP, bool ALL_POINTS, int CHUNKS, typename A>
__device__ __forceinline__ void write_weight_gradients(const Problem& problem, A* grads,  // [L * P]
                                                       const A (&raw)[CHUNKS], const A (&activated)[CHUNKS],
                                                       bool active, int own, int points) {
    const bool softmax = problem.activation == ACTIVATION_SOFTMAX && ALL_POINTS;
    A total = 0;
    if (softmax) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) total += activated[chunk] * raw[chunk];
        total = group_sum<GROUP>(total);
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int j = own + chunk * GROUP;
        A slope = 1;
        if (problem.activation == ACTIVATION_SIGMOID) slope = activated[chunk] * (1 - activated[chunk]);
        if (softmax) slope = activated[chunk];
        if (active && j < points) grads[j] = slope * (raw[chunk] - total);
    }
}

template <int GROUP, int CHUNKS, typename A>
__device__ __forceinline__ void write_offset_gradients(A* grads,  // [L * P, 2]
                                                       const A (&dx)[CHUNKS], const A (&dy)[CHUNKS], bool active,
                                                       int own, int points) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int j = own + chunk * GROUP;
        if (!active || j >= points) continue;
        grads[2 * j] = dx[chunk];
        grads[2 * j + 1] = dy[chunk];
    }
}

// Sums over the points that share an anchor; `first` where none of them has been added before.
template <int GROUP, int CHUNKS, typename A>
__device__ __forceinline__ void write_reference_gradients(const Problem& problem, A* grads,  // [Lr, Z, 2 | 4]
                                                          const PointGradient<A> (&found)[CHUNKS], bool first,
                                                          bool active, int own, int lane, int P) {
    const int anchors = problem.reference_levels * problem.anchors;
    for (int anchor = 0; anchor < anchors; ++anchor) {
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            if (number >= problem.reference_numbers) break;
            A total = 0;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const int j = own + chunk * GROUP;
                const int level = problem.reference_levels == 1 ? 0 : j / P;
                if (level * problem.anchors + j % P % problem.anchors == anchor) total += found[chunk].reference[number];
            }
            total = group_sum<GROUP>(total);
            A* grad = grads + anchor * problem.reference_numbers + number;
            if (active && lane == anchor % GROUP) *grad = first ? total : *grad + total;
        }
    }
}
