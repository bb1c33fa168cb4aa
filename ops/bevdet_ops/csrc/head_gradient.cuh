// Gradients of one head's weights and references, from what each lane knows of its own points.
#pragma once
#include "point.cuh"

// What the backward pass needs of the point that a lane owns, and what it finds.
template <typename A> struct PointGradient {
    A weight;               // d loss / d activated weight
    A dx, dy;               // d loss / d offset
    A reference[4];         // d loss / d (x, y[, w, h])
};

// From the gradient with respect to the position in pixels (not yet times the weight) to that of offset and anchor.
template <typename A>
__device__ __forceinline__ PointGradient<A> point_gradient(const Problem& problem, const Placement<A>& at, A weight,
                                                           A grad_weight, A grad_x, A grad_y, int level, int P) {
    const A along_x = grad_x * weight * problem.width[level], along_y = grad_y * weight * problem.height[level];
    if (problem.reference_numbers == 2)
        return {grad_weight, grad_x * weight, grad_y * weight, {along_x, along_y, A(0), A(0)}};
    const A half = A(0.5) / P;
    return {grad_weight, along_x * (at.anchor_w * half), along_y * (at.anchor_h * half),
            {along_x, along_y, along_x * (at.dx * half), along_y * (at.dy * half)}};
}

// grads: gradients of activated weights, in and out of memory: each lane reads only what it wrote.
template <int GROUP, typename A>
__device__ __forceinline__ void softmax_backward(const Problem& problem, const A* weights, A* grads,  // [L * P]
                                                 const Normalizer<A>& norm, bool wanted, int lane, int points) {
    A total = 0;
    for (int j = lane; wanted && j < points; j += GROUP) total += activate(problem, norm, load(weights + j)) * grads[j];
    total = group_sum<GROUP>(total);
    for (int j = lane; wanted && j < points; j += GROUP)
        grads[j] = activate(problem, norm, load(weights + j)) * (grads[j] - total);
}

// The points at hand (own, own + GROUP, ...) of one row of weights. `raw` arrives as the gradient of the activated
// weight and is written as that of the given one; where only some points are at hand (`all_points` false),
// softmax_backward follows once every point has been written.
template <int GROUP, int CHUNKS, typename A>
__device__ __forceinline__ void write_weight_gradients(const Problem& problem, A* grads,  // [L * P]
                                                       const A (&raw)[CHUNKS], const A (&activated)[CHUNKS],
                                                       bool all_points, bool active, int own, int points) {
    A total = 0;
    if (problem.activation == ACTIVATION_SOFTMAX && all_points) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) total += activated[chunk] * raw[chunk];
        total = group_sum<GROUP>(total);
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const int j = own + chunk * GROUP;
        A slope = 1;
        if (problem.activation == ACTIVATION_SIGMOID) slope = activated[chunk] * (1 - activated[chunk]);
        if (problem.activation == ACTIVATION_SOFTMAX && all_points) slope = activated[chunk];
        if (active && j < points) grads[j] = slope * (raw[chunk] - total);
    }
}

// Sums over the points that share an anchor.
template <int GROUP, int CHUNKS, typename A>
__device__ __forceinline__ void write_reference_gradients(const Problem& problem, A* grads,  // [Lr, Z, 2 | 4]
                                                          const PointGradient<A> (&found)[CHUNKS], bool first,
                                                          bool active, int own, int lane, int P) {
    const int slots = problem.reference_levels * problem.anchors;
    for (int slot = 0; slot < slots; ++slot) {
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            if (number >= problem.reference_numbers) break;
            A total = 0;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const int j = own + chunk * GROUP;
                const int level = problem.reference_levels == 1 ? 0 : j / P;
                if (level * problem.anchors + j % P % problem.anchors == slot) total += found[chunk].reference[number];
            }
            total = group_sum<GROUP>(total);
            A* grad = grads + slot * problem.reference_numbers + number;
            if (active && lane == slot % GROUP) *grad = first ? total : *grad + total;
        }
    }
}
